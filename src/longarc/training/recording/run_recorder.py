"""The path recorder of a run: ``--record-path``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from longarc.training.recording.path_recorder import PathRecorder
from longarc.training.recording.recorded_path import save_training

if TYPE_CHECKING:
    from longarc.data.examples import Examples
    from longarc.training.config import TrainConfig
    from longarc.training.run_folder import RunFolder


def recorder_of(
    config: TrainConfig, folder: RunFolder, train: Examples, say: Callable[[str], Any]
) -> PathRecorder | None:
    """What keeps the path, beside a copy of the documents that it speaks of; None if not wanted."""
    if not config.record_path:
        return None
    folder.recorded.mkdir(exist_ok=True)
    save_training(folder.training_file, train.texts, train.labels or [])
    return PathRecorder(folder.recorded, budget=config.path_budget, say=say)
