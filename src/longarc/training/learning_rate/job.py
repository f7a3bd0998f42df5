"""``longarc lr``: all that a training run does before fine-tuning, then the search, and no run."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from longarc.training.config import TrainConfig
from longarc.training.groundwork import Groundwork
from longarc.training.preparation import prepare
from longarc.training.progress import Reporter


def find_learning_rate(
    config: TrainConfig, *, data: Any = None, console: Console | None = None, **options: Any
) -> dict[str, Any]:
    """Search a learning rate for the run that ``config`` describes; nothing is left on the disk.

    Args:
        config: of the run; its ``out``, ``resume`` and ``overwrite`` are not looked at.
        data: a table in memory instead of ``config.data``.
        console: where to say what happens; None for silence.
        options: ``candidates`` and ``fraction`` of
            :func:`~longarc.training.learning_rate.search.search_learning_rate`.

    Returns:
        The record of the search, with ``seconds`` in all.

    Raises:
        LongarcError: bad input or options; Interrupted after Ctrl-C.
    """
    reporter = Reporter(console)
    with tempfile.TemporaryDirectory(prefix="longarc-lr-") as scratch:
        config = dataclasses.replace(
            config,
            out=str(Path(scratch) / "run"),
            learning_rate="auto",
            resume=False,
            overwrite=False,
            baseline=False,
            hybrid=0.0,
        )
        config.validate()
        prepared = prepare(config, reporter, data)
        return _Search(prepared, reporter).run(options)


class _Search(Groundwork):
    """A run that ends where its fine-tuning would begin."""

    copies = 0

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        """Prepare, search."""
        self.options = options
        self.found: dict[str, Any] = {}
        self._start()
        with self._explained():
            self._lay()
        return self.found | {"seconds": round(sum(self.reporter.seconds.values()), 1)}

    def _search_rate(self, **_: Any) -> dict[str, Any]:
        self.found = super()._search_rate(**self.options)
        return self.found

    def _how_to_resume(self) -> str:
        return "Nothing was kept."
