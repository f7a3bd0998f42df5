"""The page of a pretraining run: what it read, what it brought, whether the codes collapsed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longarc.errors import RunError
from longarc.report.drawing import Panel, shorten
from longarc.report.quantities import duration, percent, thousands
from longarc.report.saved import (
    as_dict,
    damaged,
    is_number,
    parse_options,
    read_json,
    read_log,
    read_text,
)
from longarc.report.training_charts import curve

CONFIG = 60_000

OBJECTIVES = {
    "simcse": "SimCSE: tell a document’s other view from the other documents of the batch",
    "simsiam": "SimSiam: predict a document’s other view, which is held still",
    "byol": "BYOL: predict what a moving average of the encoder says of the other view",
    "mlm": "Masked tokens: restore them",
}


@dataclass(frozen=True)
class Measure:
    """A figure of held-out documents: its path in the metrics, and what it means."""

    path: tuple[str, ...]
    name: str
    meaning: str


MEASURES = (
    Measure(("probe", "macro_f1"), "Linear probe, macro-F1", "classes weigh the same"),
    Measure(("probe", "accuracy"), "Linear probe, accuracy", "share of right answers"),
    Measure(("knn", "macro_f1"), "Nearest neighbours, macro-F1", "the five nearest vote"),
    Measure(("knn", "accuracy"), "Nearest neighbours, accuracy", "share of right answers"),
    Measure(("alignment",), "Alignment", "squared distance of two views; less is nearer"),
    Measure(("uniformity",), "Uniformity", "0 if all codes are the same; less is more even"),
    Measure(("relative_std",), "Spread", "1 if codes are spread evenly, 0 if they are the same"),
    Measure(("effective_rank",), "Effective rank", "directions in use; 1 after a collapse"),
    Measure(("cosine_spread",), "Spread of cosines", "standard deviation over pairs"),
)


@dataclass(frozen=True)
class SavedPretraining:
    """What a pretraining's folder says, as plain Python values."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    metrics: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def collapse(self) -> dict[str, Any] | None:
        """The alarm, if there was one."""
        return self.metrics.get("collapse") or None

    @property
    def late(self) -> str:
        """What to say of codes that were low at the end without an alarm; else an empty string."""
        return str(as_dict(self.metrics.get("late_collapse")).get("message") or "")

    @property
    def has_model(self) -> bool:
        """Whether the run ended with an encoder."""
        return (self.folder / "model").is_dir()


def read_pretraining(folder: str | Path) -> SavedPretraining:
    """Read a folder written by ``longarc pretrain``; RunError if a file is missing or damaged."""
    folder = Path(folder).expanduser()
    if not (folder / "metrics.json").is_file():
        raise RunError(
            f"{folder} has no metrics.json: its training has not ended. Go on with:"
            f" longarc pretrain --resume --out {shlex.quote(str(folder))}"
        )
    text = read_text(folder / "config.yaml")
    metrics = read_json(folder / "metrics.json")
    for needed in ("documents", "start", "end"):
        if not isinstance(metrics.get(needed), dict):
            raise damaged(folder / "metrics.json", f"it has no `{needed}` as an object")
    return SavedPretraining(
        folder=folder,
        config=parse_options(folder / "config.yaml", text),
        config_text=text,
        metrics=metrics,
        log=read_log(folder / "log.jsonl"),
    )


def pretraining_context(run: SavedPretraining) -> dict[str, Any]:
    """Everything that the page shows."""
    return {
        "run": run,
        "title": run.name,
        "facts": _facts(run),
        "verdict": verdict(run.metrics),
        "what_helps": what_helps(str(run.config.get("objective"))),
        "rows": rows(run.metrics),
        "measured": run.metrics["end"].get("n"),
        "curves": _curves(run),
        "documents": run.metrics["documents"],
        "config_text": run.config_text[:CONFIG],
        "config_cut": len(run.config_text) > CONFIG,
        "replay": shlex.join(
            ["longarc", "pretrain", "--config", str(run.folder / "config.yaml"), "--out", "NEW-RUN"]
        ),
        "next": shlex.join(
            ["longarc", "train", "LABELLED.csv", "--model", str(run.folder / "model"), "--out",
             "NEW-RUN"]
        ),
    }  # fmt: skip


def rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each measure that was taken: its value and interval before and after."""
    found = []
    for measure in MEASURES:
        before, after = (_figure(metrics[part], measure.path) for part in ("start", "end"))
        if before and after:
            found.append({"measure": measure, "start": before, "end": after})
    return found


def verdict(metrics: dict[str, Any]) -> str:
    """What the training did, in a sentence, with no more certainty than the figures have.

    >>> start, end = ({"uniformity": u, "alignment": a} for u, a in ((-1.0, 0.3), (-2.5, 0.4)))
    >>> verdict({"start": start, "end": end})
    'Codes are more evenly spread than before (uniformity -1.00 to -2.50), and two views of a
    document farther apart (alignment 0.30 to 0.40).'
    """
    taken = {row["measure"].path: row for row in rows(metrics)}
    row = taken.get(("probe", "macro_f1"))
    if row is not None:
        start, end = row["start"], row["end"]
        way = "rose" if end["value"] > start["value"] else "fell"
        if end["value"] == start["value"]:
            return f"The linear probe’s macro-F1 is {end['text']} as before."
        inside = start["low"] <= end["value"] <= start["high"]
        doubt = (
            " The intervals are wide: on other documents it could be the other way round."
            if inside
            else ""
        )
        return (
            f"The linear probe’s macro-F1 on held-out documents {way} from {start['text']} to "
            f"{end['text']}.{doubt}"
        )
    spread, near = taken.get(("uniformity",)), taken.get(("alignment",))
    if spread is None or near is None:
        return ""
    (u, v), (a, b) = ([r["start"]["value"], r["end"]["value"]] for r in (spread, near))
    apart = "nearer to each other" if b < a else "farther apart"
    return (
        f"Codes are {'more' if v < u else 'less'} evenly spread than before (uniformity {u:.2f} "
        f"to {v:.2f}), and two views of a document {apart} (alignment {a:.2f} to {b:.2f})."
    )


def collapse_message(collapse: dict[str, Any], objective: str, page: Path) -> str:
    """The error of a run that was stopped."""
    return (
        f"{collapse['message']} The training was stopped and no model was saved. "
        f"{what_helps(objective)} The curves are in {page}."
    )


def what_helps(objective: str) -> str:
    """A sentence on what keeps codes from collapsing, the surest first."""
    helps = {
        "--objective simcse, which has other documents to keep codes apart": objective != "simcse",
        "a smaller --learning-rate": True,
        "--predictor-factor 10 or --objective byol": objective == "simsiam",
        "a larger --batch-size": True,
    }
    return f"What helps, in this order: {'; '.join(way for way, here in helps.items() if here)}."


def _figure(metrics: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    found: Any = metrics
    for part in path:
        found = as_dict(found).get(part)
    value: Any = as_dict(found).get("value") if isinstance(found, dict) else found
    if not is_number(value):
        return None
    low, high = (as_dict(found).get(k) for k in ("low", "high"))
    whole: dict[str, Any] = {
        "value": value,
        "text": _written(value),
        "low": low,
        "high": high,
        "interval": None,
    }
    if is_number(low) and is_number(high):
        whole["interval"] = f"{_written(low)}–{_written(high)}"
    return whole


def _written(value: Any) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _facts(run: SavedPretraining) -> list[tuple[str, str]]:
    config, documents = run.config, run.metrics["documents"]
    provenance = as_dict(config.get("provenance"))
    parameters: Any = provenance.get("parameters")
    encoder = [str(config.get("model", "")), str(provenance.get("encoder") or "")]
    if is_number(parameters):
        encoder.append(f"{parameters / 1e6:.1f} M parameters")
    seconds = as_dict(run.metrics.get("seconds"))
    objective = str(config.get("objective"))
    batches = f"{thousands(run.metrics.get('steps'))} of {config.get('batch_size')} documents"
    facts = [
        ("Data", str(config.get("data") or "")),
        ("Documents", f"{thousands(documents.get('train'))} to train on, "
         f"{thousands(documents.get('held_out'))} held out"),
        ("Objective", OBJECTIVES.get(objective, objective)),
        ("Views", _views(config)),
        ("Encoder", ", ".join(part for part in encoder if part)),
        ("Length limit", f"{thousands(config.get('max_length'))} tokens"),
        ("Steps", batches),
        ("Time", f"{duration(seconds['training'])} training" if "training" in seconds else ""),
        ("Made", str(provenance.get("created") or "")[:16].replace("T", " ")),
    ]  # fmt: skip
    return [(name, shorten(value, 300)) for name, value in facts if value]


def _views(config: dict[str, Any]) -> str:
    """How two views of a document differ.

    >>> crops = {"views": "crops", "crop_min": 0.1, "crop_max": 0.5, "max_length": 64}
    >>> _views({"objective": "simcse", **crops})
    'passages of 10 % to 50 % of a document, at most 64 tokens'
    """
    if config.get("objective") == "mlm":
        return ""
    parts = []
    if config.get("views") == "crops":
        apart = "" if config.get("overlap", True) else ", apart"
        parts.append(
            f"passages of {percent(config.get('crop_min'))} to {percent(config.get('crop_max'))} "
            f"of a document{apart}, at most {thousands(config.get('max_length'))} tokens"
        )
    for key, what in (("delete", "left out"), ("mask", "masked")):
        if config.get(key):
            parts.append(f"{percent(config[key])} of the tokens {what}")
    if config.get("shuffle"):
        parts.append(f"spans of {config['shuffle']} tokens shuffled")
    return "; ".join(parts) or "the document twice, with other dropout"


def _curves(run: SavedPretraining) -> list[Panel]:
    """Loss, collapse measures, quality, learning rate by step; the onset of a collapse marked."""
    last = {(r.get("event"), r["step"]): r for r in run.log if is_number(r.get("step"))}
    of: dict[str, list[dict[str, Any]]] = {"train": [], "collapse": [], "evaluation": []}
    for (event, _), record in sorted(last.items(), key=lambda item: item[0][1]):
        if event in of:
            of[event].append(record)
    if not of["train"] and not of["collapse"]:
        return []
    span = (0, max(r["step"] for part in of.values() for r in part) or 1)
    onset = as_dict(run.collapse).get("onset")
    for record in of["evaluation"]:
        for name in ("probe", "knn"):
            found = _figure(record, (name, "macro_f1"))
            record[f"{name}_macro_f1"] = found["value"] if found else None
    looks, times = of["collapse"], of["evaluation"]
    drawn = [
        curve("Loss", [("loss", of["train"], "loss")], span, onset),
        curve("Spread of the codes", [("spread", looks, "relative_std")], span, onset, zero=True),
        curve("Effective rank", [("rank", looks, "effective_rank")], span, onset, zero=True),
        curve("Spread of cosines", [("spread", looks, "cosine_spread")], span, onset, zero=True),
        curve(
            "Macro-F1 on held-out documents",
            [("linear probe", times, "probe_macro_f1"),
             ("nearest neighbours", times, "knn_macro_f1")],
            span, onset,
        ),
        curve("Alignment", [("alignment", times, "alignment")], span, onset, zero=True),
        curve("Uniformity", [("uniformity", times, "uniformity")], span, onset, zero=True),
        curve("Learning rate", [("rate", of["train"], "learning_rate")], span, onset, rate=True),
    ]  # fmt: skip
    return [panel for panel in drawn if panel is not None]
