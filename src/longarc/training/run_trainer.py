"""The Trainer that a run's options ask for: for the training, and for what is tried before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.trainer_callback import PrinterCallback

from longarc.objectives.regularizers.registry import build_regularizers
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.config import TrainConfig
from longarc.training.evaluation import validation_metrics
from longarc.training.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from longarc.objectives.losses.contract import Loss


def run_trainer(
    model: PreTrainedModel,
    args: TrainingArguments,
    config: TrainConfig,
    *,
    train: Documents,
    validation: Documents | None = None,
    tokenizer: PreTrainedTokenizerBase,
    loss: Loss,
    sampling_weights: np.ndarray | None = None,
    callbacks: Iterable[Any] = (),
    compute_metrics: Callable[[Any], dict[str, float]] = validation_metrics,
) -> Trainer:
    """Return a Trainer with the run's loss, regularizers and step sizes, which prints nothing."""
    trainer = Trainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=PaddedBatches(tokenizer, config.max_length),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        loss=loss,
        regularizers=build_regularizers(config.regularizers),
        layer_decay=config.layer_decay,
        embedding_factor=config.embedding_factor,
        head_learning_rate=config.head_learning_rate,
        sampling_weights=sampling_weights,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def trial_arguments(args: TrainingArguments, **changes: Any) -> TrainingArguments:
    """Return the run's arguments for a trial: no checkpoints, no evaluations on the way."""
    args = copy.copy(args)
    changes = {
        "eval_strategy": "no", "save_strategy": "no", "eval_on_start": False,
        "load_best_model_at_end": False, **changes,
    }  # fmt: skip
    for name, value in changes.items():
        setattr(args, name, value)
    return args
