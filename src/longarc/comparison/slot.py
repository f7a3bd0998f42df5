"""Where the files of one candidate with one seed lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Slot:
    """The folder of one candidate with one seed. Each property is a path.

    ``job.json`` is what its process is to do; ``training.json`` is written last.
    """

    path: Path

    @property
    def job(self) -> Path:
        """Options of the training, and the budget."""
        return self.path / "job.json"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.path / "run"

    @property
    def pace(self) -> Path:
        """Steps that a budget of minutes came to."""
        return self.path / "pace.json"

    @property
    def spent(self) -> Path:
        """Time and memory of the training up to the last process that said so."""
        return self.path / "spent.json"

    @property
    def training(self) -> Path:
        """What the training took; there once the candidate is finished."""
        return self.path / "training.json"

    @property
    def baseline(self) -> Path:
        """Figures of TF-IDF and a linear SVM on the same splits, or why there are none.

        With the first candidate and the first seed alone.
        """
        return self.path / "baseline.json"

    @property
    def failure(self) -> Path:
        """Why the candidate failed."""
        return self.path / "failure.json"

    @property
    def log(self) -> Path:
        """What its processes said."""
        return self.path / "log.txt"

    @property
    def finished(self) -> bool:
        """Whether the candidate was trained and evaluated."""
        return self.training.is_file()


def read(path: Path) -> dict[str, Any]:
    """A JSON object; empty without the file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
