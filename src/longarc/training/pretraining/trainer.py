"""The Trainer of a pretraining: step sizes of encoder, heads and predictor, order, schedule."""

from __future__ import annotations

import json
from collections.abc import Callable, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from longarc.objectives.siamese.parameter_groups import rate_schedule
from longarc.training.pretraining.documents import EpochSampler
from longarc.training.pretraining.learners import Learner
from longarc.training.trainer import Trainer

if TYPE_CHECKING:
    from longarc.training.pretraining.config import PretrainConfig

WATCH = "collapse.json"
"""What the collapse detector has seen, in a checkpoint."""


def parameter_groups(learner: Learner, config: PretrainConfig) -> list[dict[str, Any]]:
    """Groups for an optimizer: encoder, new heads and predictor, biases and norms without decay.

    The encoder's come first: their step size is the one that is logged.
    """
    encoder = {id(p) for p in learner.pretrained()}
    predictor = {id(p) for p in learner.predictor.parameters()} if learner.predictor else set()
    rates = {
        "encoder": config.rate,
        "heads": config.head_learning_rate,
        "predictor": config.head_learning_rate * config.predictor_factor,
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in learner.parameters():
        if parameter.requires_grad:
            mine = id(parameter)
            part = "encoder" if mine in encoder else "predictor" if mine in predictor else "heads"
            groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
    order = list(rates)
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "fixed_rate": part == "predictor" and config.fixed_predictor_rate,
        }
        for (part, decayed), parameters in sorted(
            groups.items(), key=lambda item: (order.index(item[0][0]), not item[0][1])
        )
    ]


def warmup_and_decay(steps: int, warmup: int) -> Callable[[int], float]:
    """The factor on step sizes: up in ``warmup`` steps, then down to 0 in a line.

    >>> [warmup_and_decay(4, 2)(step) for step in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return factor


class PretrainTrainer(Trainer):
    """longarc's Trainer for a :class:`Learner`.

    Args:
        config: the run's options.
        watched: gives what a checkpoint keeps of the collapse detector.
    """

    def __init__(
        self, *positional: Any, config: PretrainConfig, watched: Callable[[], Any], **keywords: Any
    ):
        super().__init__(*positional, **keywords)
        self.config, self.watched = config, watched

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        self._sampler = EpochSampler(len(cast(Sized, dataset)), self.args.seed)
        return self._sampler

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a step size for each part."""
        if self.optimizer is None:
            learner = cast(Learner, self.model)
            optimizer, keywords = self.get_optimizer_cls_and_kwargs(self.args, cast(Any, learner))
            self.optimizer = optimizer(parameter_groups(learner, self.config), **keywords)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up and linear decay, but for a predictor whose rate is fixed."""
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            factor = warmup_and_decay(num_training_steps, warmup)
            self.lr_scheduler = rate_schedule(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def _save_state(self, folder: Path) -> None:
        super()._save_state(folder)
        (folder / WATCH).write_text(json.dumps(self.watched()), encoding="utf-8")
