"""The path recorder of a run: ``--record-path``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from longarc.training.arguments import count_steps
from longarc.training.recording.path_recorder import PathRecorder
from longarc.training.recording.recorded_path import plan_disk, save_training

if TYPE_CHECKING:
    from torch import nn

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


def bytes_of_path(config: TrainConfig, model: nn.Module, documents: int) -> int:
    """What the path of a run will take on the disk at least; 0 where none is recorded.

    Known before anything is done; the recorder itself plans again, with the records of batches.

    Raises:
        OptionError: that is more than ``--path-budget``.
    """
    if not config.record_path:
        return 0
    sizes = [(p.requires_grad, p.numel() * p.element_size()) for p in model.parameters()]
    return plan_disk(
        steps=count_steps(config, documents),
        snapshot=3 * sum(size for trained, size in sizes if trained),  # with two moments
        constants=sum(size for trained, size in sizes if not trained),
        row=0,
        budget=1e9 * config.path_budget,
    ).bytes
