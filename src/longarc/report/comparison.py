"""Several saved runs side by side: their figures, and what of their configuration differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longarc.errors import RunError
from longarc.report import charts
from longarc.report.measures import best, figure, measures_of, system_name
from longarc.report.page import link_to
from longarc.report.paired import against_best
from longarc.report.saved import SPLITS, SavedRun

# Of the provenance, what makes one run differ from another; when and where it ran does not.
_PROVENANCE = ("data_sha256", "encoder", "parameters", "longarc", "torch", "transformers", "git")


def comparison_context(runs: Sequence[SavedRun], target: Path) -> dict[str, Any]:
    """Everything that the page of a comparison shows; links are relative to ``target``.

    Raises ``RunError`` if the label spaces differ or no split was evaluated in every run.
    """
    names = run_names(runs)
    _require_one_label_space(runs, names)
    split = next((s for s in SPLITS if all(s in run.metrics for run in runs)), None)
    if split is None:
        having = "; ".join(f"{n}: {', '.join(r.splits)}" for n, r in zip(names, runs, strict=True))
        raise RunError(
            f"The runs share no evaluated split ({having}). Evaluate them on the same data, e.g."
            " train again with the same test file."
        )
    hashes = {n: r.provenance.get("data_sha256") for n, r in zip(names, runs, strict=True)}
    rows = _rows(runs, names, split, same_data=len(set(hashes.values())) == 1)
    measures = [
        m
        for m in measures_of(runs[0].space.multi_label)
        if any(figure(row["metrics"], m.key) for row in rows)
    ]
    baselines = {row["name"] for row in rows if row["baseline"]}
    cells = {m.key: {row["name"]: figure(row["metrics"], m.key) for row in rows} for m in measures}
    return {
        "title": f"{len(runs)} runs compared",
        "names": names,
        "runs": [
            {
                "name": name,
                "folder": str(run.folder),
                "link": _link(run, target),
                "config": run.config,
                "n": run.metrics[split]["model"].get("n"),
            }
            for name, run in zip(names, runs, strict=True)
        ],
        "split": split,
        "classes": len(runs[0].space),
        "multi_label": runs[0].space.multi_label,
        "same_data": len(set(hashes.values())) == 1 and None not in hashes.values(),
        "unknown_data": [name for name, value in hashes.items() if value is None],
        "rows": rows,
        "measures": measures,
        "cells": cells,
        "best": {m.key: best(cells[m.key], m) for m in measures},
        "panels": [
            drawn
            for m in measures
            if (drawn := charts.intervals_of_runs(m, cells[m.key], baselines))
        ],
        "paired": against_best(runs, names, split, measures),
        "options": differing_options(runs),
    }


def run_names(runs: Sequence[SavedRun]) -> list[str]:
    """As many of the last parts of each folder's path as tell the runs apart."""
    parts = [run.folder.resolve().parts for run in runs]
    names = ["/".join(p[-1:]) for p in parts]
    for length in range(2, max(map(len, parts)) + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(p[-length:]) for p in parts]
    for run, name in zip(runs, names, strict=True):
        if names.count(name) > 1:
            raise RunError(f"{run.folder} was given twice; expected different run folders.")
    return names


def _require_one_label_space(runs: Sequence[SavedRun], names: Sequence[str]) -> None:
    first = set(runs[0].space.names)
    for name, run in zip(names[1:], runs[1:], strict=True):
        labels = set(run.space.names)
        if run.space.multi_label != runs[0].space.multi_label:
            kinds = {True: "multi-label", False: "single-label"}
            raise RunError(
                f"{names[0]} is {kinds[runs[0].space.multi_label]} and {name} is"
                f" {kinds[run.space.multi_label]}; only runs of one kind can be compared."
            )
        if labels != first:
            only = [f"only in {names[0]}: {_some(first - labels)}"] * bool(first - labels)
            only += [f"only in {name}: {_some(labels - first)}"] * bool(labels - first)
            raise RunError(
                f"{names[0]} and {name} have different labels ({'; '.join(only)}), so their figures"
                " cannot be compared. Give runs on the same label column, or a report for each."
            )


def _some(labels: set[str]) -> str:
    listed = ", ".join(sorted(labels)[:5])
    return listed if len(labels) <= 5 else f"{listed} and {len(labels) - 5} more"


def _rows(
    runs: Sequence[SavedRun], names: Sequence[str], split: str, same_data: bool
) -> list[dict[str, Any]]:
    """The runs, then the baselines: once for all runs if their data are the same."""
    rows = [
        {"name": name, "metrics": run.metrics[split]["model"], "baseline": False}
        for name, run in zip(names, runs, strict=True)
    ]
    seen: set[str] = set()
    for name, run in zip(names, runs, strict=True):
        for key, metrics in run.systems(split).items():
            # A probe stands on the run's own encoder; only the linear baseline is common to all.
            common = same_data and key == "tfidf-svm"
            title = system_name(key) if common else f"{system_name(key)} ({name})"
            if key != "model" and title not in seen:
                seen.add(title)
                rows.append({"name": title, "metrics": metrics, "baseline": True})
    return rows


def differing_options(runs: Sequence[SavedRun]) -> list[tuple[str, list[str]]]:
    """Options and origins in which the runs differ: the name, then each run's value."""
    flat = [
        {
            **{k: v for k, v in run.config.items() if k not in ("provenance", "out")},
            **{f"provenance.{k}": run.provenance.get(k) for k in _PROVENANCE},
        }
        for run in runs
    ]
    keys = dict.fromkeys(key for options in flat for key in options)
    rows = [(key, [_written(options.get(key)) for options in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _written(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _link(run: SavedRun, target: Path) -> str | None:
    report = run.folder / "report.html"
    return link_to(report, target) if report.is_file() else None
