"""One batch of a step as regularizers see it: its loss, at its own and at other embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from longarc.objectives.losses.contract import Loss
from longarc.objectives.regularizers.contract import Regularizer
from longarc.objectives.regularizers.divergence import divergence
from longarc.objectives.regularizers.embeddings import (
    embedding_layer,
    may_change,
    positions_of,
)
from longarc.objectives.regularizers.randomness import Randomness


class Batch:
    """The loss of one batch as a function of what is added to its token embeddings.

    Every forward pass of a batch has the same dropout, unless it asks for another: what differs
    between two passes is then what was changed, and nothing else.

    Args:
        model: what is trained, perhaps wrapped for data parallelism.
        inputs: of the model, without labels.
        target: (b,) or (b, C), for the loss.
        loss: of the step.
        regularizers: all of the step.
        special: ids of tokens that no embedding-space perturbation touches.
        per_loss: factor from a sum of losses to the step's mean: one over the denominator of all
            batches, times the number of processes, which average their gradients.
        per_row: the same for what every document has, labelled or not.
        of_loss: further arguments of the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        target: Tensor,
        loss: Loss,
        regularizers: Sequence[Regularizer],
        *,
        special: Sequence[int] = (),
        per_loss: Tensor | float,
        per_row: Tensor | float,
        of_loss: Mapping[str, Tensor] | None = None,
    ):
        self.model = model
        self.inputs = dict(inputs)
        self.target = target
        self.loss = loss
        self.regularizers = regularizers
        self.special = special
        self.per_loss = per_loss
        self.per_row = per_row
        self.of_loss = dict(of_loss or {})
        self.randomness = Randomness(target.device)
        self.through_embeddings = any(r.uses_embeddings for r in regularizers)
        self.begin()

    # What regularizers use

    def logits(self, change: Tensor | None = None, *, dropout: str = "dropout") -> Tensor:
        """Logits (b, C), with ``change`` (b, n, d) added to the embeddings of the tokens.

        A pass whose graph a ``backward`` will go through. ``dropout`` names the random state.
        """
        return self._forward(self.model, change, dropout)

    def probe(self, change: Tensor | None = None) -> Tensor:
        """The same logits for gradients that are asked for with ``torch.autograd.grad``.

        Wrappers for data parallelism wait for a ``backward`` after each of their forward passes.
        """
        return self._forward(_unwrapped(self.model), change, "dropout")

    def share(self, logits: Tensor) -> Tensor:
        """The batch's part in the step's mean loss, a scalar."""
        return self._sum(logits) * self.per_loss

    def mean_over_rows(self, values: Tensor) -> Tensor:
        """The batch's part in the mean of ``values`` (b,) over all documents of the step."""
        return values.sum() * self.per_row

    def divergence(self, logits: Tensor, other: Tensor) -> Tensor:
        """KL (b,) between the predictions of two logits (b, C), as the kind of labels has it."""
        return divergence(logits, other, multi_label=self.loss.multi_label)

    @property
    def plain_logits(self) -> Tensor:
        """Logits (b, C) of the documents as they are, without a graph."""
        if self._logits is None:
            with torch.no_grad():
                self._logits = self.probe()
        return self._logits

    @property
    def gradient(self) -> Tensor:
        """∂L/∂embeddings (b, n, d) of the documents as they are, 0 where nothing may change."""
        if self._gradient is None:
            change = self.no_change()
            (self._gradient,) = torch.autograd.grad(self.share(self.probe(change)), change)
        return self._gradient * self.may_change

    @property
    def plain(self) -> Tensor:
        """The batch's part in the loss of the documents as they are, without a graph."""
        if self._share is None:
            self._share = self.share(self.plain_logits)
        return self._share

    @cached_property
    def may_change(self) -> Tensor:
        """(b, n, 1): 1 at tokens that may be perturbed, 0 at padding and special tokens."""
        return may_change(self.inputs, self.special)

    def no_change(self) -> Tensor:
        """Zeros (b, n, d) that require a gradient, to differentiate with respect to."""
        b, n = self.inputs["input_ids"].shape
        weight = self._embedding_layer.weight
        return weight.new_zeros(b, n, weight.shape[1]).requires_grad_()

    def noise(self, name: str) -> Tensor:
        """Normal noise (b, n, d) where tokens may change: the same whenever the name is."""
        with self.randomness(name), torch.no_grad():
            return torch.randn_like(self.no_change()) * self.may_change

    # What a step uses

    def begin(self) -> None:
        """Forget what was found at other weights."""
        self._share: Tensor | None = None
        self._logits: Tensor | None = None
        self._gradient: Tensor | None = None

    def keep(self, share: Tensor, logits: Tensor, gradient: Tensor | None = None) -> None:
        """Remember what a pass through the documents as they are has given anyway."""
        self._share, self._logits, self._gradient = share.detach(), logits.detach(), gradient

    def part(self, fraction: float) -> Batch:
        """Every so-manieth document as a batch that stands for this one."""
        rows = len(self.target)
        count = max(1, round(fraction * rows))
        kept = torch.arange(0, rows, rows / count).long().to(self.target.device)
        return Batch(
            self.model,
            {name: value[kept] for name, value in self.inputs.items()},
            self.target[kept],
            self.loss,
            self.regularizers,
            special=self.special,
            per_loss=self.per_loss * rows / count,
            per_row=self.per_row * rows / count,
            of_loss=self.of_loss,
        )

    # Inside

    def _forward(self, model: nn.Module, change: Tensor | None, dropout: str) -> Tensor:
        inputs = self.inputs
        if change is not None or self.through_embeddings:
            ids = inputs["input_ids"]
            embeddings = self._embedding_layer(ids)
            if change is not None:
                embeddings = embeddings + change
            inputs = {k: v for k, v in inputs.items() if k != "input_ids"}
            inputs |= {"inputs_embeds": embeddings, **positions_of(_unwrapped(model), ids, inputs)}
        with self.randomness(dropout):
            outputs: Any = model(**inputs)
        return outputs["logits"] if isinstance(outputs, dict) else outputs[0]

    def _sum(self, logits: Tensor) -> Tensor:
        if not any(_changes_losses(r) for r in self.regularizers):
            return self.loss(logits, self.target, **self.of_loss, reduction="sum")
        losses = self.loss(logits, self.target, **self.of_loss, reduction="none")
        ignored = self.target == self.loss.ignore_index
        losses = losses[~(ignored if ignored.ndim == 1 else ignored.all(1))]
        for regularizer in self.regularizers:
            losses = regularizer.example_losses(losses)
        return losses.sum()

    @cached_property
    def _embedding_layer(self) -> nn.Embedding:
        return embedding_layer(_unwrapped(self.model))


def _changes_losses(regularizer: Regularizer) -> bool:
    return type(regularizer).example_losses is not Regularizer.example_losses


def _unwrapped(model: nn.Module) -> Any:
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, parallel) else model
