"""Runs against the best of them on the same documents: differences and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longarc.report.measures import MACRO_F1, Measure, figure
from longarc.report.saved import SavedRun


def against_best(
    runs: Sequence[SavedRun], names: Sequence[str], split: str, measures: Sequence[Measure]
) -> dict[str, Any] | None:
    """How far each run's figures are from those of the run with the best macro-F1.

    Only runs that predicted the very documents of the best one can be paired with it: the same
    rows, texts and labels. None if there is no such run, or no macro-F1.

    Returns:
        ``best`` (its name), ``measures`` (those that decisions alone have), ``rows`` (``name`` and
        ``cells``, a signed figure by measure) and ``left_out`` (names of runs with other
        documents).
    """
    # scikit-learn takes a second, which a report of one run should not.
    from longarc.training.metrics import COMPARED, paired_differences

    found = [figure(run.metrics[split]["model"], MACRO_F1.key) for run in runs]
    known = [i for i, f in enumerate(found) if f is not None]
    if not known:
        return None
    top = max(known, key=lambda i: found[i].value)  # pyright: ignore[reportOptionalMemberAccess]
    best, asked = runs[top], _asked(runs[top], split)
    rows, left_out = [], []
    for name, run in zip(names, runs, strict=True):
        if run is best:
            continue
        if not asked or _asked(run, split) != asked:
            left_out.append(name)
            continue
        labels = [label for *_, label in asked]
        differences = paired_differences(
            best.space.encode(labels),
            best.space.encode(_answers(run, split)),
            best.space.encode(_answers(best, split)),
            space=best.space,
            outside=best.space.outside(labels),
        )
        rows.append({"name": name, "cells": {k: figure(differences, k) for k in COMPARED}})
    if not rows:
        return None
    shown = [m for m in measures if m.key in COMPARED and any(row["cells"][m.key] for row in rows)]
    return {"best": names[top], "measures": shown, "rows": rows, "left_out": left_out}


def _asked(run: SavedRun, split: str) -> list[tuple[Any, Any, Any]]:
    """Row, hash and label of each document of a split, in the order of the rows."""
    return [(p["row"], p["text_sha256"], p["label"]) for p in _of(run, split)]


def _answers(run: SavedRun, split: str) -> list[Any]:
    return [p["prediction"] for p in _of(run, split)]


def _of(run: SavedRun, split: str) -> list[dict[str, Any]]:
    return sorted((p for p in run.predictions if p["split"] == split), key=lambda p: p["row"])
