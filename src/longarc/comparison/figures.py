"""From finished runs to a row for each candidate: quality, speed, memory, the front."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from longarc.comparison.candidates import Candidate
from longarc.comparison.slot import Slot, read
from longarc.report.trade_off import pareto_front
from longarc.training.bootstrap import resampled_figures, with_interval
from longarc.training.run_folder import RunFolder

SPLITS = ("test", "validation")


def rows(
    candidates: Sequence[Candidate],
    slots: dict[str, list[Slot]],
    reading: dict[str, dict[str, Any]],
    root: Path,
) -> list[dict[str, Any]]:
    """A row of ``compare.json`` for each candidate, in their order (schema: docs/compare.md)."""
    found = []
    resampled: dict[str, np.ndarray] = {}
    for candidate in candidates:
        row, drawn = _row(candidate, slots[candidate.name], reading.get(candidate.name, {}), root)
        found.append(row)
        if drawn is not None:
            resampled[candidate.name] = drawn
    finished = [row for row in found if row["why"] is None]
    best = max(finished, key=_quality_and_speed, default=None)
    for row in finished:
        if best is not None and row is not best:
            differences = resampled[row["name"]] - resampled[best["name"]]
            value = row["macro_f1"]["value"] - best["macro_f1"]["value"]
            if np.isfinite(differences).any():  # else no resample has a labelled document
                row["against_best"] = with_interval(value, differences)
    points = {
        row["name"]: (
            row["prediction_documents_per_second"]["median"], row["macro_f1"]["value"]
        )
        for row in finished
        if row["prediction_documents_per_second"] is not None
    }  # fmt: skip
    front = pareto_front(points)
    for row in found:
        row["front"] = row["name"] in front
    return found


def _row(
    candidate: Candidate, slots: Sequence[Slot], reading: dict[str, Any], root: Path
) -> tuple[dict[str, Any], np.ndarray | None]:
    row: dict[str, Any] = {
        "name": candidate.name,
        "options": candidate.options,
        "why": None,
        "macro_f1": None,
        "by_seed": [],
        "accuracy": None,
        "against_best": None,
        "training_documents_per_second": None,
        "prediction_documents_per_second": reading.get("documents_per_second"),
        "training_peak_mib": None,
        "prediction_peak_mib": _peak(reading),
        "parameters": None,
        "steps": None,
        "minutes": None,
        "start_kept": 0,
        "runs": [str(slot.run.relative_to(root)) for slot in slots if slot.finished],
        "front": False,
    }
    failed = [
        read(slot.failure).get("why", "it did not run") for slot in slots if not slot.finished
    ]
    if failed:
        return {**row, "why": failed[0]}, None
    if "why" in reading:
        row["reading_failed"] = reading["why"]
    trained = [read(slot.training) for slot in slots]
    metrics = [RunFolder(slot.run).metrics() for slot in slots]
    split = next(name for name in SPLITS if name in metrics[0])
    drawn = [_resampled(slot, split) for slot in slots]
    values = [m[split]["model"]["macro_f1"]["value"] or 0.0 for m in metrics]
    f1 = np.mean([d["macro_f1"] for d in drawn], axis=0)
    speeds = [_training_speed(slot) for slot in slots]
    known = [speed for speed in speeds if speed is not None]
    seconds = [t["seconds"] for t in trained if t.get("seconds") is not None]
    peaks = [peak for t in trained if (peak := _peak(t)) is not None]
    row |= {
        # The mean over seeds, with the interval of the same mean on resampled documents.
        "macro_f1": with_interval(float(np.mean(values)), f1),
        "by_seed": values,
        "accuracy": with_interval(
            float(np.mean([m[split]["model"]["accuracy"]["value"] for m in metrics])),
            np.mean([d["accuracy"] for d in drawn], axis=0),
        ),
        "training_documents_per_second": round(float(np.mean(known)), 3) if known else None,
        "training_peak_mib": max(peaks, default=None),
        "parameters": RunFolder(slots[0].run).provenance().get("parameters"),
        "steps": trained[0].get("steps"),
        "minutes": round(float(np.mean(seconds)) / 60, 2) if seconds else None,
        "start_kept": sum(map(_start_kept, slots)),
    }
    return row, f1


def _quality_and_speed(row: dict[str, Any]) -> tuple[float, float]:
    """Of equally good ones the fastest is the best, as it is the one on the front."""
    speed = row["prediction_documents_per_second"]
    return row["macro_f1"]["value"], speed["median"] if speed else 0.0


def _peak(measured: dict[str, Any]) -> float | None:
    """Of the GPU's memory where there is one, else of the process's."""
    on_gpu = measured.get("gpu_peak_mib")
    return on_gpu if on_gpu is not None else measured.get("peak_mib")


def _resampled(slot: Slot, split: str) -> dict[str, np.ndarray]:
    """Figures on resampled documents; the same draws for every candidate pair them."""
    import pyarrow.compute
    import pyarrow.parquet

    folder = RunFolder(slot.run)
    table = pyarrow.parquet.read_table(
        folder.predictions_file, columns=["split", "label", "prediction"]
    )
    table = table.filter(pyarrow.compute.field("split") == split)
    space = folder.labels()
    labels, predictions = (table[name].to_pylist() for name in ("label", "prediction"))
    target, prediction = (
        codes.astype(bool) if space.multi_label else codes
        for codes in map(space.encode, (labels, predictions))
    )
    return resampled_figures(target, prediction, groups=space.groups, outside=space.outside(labels))


def _training_speed(slot: Slot) -> float | None:
    """Documents a second over the steps of a run, evaluations and checkpoints left out.

    Read off the log: the records of steps, and what was written just before each.
    """
    records = _records(slot)
    job = read(slot.job)
    documents = seconds = epoch = 0.0
    for before, record in pairwise(records):
        if record["event"] != "train":
            continue
        if before["event"] != "start":  # what precedes a first step is not of the step
            documents += (record["epoch"] - epoch) * job["documents"]
            seconds += record["time"] - before["time"]
        epoch = record["epoch"]
    return documents / seconds if documents > 0 and seconds > 0 else None


def _start_kept(slot: Slot) -> bool:
    """Whether no epoch beat the state before the training, which was then kept in its place."""
    ends = [record for record in _records(slot) if record["event"] == "end"]
    return bool(ends) and ends[-1].get("best_step") == 0


def _records(slot: Slot) -> list[dict[str, Any]]:
    """The training log; empty for a run that took no steps."""
    log = RunFolder(slot.run).log_file
    if not log.is_file():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
