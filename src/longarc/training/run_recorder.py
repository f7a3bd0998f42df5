"""The path recorder of a run: ``--record-path``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from longarc.errors import OptionError
from longarc.training.path_recorder import PathRecorder
from longarc.training.recorded_path import save_training

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


def refuse_several(flag: str, processes: int) -> None:
    """Raise OptionError unless one process trains on one device, before the baselines' minutes."""
    if processes > 1:
        raise OptionError(
            f"{flag} is for one process on one device, and there are {processes}. Drop it, "
            "or train with one."
        )
