"""The speed of prediction of several runs: turn by turn, so that a busy moment slows all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from longarc.comparison.children import Reader, reader
from longarc.errors import RunError


def measure_reading(
    runs: Mapping[str, Path],
    documents: Path,
    *,
    count: int,
    repeats: int,
    logs: Mapping[str, Path],
    advance: Callable[..., None],
) -> dict[str, dict[str, Any]]:
    """Documents a second of each run, and the peak memory of the process that predicted.

    Every run has a process of its own that stays alive. All of them warm up with one turn; then
    ``repeats`` rounds follow, in each of which every run has a turn, in an order that moves on by
    one from round to round. A process that fails leaves the others.

    Args:
        runs: run folder by name.
        documents: JSON file of the texts.
        count: of the texts.
        repeats: rounds.
        logs: file by name for what a process says.
        advance: called after each turn.

    Returns:
        By name ``documents_per_second`` with ``median``, ``min``, ``max`` and ``n``, the peaks and
        the threads; or ``why`` it failed.
    """
    found: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with ExitStack() as stack:
        alive: dict[str, Reader] = {}
        for name, run in runs.items():
            alive[name] = stack.enter_context(reader(run, documents, logs[name]))

        def attempt(name: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            try:
                return call()
            except RunError as error:
                found[name] = {"why": str(error)}
                del alive[name]
                return {}

        for name in list(runs):
            found[name] = attempt(name, alive[name].answer) or found[name]
        for turn in range(repeats + 1):
            names = list(alive)
            shift = turn % max(len(names), 1)
            for name in names[shift:] + names[:shift]:
                answer = attempt(name, alive[name].turn)
                advance()
                if not answer:
                    continue
                if turn:  # the first warms up
                    seconds[name].append(answer.pop("seconds"))
                else:
                    del answer["seconds"]
                found[name] |= answer
    for name in alive:
        found[name]["documents_per_second"] = spread([count / s for s in seconds[name]])
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements, to four digits.

    >>> spread([2.0, 4.0, 3.0])
    {'median': 3.0, 'min': 2.0, 'max': 4.0, 'n': 3}
    """
    rounded = [float(f"{v:.4g}") for v in (statistics.median(values), min(values), max(values))]
    return {**dict(zip(("median", "min", "max"), rounded, strict=True)), "n": len(values)}
