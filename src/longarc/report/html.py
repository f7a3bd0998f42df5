"""A saved run, or several side by side, as one HTML file that needs nothing but itself."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longarc.errors import RunError
from longarc.files import write_text
from longarc.report import charts, explanations, training_charts
from longarc.report.comparison import comparison_context
from longarc.report.drawing import shorten
from longarc.report.learning_rate import search_context
from longarc.report.measures import best, figure, measures_of, system_name, verdict
from longarc.report.page import link_to, render
from longarc.report.pretraining import pretraining_context, read_pretraining
from longarc.report.quantities import duration, thousands
from longarc.report.recall_chart import recall_by_count
from longarc.report.recipe import recipe_tables, second_stage, without_prior
from longarc.report.saved import SavedRun, is_number, read_run
from longarc.report.step_size_charts import CAPTIONS, step_size_curves
from longarc.training.run_folder import is_pretraining

# What is shown at most: with these the file stays under 3 MB whatever the run.
WORST_ERRORS = 20
EXPLAINED = 20
EXCERPT = 500
CLASS_ROWS = 1000
CONFUSED = 12
FINDINGS = 100
CONFIG = 60_000


def write_report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the report of one run, or a comparison of several, and return its path.

    A run of ``longarc pretrain`` gets a page of its own kind, and cannot be compared.

    The file holds its style and its charts (SVG) and asks for nothing from anywhere: no script,
    no font, no image. It stays under 3 MB.

    ``out`` is RUN/report.html by default; a comparison belongs to no run's folder, so there
    ``out`` has to be given. Runs can be compared if their label spaces have the same labels; where
    their data differ, the page says so above everything else.

    Raises ``RunError`` for a missing or damaged run folder, for runs with different labels and
    for an ``out`` that cannot be a file.

    >>> write_report("no-such-run")
    Traceback (most recent call last):
    ...
    longarc.errors.RunError: no run folder at no-such-run. ...
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    if not folders:
        raise RunError("No run folder was given; expected at least one, e.g. runs/tickets.")
    if out is None and len(folders) > 1:
        raise RunError(
            f"{len(folders)} runs were given but no output file; say where the comparison goes,"
            " e.g. comparison.html."
        )
    target = Path(folders[0]) / "report.html" if out is None else Path(out)
    if target.is_dir():
        raise RunError(f"{target} is a folder; expected a file, e.g. {target / 'report.html'}.")
    if len(folders) == 1 and is_pretraining(folders[0]):
        page = render("pretraining.html.j2", pretraining_context(read_pretraining(folders[0])))
    else:
        saved = [read_run(folder) for folder in folders]
        if len(saved) == 1:
            page = render("run.html.j2", run_context(saved[0], target))
        else:
            page = render("comparison.html.j2", comparison_context(saved, target))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)
    return target


def run_context(run: SavedRun, target: Path) -> dict[str, Any]:
    """Everything that the page of one run shows; ``target`` is where the page will lie."""
    shown = run.splits[0]
    metrics = run.metrics[shown]["model"]
    return {
        "run": run,
        "title": run.name,
        "facts": _facts(run),
        "shown": shown,
        "tables": [metrics_table(run, split) for split in run.splits],
        "verdict": verdict(run.metrics[shown]),
        "intervals": _interval_chart(run, shown),
        "recall_chart": recall_by_count(metrics.get("per_class") or []),
        "lowest": _lowest_recall(metrics),
        "curves": training_charts.training_curves(run.log),
        "step_size": step_size_curves(run.log),
        "step_size_captions": CAPTIONS,
        "best_step": training_charts.best_step(run.log),
        "diagnosis": _diagnosis(run, target),
        "recipe": recipe_tables(run),
        "search": search_context(found) if (found := run.recipe.get("learning_rate")) else None,
        "without_prior": without_prior(run),
        "reliability": charts.reliability(metrics.get("reliability") or [], run.space.multi_label),
        "calibration_error": figure(metrics, "calibration_error"),
        "confused": (metrics.get("confused") or [])[:CONFUSED],
        "unseen": _unseen(metrics),
        "errors": worst_errors(run, shown),
        "explained": explanations.drawn(run.explained[:EXPLAINED]),
        "excerpt": explanations.EXCERPT,
        "error_count": sum(_is_wrong(p) for p in run.predictions if p["split"] == shown),
        "lengths": _lengths(run),
        "findings": _findings(run),
        "classes": _class_table(run, metrics),
        "class_limit": CLASS_ROWS,
        "config_text": run.config_text[:CONFIG],
        "config_cut": len(run.config_text) > CONFIG,
        "replay": shlex.join(
            ["longarc", "train", "--config", str(run.folder / "config.yaml"), "--out", "NEW-RUN"]
        ),
    }


def _diagnosis(run: SavedRun, target: Path) -> dict[str, str] | None:
    """The verdict on the gradient, and the way from the page to the diagnosis's."""
    if not run.diagnosis:
        return None
    return {
        "verdict": shorten(run.diagnosis["verdict"], 600),
        "link": link_to(run.folder / "diagnosis.html", target),
    }


