"""The speed of prediction of several runs: turn by turn, so that a busy moment slows all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longarc.comparison.children import Reader, reader
from longarc.comparison.memory import available_mib
from longarc.errors import RunError
from longarc.training.progress import Reporter


@dataclass(frozen=True)
class Needs:
    """MiB that one process may need at most, of the memory and of a GPU's; None where unknown."""

    memory: float | None = None
    gpu: float | None = None

    def missing(self, gpu_free: float | None) -> str:
        """What is too small for one process more, in words; empty where there is room."""
        pairs = (("memory", self.memory, available_mib()), ("GPU's memory", self.gpu, gpu_free))
        for what, needed, free in pairs:
            if needed is not None and free is not None and free < needed:
                return f"{free:,.0f} MiB of the {what} are left, and one may need {needed:,.0f}"
        return ""


def measure_reading(
    runs: Mapping[str, Path],
    documents: Path,
    *,
    count: int,
    repeats: int,
    logs: Mapping[str, Path],
    needs: Needs,
    reporter: Reporter,
) -> dict[str, dict[str, Any]]:
    """Documents a second of each run, and the peak memory of the process that predicted.

    Every run has a process of its own that stays alive. All of them warm up with one turn; then
    ``repeats`` rounds follow, in each of which every run has a turn, in an order that moves on by
    one from round to round. Where the memory does not hold all of them, a process is started anew
    for each turn, and warms up by itself. A process that fails leaves the others.

    Args:
        runs: run folder by name.
        documents: JSON file of the texts.
        count: of the texts.
        repeats: rounds.
        logs: file by name for what a process says.
        needs: what one process may need.
        reporter: is told of the progress.

    Returns:
        By name ``documents_per_second`` with ``median``, ``min``, ``max`` and ``n``, the peaks and
        the threads, and ``alone`` where the processes were not alive together; or ``why`` it
        failed.
    """
    with ExitStack() as stack:
        made = _Turns(runs, documents, logs)
        if not made.load_all(needs, reporter, stack):
            stack.close()
        made.warm_up(reporter)
        made.measure(repeats, reporter)
    for name, seconds in made.seconds.items():
        if name in made.left:
            speeds = [count / each for each in seconds]
            made.found[name]["documents_per_second"] = spread(speeds)
    return made.found


@dataclass
class _Turns:
    """The runs that have not failed, ``left``, and what was found of all.

    ``alive`` are the processes; empty where each turn has one of its own. ``usual`` are the seconds
    of a turn, as the warm-up has them.
    """

    runs: Mapping[str, Path]
    documents: Path
    logs: Mapping[str, Path]
    alive: dict[str, Reader] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = list(self.runs)
        self.found: dict[str, dict[str, Any]] = {name: {} for name in self.runs}
        self.seconds: dict[str, list[float]] = {name: [] for name in self.runs}

    def load_all(self, needs: Needs, reporter: Reporter, stack: ExitStack) -> bool:
        """Start a process for each run as long as there is room; False if there is not."""
        gpu_free: float | None = None
        with reporter.task("loading", len(self.runs)) as advance:
            for number, name in enumerate(self.runs):
                if missing := needs.missing(gpu_free):
                    reporter.say(
                        f"{number} of {len(self.runs)} processes fit at once ({missing}): one is "
                        "started anew for each turn, and no two live together"
                    )
                    self.alive.clear()
                    self.found = {n: f | {"alone": True} for n, f in self.found.items()}
                    return False
                process = reader(self.runs[name], self.documents, self.logs[name])
                self.alive[name] = stack.enter_context(process)
                answer = self._attempt(name, self.alive[name].answer)
                gpu_free = answer.pop("gpu_free_mib", None)
                self.found[name] |= answer
                advance(1, name)
        return True

    def warm_up(self, reporter: Reporter) -> None:
        """One turn of each process that stays alive."""
        if not self.alive:
            return
        with reporter.task("warming up", len(self.left)) as advance:
            for name in list(self.left):
                if answer := self._attempt(name, lambda name=name: self._turn(name)):
                    self.usual[name] = answer["seconds"]
                advance(1, name)

    def measure(self, repeats: int, reporter: Reporter) -> None:
        """The rounds. A turn counts by its usual length, so that what is left can be told."""
        mean = statistics.fmean(self.usual.values()) if self.usual else 1.0
        size = {name: self.usual.get(name, mean) / mean for name in self.left}
        with reporter.task("timing", repeats * sum(size.values())) as advance:
            for turn in range(repeats):
                names = list(self.left)
                shift = (turn + 1) % max(len(names), 1)
                for name in names[shift:] + names[:shift]:
                    answer = self._attempt(name, lambda name=name: self._turn(name))
                    rest = 1 if answer else repeats - turn
                    advance(rest * size[name], f"round {turn + 1} of {repeats}, {name}")
                    if answer:
                        self.seconds[name].append(answer.pop("seconds"))
                        self.found[name] |= answer

    def _turn(self, name: str) -> dict[str, Any]:
        if self.alive:
            return self.alive[name].turn()
        with reader(self.runs[name], self.documents, self.logs[name]) as process:
            loaded = process.answer()
            process.turn()
            return {"threads": loaded["threads"], **process.turn()}

    def _attempt(self, name: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a process answers; empty if it failed, which is noted."""
        try:
            return call()
        except RunError as error:
            self.found[name] = {"why": str(error)}
            self.left.remove(name)
            return {}


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements, to four digits.

    >>> spread([2.0, 4.0, 3.0])
    {'median': 3.0, 'min': 2.0, 'max': 4.0, 'n': 3}
    """
    rounded = [float(f"{v:.4g}") for v in (statistics.median(values), min(values), max(values))]
    return {**dict(zip(("median", "min", "max"), rounded, strict=True)), "n": len(values)}
