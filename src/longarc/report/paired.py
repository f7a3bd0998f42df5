"""Runs against the best of them on the same documents: differences and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longarc.report.measures import HEAD, MACRO_F1, MID, TAIL, Figure, Measure, figure
from longarc.report.saved import SavedRun


def against_best(
    runs: Sequence[SavedRun], names: Sequence[str], split: str, measures: Sequence[Measure]
) -> dict[str, Any] | None:
    """How far each run's figures are from those of the run with the best macro-F1.

    Only runs that predicted the very documents of the best one can be paired with it: the same
    rows, texts and labels. None if there is no such run, or no macro-F1.

    Returns:
        ``best`` (its name), ``measures`` (those that decisions alone have, the recalls of head,
        middle and tail where these are the same classes), ``rows`` (``name`` and ``cells``, a
        signed figure by measure) and ``left_out`` (names of runs with other documents).
    """
    # scikit-learn takes a second, which a report of one run should not.
    from longarc.training.metrics import COMPARED, paired_differences

    found = [figure(run.metrics[split]["model"], MACRO_F1.key) for run in runs]
    known = [i for i, f in enumerate(found) if f is not None]
    if not known:
        return None
    top = max(known, key=lambda i: found[i].value)  # pyright: ignore[reportOptionalMemberAccess]
    best = runs[top]
    asked = _asked(best, split)
    alike = {name: run for name, run in zip(names, runs, strict=True) if run is not best}
    left_out = [name for name, run in alike.items() if not asked or _asked(run, split) != asked]
    alike = {name: run for name, run in alike.items() if name not in left_out}
    if not alike:
        return None
    space, labels = best.space, [label for *_, label in asked]
    differences = paired_differences(
        space.encode(labels),
        space.encode(_answers(best, split)),
        {name: space.encode(_answers(run, split)) for name, run in alike.items()},
        space=space,
        outside=space.outside(labels),
    )
    shown = [
        m for m in measures
        if m.key in COMPARED and any(figure(d, m.key) for d in differences.values())
        and (m not in (HEAD, MID, TAIL) or _same_groups(best, list(alike.values())))
    ]  # fmt: skip
    rows = [
        {"name": name, "cells": {m.key: _turned(figure(found, m.key)) for m in shown}}
        for name, found in differences.items()
    ]
    return {"best": names[top], "measures": shown, "rows": rows, "left_out": left_out}


def _turned(found: Figure | None) -> Figure | None:
    """How far the other one is from the best, where ``found`` is how far the best is from it."""
    if found is None:
        return None
    low = None if found.high is None else -found.high
    high = None if found.low is None else -found.low
    return Figure(-found.value, low, high)


def _same_groups(best: SavedRun, others: Sequence[SavedRun]) -> bool:
    """Whether head, middle and tail are the same classes, as after the same training documents."""
    groups = dict(zip(best.space.names, best.space.groups, strict=True))
    return all(
        dict(zip(run.space.names, run.space.groups, strict=True)) == groups for run in others
    )


def _asked(run: SavedRun, split: str) -> list[tuple[Any, Any, Any]]:
    """Row, hash and label of each document of a split, in the order of the rows."""
    return [(p["row"], p["text_sha256"], p["label"]) for p in _of(run, split)]


def _answers(run: SavedRun, split: str) -> list[Any]:
    return [p["prediction"] for p in _of(run, split)]


def _of(run: SavedRun, split: str) -> list[dict[str, Any]]:
    return sorted((p for p in run.predictions if p["split"] == split), key=lambda p: p["row"])