def _facts(run: SavedRun) -> list[tuple[str, str]]:
    config, provenance, sizes = run.config, run.provenance, run.group_sizes()
    rows = ", ".join(f"{thousands(n)} {split}" for split, n in run.rows().items())
    kind = "labels" if run.space.multi_label else "classes"
    classes = (
        f"{thousands(len(run.space))} {kind}: {sizes['head']} head, {sizes['mid']} mid,"
        f" {sizes['tail']} tail"
    )
    parameters = provenance.get("parameters")
    encoder = [str(config["model"])] if config.get("model") is not None else []
    if provenance.get("encoder"):
        encoder.append(str(provenance["encoder"]))
    if is_number(parameters) and parameters is not None:
        encoder.append(
            f"{parameters / 1e6:.1f} M parameters"
            if parameters >= 1e5
            else f"{parameters} parameters"
        )
    seconds = run.metrics.get("seconds")
    seconds = seconds if isinstance(seconds, dict) else {}
    training = duration(seconds.get("training"))
    total = duration(sum(s for s in seconds.values() if is_number(s))) if seconds else None
    times = f"{training} training, {total} in all" if training else total
    limit = length_limit(run)
    facts = [
        ("Data", str(config["data"]) if config.get("data") is not None else None),
        ("Documents", rows or None),
        ("Label space", classes),
        ("Encoder", ", ".join(encoder) or None),
        ("Loss", str(config["loss"]) if config.get("loss") is not None else None),
        ("Learning rate", _learning_rate(run)),
        ("Regularizers", _regularizers(config.get("regularizers"))),
        ("Second stage", second_stage(run)),
        ("Hybrid", _hybrid(config.get("hybrid"))),
        ("Length limit", f"{thousands(limit)} tokens" if limit else None),
        ("Time", times),
        (
            "Made",
            str(provenance["created"])[:16].replace("T", " ")
            if provenance.get("created")
            else None,
        ),
    ]
    return [(name, shorten(value, 300)) for name, value in facts if value]


def _learning_rate(run: SavedRun) -> str | None:
    rate = run.config.get("learning_rate")
    if not is_number(rate) or run.config.get("freeze"):
        return None
    return f"{rate:g}, found by a search" if "learning_rate" in run.recipe else f"{rate:g}"


def _hybrid(factor: Any) -> str | None:
    """What the model is besides the encoder: a reader who compares it with the baseline must know.

    >>> _hybrid(8.0), _hybrid(0.0)
    ('8 times the margins of TF-IDF + linear SVM are added to the logits', None)
    """
    if not is_number(factor) or not factor:
        return None
    return f"{factor:g} times the margins of {system_name('tfidf-svm')} are added to the logits"


def _regularizers(chosen: Any) -> str | None:
    """Their names with the options that were given.

    >>> _regularizers(["fgm", {"flooding": {"level": 0.1}}])
    'fgm, flooding (level 0.1)'
    """
    named = []
    for entry in chosen if isinstance(chosen, list) else []:
        for name, options in (entry if isinstance(entry, dict) else {entry: None}).items():
            told = ", ".join(f"{k} {v}" for k, v in (options or {}).items())
            named.append(f"{name} ({told})" if told else str(name))
    return ", ".join(named) or None


def metrics_table(run: SavedRun, split: str) -> dict[str, Any]:
    """A split's figures: a row for each measure that anything has, a column for each system."""
    found = run.systems(split)
    rows = []
    for measure in measures_of(run.space.multi_label):
        cells = {name: figure(metrics, measure.key) for name, metrics in found.items()}
        if any(cells.values()):
            rows.append({"measure": measure, "cells": cells, "best": best(cells, measure)})
    return {
        "split": split,
        "n": found["model"].get("n"),
        "systems": {name: system_name(name) for name in found},
        "rows": rows,
    }


