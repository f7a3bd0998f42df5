"""The folder of a pretraining run: a run folder with documents, and without labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from longarc.training.pretraining.config import PretrainConfig
from longarc.training.run_folder import RunFolder


@dataclass(frozen=True)
class PretrainFolder(RunFolder):
    """Where each part of a pretraining run lies (docs/run-folder.md)."""

    verb: ClassVar[str] = "pretrain"
    call: ClassVar[str] = "longarc.pretrain"
    options: ClassVar[type] = PretrainConfig

    @property
    def documents(self) -> Path:
        """The documents as token ids; there while the run is not complete."""
        return self.path / "documents"

    @property
    def collapsed(self) -> bool:
        """Whether the run was stopped by a collapse, so that there is no model."""
        return self.metrics_file.is_file() and not self.model.is_dir() and self._alarm() is not None

    def _alarm(self) -> Any:
        return json.loads(self.metrics_file.read_text(encoding="utf-8")).get("collapse")
