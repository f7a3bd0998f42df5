"""Fine-tuning: the Trainer with a run's options, its log, its checkpoints and its interruptions."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EarlyStoppingCallback

from longarc.training.arguments import UNUSED_OUTPUTS
from longarc.training.batches import Documents
from longarc.training.callbacks import (
    Bar,
    CheckpointClock,
    FiniteLoss,
    Interruption,
    RunLog,
    train_interruptibly,
)
from longarc.training.config import TrainConfig
from longarc.training.monitors import SharpnessMonitor, UpdateMonitor
from longarc.training.progress import Advance
from longarc.training.recording.path_recorder import PathRecorder
from longarc.training.run_folder import RunFolder
from longarc.training.run_trainer import run_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from longarc.objectives.losses.contract import Loss


def fine_tune(
    model: PreTrainedModel,
    args: TrainingArguments,
    config: TrainConfig,
    *,
    train: Documents,
    validation: Documents | None,
    tokenizer: PreTrainedTokenizerBase,
    loss: Loss,
    sampling_weights: np.ndarray | None = None,
    resume_from: str | None = None,
    advance: Advance | None = None,
    recorder: PathRecorder | None = None,
) -> int | None:
    """Train ``model`` in place; return the step whose weights it has, None for the last.

    With ``validation`` that is the best by macro-F1, the start included. ``resume_from`` is a
    checkpoint, and ``advance`` is told of the part done, in the process that speaks. ``recorder``
    keeps the path.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM, once the state is saved.
    """
    started = time.monotonic()
    interruption = Interruption()
    log = RunLog(RunFolder(config.run).log_file)
    callbacks: list[Any] = [
        FiniteLoss(), log, CheckpointClock(config.checkpoint_minutes), interruption,
    ]  # fmt: skip
    if advance is not None:
        callbacks.append(Bar(advance))
    if config.patience and validation is not None:
        callbacks.append(EarlyStoppingCallback(config.patience))
    if recorder is not None:
        callbacks.append(recorder)  # last, when the others have asked for their checkpoints
    trainer = run_trainer(
        model,
        args,
        config,
        train=train,
        validation=validation,
        tokenizer=tokenizer,
        loss=loss,
        sampling_weights=sampling_weights,
        callbacks=callbacks,
    )
    if config.monitors:
        trainer.add_callback(UpdateMonitor(log.write))
        trainer.add_callback(SharpnessMonitor(log.write, trainer.update_loss))
    train_interruptibly(
        trainer,
        interruption,
        resume_from_checkpoint=resume_from,
        ignore_keys_for_eval=UNUSED_OUTPUTS,
    )
    state = trainer.state
    best = state.best_global_step if validation is not None else None
    if args.process_index == 0:
        seconds = round(time.monotonic() - started, 1)
        log.write("end", step=state.global_step, best_step=best, seconds=seconds)
    return best
