"""What a run says while it works: a bar with an estimate, or plain lines where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from longarc.data.terminal import printable

INTERVAL = 15.0
"""Seconds between the lines of a task whose output goes to a file or a pipe."""


class Reporter:
    """Say what happens and how long it will take.

    On a terminal each task is a bar with elapsed and remaining time. Elsewhere a task prints a line
    every 15 seconds. ``Reporter(None)`` is silent.

    >>> with Reporter(None).task("counting", total=3) as advance:
    ...     for _ in range(3):
    ...         advance()
    """

    def __init__(self, console: Console | None):
        self.console = console
        self.seconds: dict[str, float] = {}

    def say(self, *what: Any) -> None:
        """Print a line, or any rich object, above the bars."""
        if self.console is not None:
            wrap = not self.console.is_terminal  # a log file keeps a sentence on its line
            shown = [printable(part) if isinstance(part, str) else part for part in what]
            self.console.print(*shown, markup=False, soft_wrap=wrap)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall-clock seconds to ``seconds[phase]``."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - start

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Advance]:
        """A task of ``total`` units; call the result with the units done and an optional remark."""
        if self.console is None:
            yield Advance(self, name, total)
        elif self.console.is_terminal:
            columns = (
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
                TextColumn("{task.fields[done]}"), TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"), TextColumn("[dim]{task.fields[remark]}"),
            )  # fmt: skip
            with Progress(*columns, console=self.console, transient=True) as bar:
                yield Advance(self, name, total, bar)
        else:
            yield Advance(self, name, total)


class Advance:
    """Counts the units of one task and shows them."""

    def __init__(
        self, reporter: Reporter, name: str, total: float | None, bar: Progress | None = None
    ):
        self.reporter, self.name, self.total, self.bar = reporter, name, total, bar
        self.done = 0.0
        self.start = self.spoke = time.monotonic()
        if bar is not None:
            self.task = bar.add_task(name, total=total, done="", left="", remark="")

    def __call__(self, units: float = 1, remark: str = "") -> None:
        """Note ``units`` more as done."""
        self.done += units
        now = time.monotonic()
        fraction = min(self.done / self.total, 1.0) if self.total else 0.0
        left = (now - self.start) * (1 / fraction - 1) if fraction > 0 else None
        count = f"{self.done:.0f}/{self.total:.0f}" if self.total else f"{self.done:.0f}"
        about = f"about {clock(left)} left" if left is not None else ""
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, done=count, left=about, remark=remark)
        elif self.reporter.console is not None and now - self.spoke >= INTERVAL:
            self.spoke = now
            self.reporter.say(
                ", ".join(part for part in (f"{self.name} {count}", about, remark) if part)
            )


def clock(seconds: float) -> str:
    """A duration as people say it.

    >>> clock(42), clock(190), clock(7300)
    ('42 s', '3 min 10 s', '2 h 1 min')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
