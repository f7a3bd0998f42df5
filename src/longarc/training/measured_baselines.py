"""What the baselines decided about held-out documents, and the model's figures beside theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from longarc.data.examples import Examples
from longarc.data.labels import LabelSpace
from longarc.files import whole_file, write_json
from longarc.training.metrics import paired_differences

_FIGURES, _DECISIONS = "baselines.json", "baselines.safetensors"


class MeasuredBaselines:
    """Figures and decisions of the baselines on each split; kept for a resumed run."""

    def __init__(self) -> None:
        self._figures: dict[str, dict[str, Any]] = {}  # by name, then split
        self._decisions: dict[tuple[str, str], np.ndarray] = {}

    def add(self, name: str, split: str, figures: dict[str, Any], decided: np.ndarray) -> None:
        """Keep ``M`` of docs/run-folder.md, and the decisions (N,) or (N, C) it was taken of."""
        self._figures.setdefault(name, {})[split] = figures
        self._decisions[name, split] = decided

    def beside(
        self, split: str, examples: Examples, space: LabelSpace, decided: np.ndarray
    ) -> dict[str, Any]:
        """``baselines`` and ``differences`` of a split; ``decided`` is what the model says."""
        labels = examples.labels or []
        names = [name for name, splits in self._figures.items() if split in splits]
        return {
            "baselines": {name: self._figures[name][split] for name in names},
            "differences": paired_differences(
                space.encode(labels),
                decided,
                {n: self._decisions[n, split] for n in names if (n, split) in self._decisions},
                space=space,
                outside=space.outside(labels),
            ),
        }

    def save(self, folder: Path) -> None:
        """Write both; the figures last, as they say that all is there."""
        arrays = {
            # safetensors writes memory as it lies.
            f"{name}/{split}": np.ascontiguousarray(found)
            for (name, split), found in self._decisions.items()
        }
        with whole_file(folder / _DECISIONS) as temporary:
            save_file(arrays, temporary)
        write_json(folder / _FIGURES, self._figures)

    @classmethod
    def load(cls, folder: Path) -> MeasuredBaselines | None:
        """What a folder has; None if it has nothing.

        A checkpoint of a version that kept no decisions has figures, and gives no differences.
        """
        if not (folder / _FIGURES).is_file():
            return None
        kept = cls()
        kept._figures = json.loads((folder / _FIGURES).read_text(encoding="utf-8"))
        if (folder / _DECISIONS).is_file():
            for key, found in load_file(folder / _DECISIONS).items():
                name, _, split = key.rpartition("/")
                kept._decisions[name, split] = found
        return kept
