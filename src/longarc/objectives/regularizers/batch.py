"""One batch of a step as regularizers see it: its loss, at its own and at other embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from longarc.objectives.losses.contract import Loss
from longarc.objectives.regularizers.contract import Regularizer
from longarc.objectives.regularizers.divergence import divergence
from longarc.objectives.regularizers.embeddings import (
    by_embeddings,
    embedding_layer,
    may_change,
)
from longarc.objectives.regularizers.randomness import Randomness


class _CallsOfStep:
    """A loss whose first call alone may update what it gathers over the training.

    That call is for the documents as they are, at the weights as they are. All others of the step,
    at whatever is changed, are then of the very same function.
    """

    def __init__(self, loss: Loss):
        self._loss = loss

    def __call__(self, *arguments: Any, **more: Any) -> Tensor:
        value = self._loss(*arguments, **more)
        self._loss = self._loss.frozen()
        return value


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
        gradient_scale: what keeps float16 from underflow, see ``Surroundings``.
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
        gradient_scale: Callable[[], float] = lambda: 1.0,
        of_loss: Mapping[str, Tensor] | None = None,
    ):
        self.model = model
        self.inputs = dict(inputs)
        self.target = target
        self.loss = loss
        self._losses = _CallsOfStep(loss)
        self.regularizers = regularizers
        self.special = special
        self.per_loss = per_loss
        self.per_row = per_row
        self.gradient_scale = gradient_scale
        self.of_loss = dict(of_loss or {})
        self.randomness = Randomness(target.device)
        self.through_embeddings = any(r.uses_embeddings for r in regularizers)
        self._seen = False  # whether batch norm's statistics have the documents by now
        self.begin()

    # What regularizers use

    def logits(self, change: Tensor | None = None, *, dropout: str = "dropout") -> Tensor:
        """Logits (b, C), with ``change`` (b, n, d) added to the embeddings of the tokens.

        A pass whose graph a ``backward`` will go through. ``dropout`` names the random state.
        """
        return self._forward(self.model, change, dropout)

    def probe(self, change: Tensor | None = None) -> Tensor:
        """The same logits for gradients that are asked for with ``torch.autograd.grad``.

        Distributed data parallelism waits for a ``backward`` after each of its forward passes.
        """
        model = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        return self._forward(model, change, "dropout")

    def slope(self, value: Tensor, change: Tensor) -> Tensor:
        """The gradient (b, n, d) of a scalar at ``change``, 0 where nothing may change."""
        scale = self.gradient_scale()
        (found,) = torch.autograd.grad(scale * value, change)
        return found / scale * self.may_change

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
            torch.clear_autocast_cache()  # of weights in 16 bits that know no gradient
        return self._logits

    @property
    def gradient(self) -> Tensor:
        """∂L/∂embeddings (b, n, d) of the documents as they are, 0 where nothing may change."""
        if self._gradient is None:
            change = self.no_change()
            self._gradient = self.slope(self.share(self.probe(change)), change)
        return self._gradient

    @property
    def plain(self) -> Tensor:
        """The batch's part in the loss that no regularizer has changed, without a graph."""
        if self._share is None or self._losses_change:
            loss = self._losses(self.plain_logits, self.target, **self.of_loss, reduction="sum")
            return loss.detach() * self.per_loss
        return self._share

    @cached_property
    def may_change(self) -> Tensor:
        """(b, n, 1): 1 at tokens that may be perturbed, 0 at padding and special tokens."""
        return may_change(self.inputs, self.special)

    def no_change(self) -> Tensor:
        """Zeros (b, n, d) that require a gradient, to differentiate with respect to."""
        b, n = self.inputs["input_ids"].shape
        weight = embedding_layer(unwrapped(self.model)).weight
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
        self._share, self._logits = share.detach(), logits.detach()
        self._gradient = None if gradient is None else gradient * self.may_change

    def release(self) -> None:
        """Let go of what is as large as the embeddings."""
        self._gradient = None

    def part(self, fraction: float) -> Batch:
        """Every so-manieth document as a batch that stands for this one, with its loss."""
        rows = len(self.target)
        count = max(1, round(fraction * rows))
        kept = torch.arange(count, device=self.target.device) * rows // count
        part = Batch(
            self.model,
            {k: v[kept] if _has_rows(v, rows) else v for k, v in self.inputs.items()},
            self.target[kept],
            self.loss,
            self.regularizers,
            special=self.special,
            per_loss=self.per_loss * rows / count,
            per_row=self.per_row * rows / count,
            gradient_scale=self.gradient_scale,
            of_loss=self.of_loss,
        )
        part._losses = self._losses
        part._seen = True
        return part

    # Inside

    def _forward(self, model: nn.Module, change: Tensor | None, dropout: str) -> Tensor:
        inputs = self.inputs
        with self.randomness(dropout):  # the embedding layer may have noise of its own
            if change is not None or self.through_embeddings:
                inputs = by_embeddings(unwrapped(model), inputs, change)
            with _still_statistics(model) if self._seen else nullcontext():
                outputs: Any = model(**inputs)
        self._seen = True
        return outputs["logits"] if isinstance(outputs, dict) else outputs[0]

    def _sum(self, logits: Tensor) -> Tensor:
        if not self._losses_change:
            return self._losses(logits, self.target, **self.of_loss, reduction="sum")
        losses = self._losses(logits, self.target, **self.of_loss, reduction="none")
        ignored = self.target == self.loss.ignore_index
        losses = losses[~(ignored if ignored.ndim == 1 else ignored.all(1))]
        for regularizer in self.regularizers:
            losses = regularizer.example_losses(losses)
        return losses.sum()

    @cached_property
    def _losses_change(self) -> bool:
        unchanged = Regularizer.example_losses
        return any(type(r).example_losses is not unchanged for r in self.regularizers)


@contextmanager
def _still_statistics(model: nn.Module) -> Iterator[None]:
    """Let batch norm use the batch's own statistics, and gather none over the training."""
    gathering = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    try:
        for module in gathering:
            module.track_running_stats = False
        yield
    finally:
        for module in gathering:
            module.track_running_stats = True


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def unwrapped(model: nn.Module) -> Any:
    """The model inside a wrapper for data parallelism."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, parallel) else model