def _interval_chart(run: SavedRun, split: str) -> Any:
    return charts.intervals(
        [
            (
                measure,
                {system_name(n): figure(m, measure.key) for n, m in run.systems(split).items()},
            )
            for measure in measures_of(run.space.multi_label)
        ]
    )


def _lowest_recall(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The five classes with the lowest recall; of equals, the one with most documents first."""
    rows = [
        r
        for r in metrics.get("per_class") or []
        if is_number(r.get("recall")) and (r.get("support") or 0) > 0 and r["recall"] < 1
    ]
    return sorted(rows, key=lambda r: (r["recall"], -r["support"]))[:5]


def _unseen(metrics: dict[str, Any]) -> list[tuple[str, int]]:
    unseen = metrics.get("unseen_labels") or {}
    return sorted(unseen.items(), key=lambda item: (-item[1], item[0]))


def _is_wrong(prediction: dict[str, Any]) -> bool:
    label, predicted = prediction["label"], prediction["prediction"]
    if isinstance(label, list):
        return set(label) != set(predicted or [])
    return label != predicted


def worst_errors(run: SavedRun, split: str) -> list[dict[str, Any]]:
    """The wrong predictions that the model was surest of; those without a confidence come last."""

    def surest(p: dict[str, Any]) -> tuple[float, int]:
        return (-p["confidence"] if is_number(p["confidence"]) else 1.0, p["row"])

    wrong = sorted((p for p in run.predictions if p["split"] == split and _is_wrong(p)), key=surest)
    return [
        {
            "row": p["row"],
            "label": _names(p["label"]),
            "prediction": _names(p["prediction"]),
            "confidence": p["confidence"],
            "excerpt": " ".join((p["excerpt"] or "")[:EXCERPT].split()),
            "cut": len(p["excerpt"] or "") >= EXCERPT,
        }
        for p in wrong[:WORST_ERRORS]
    ]


def _names(label: str | list[str] | None) -> str:
    if isinstance(label, list):
        return shorten(", ".join(sorted(label)), 300) or "(none)"
    return shorten(label or "", 120) or "(none)"


def lengths_of(run: SavedRun) -> dict[str, Any] | None:
    """What the check before training measured of the documents' lengths."""
    measured = (run.check or {}).get("lengths")
    return measured if isinstance(measured, dict) else None


def length_limit(run: SavedRun) -> int | None:
    """Tokens of a document that the model reads; None where nobody wrote it down."""
    for limit in (run.config.get("max_length"), (lengths_of(run) or {}).get("max_length")):
        if is_number(limit):
            return limit
    return None


def _lengths(run: SavedRun) -> dict[str, Any] | None:
    measured = lengths_of(run)
    if measured is None:
        return None
    limit = measured.get("max_length")
    return {
        "chart": training_charts.lengths(measured.get("histogram") or [], limit),
        "max_length": limit,
        "documents": measured.get("truncated_documents"),
        "tokens": measured.get("truncated_tokens"),
        "quantiles": sorted((measured.get("quantiles") or {}).items(), key=lambda q: float(q[0])),
    }


def _findings(run: SavedRun) -> list[dict[str, Any]]:
    order = {"error": 0, "warning": 1, "note": 2}
    findings = [f for f in (run.check or {}).get("findings") or [] if isinstance(f, dict)]
    findings.sort(key=lambda f: order.get(f.get("level", ""), 3))
    return [
        {
            "level": f["level"] if f.get("level") in order else "note",
            "message": _sentence(shorten(str(f.get("message", "")), 600)),
        }
        for f in findings[:FINDINGS]
    ]


def _sentence(message: str) -> str:
    """A message as a sentence.

    >>> _sentence("at 256 tokens 41% of the texts are cut")
    'At 256 tokens 41% of the texts are cut.'
    """
    ended = message.endswith((".", "!", "?", "…"))
    return message[:1].upper() + message[1:] + ("" if ended else ".")


def _class_table(run: SavedRun, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each label, those without a document in the split too, frequent ones first."""
    measured = {row["label"]: row for row in metrics.get("per_class") or []}
    rows = [
        {
            "name": name,
            "group": group,
            "count": count,
            **{
                key: measured.get(name, {}).get(key)
                for key in ("support", "precision", "recall", "f1", "average_precision")
            },
        }
        for name, count, group in zip(
            run.space.names, run.space.counts, run.space.groups, strict=True
        )
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["name"]))
