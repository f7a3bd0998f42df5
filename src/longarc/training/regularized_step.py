"""A step with regularizers in the surroundings of transformers' Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from longarc.errors import OptionError
from longarc.objectives.regularizers.contract import check_together
from longarc.objectives.regularizers.embeddings import check_same_by_embeddings
from longarc.objectives.regularizers.step import Surroundings, check_labels, regularized_backward

if TYPE_CHECKING:
    from longarc.training.trainer import Trainer


def check_with_regularizers(trainer: Trainer) -> None:
    """Raise OptionError or ModelError unless the trainer's regularizers can work with the rest."""
    if not trainer.regularizers:
        return
    check_together(trainer.regularizers)
    names = ", ".join(type(regularizer).__name__ for regularizer in trainer.regularizers)
    if trainer.loss is None:
        raise OptionError(
            f"{names} need a loss that is computed from logits. Give the trainer one, such as "
            "loss=longarc.CrossEntropyLoss()."
        )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise OptionError(
            f"{names} go over the weights of a step several times, which DeepSpeed and FSDP do not "
            "allow. Train without sharded weights, or without regularizers."
        )
    if any(regularizer.uses_embeddings for regularizer in trainer.regularizers):
        check_same_by_embeddings(cast(nn.Module, trainer.model))


def regularized_step(
    trainer: Trainer,
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    denominator: Tensor | int | None,
    of_loss: Mapping[str, Tensor],
) -> Tensor:
    """Differentiate all batches of an update; return this process's part of the plain loss."""
    check_labels(batches, cast(Any, trainer.loss))
    rows = torch.tensor(float(sum(len(batch["labels"]) for batch in batches)))
    return regularized_backward(
        model,
        batches,
        cast(Any, trainer.loss),
        trainer.regularizers,
        special=_special_tokens(trainer.processing_class),
        denominator=denominator,
        rows=trainer.over_processes(rows.to(trainer.args.device)),
        of_loss=of_loss,
        surroundings=Surroundings(
            backward=trainer.accelerator.backward,
            unsynchronised=partial(trainer.accelerator.no_sync, model),
            mean=lambda value: trainer.over_processes(value) / trainer.args.world_size,
            processes=trainer.args.world_size,
            gradient_scale=partial(_gradient_scale, trainer.accelerator),
        ),
    )


def _special_tokens(tokenizer: Any) -> list[int]:
    """Ids that perturbations leave alone: [CLS], [SEP] and the like, but not unknown words."""
    roles = ("cls", "sep", "pad", "mask", "bos", "eos")
    ids = {getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    return [i for i in ids if i is not None]


def _gradient_scale(accelerator: Any) -> float:
    scaler = getattr(accelerator, "scaler", None)  # float16 alone has one
    return 1.0 if scaler is None else scaler.get_scale()
