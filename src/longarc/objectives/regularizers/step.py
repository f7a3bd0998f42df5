"""A training step with regularizers: one loss over several batches, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from longarc.errors import DataError, OptionError
from longarc.objectives.losses.contract import Loss
from longarc.objectives.regularizers.batch import Batch, unwrapped
from longarc.objectives.regularizers.contract import Regularizer, check_together
from longarc.objectives.regularizers.embeddings import check_takes_embeddings


@dataclass(frozen=True)
class Surroundings:
    """What a training loop does in its own way around a step; the defaults are a plain loop's.

    Args:
        backward: differentiates a scalar into the weights' ``.grad``.
        unsynchronised: a block in which gradients are not yet averaged over processes.
        mean: averages a scalar over the processes.
        processes: how many there are.
        gradient_scale: the factor in ``.grad`` that keeps float16 from underflow.
    """

    backward: Callable[[Tensor], Any] = torch.Tensor.backward
    unsynchronised: Callable[[], AbstractContextManager[Any]] = nullcontext
    mean: Callable[[Tensor], Tensor] = field(default=lambda value: value)
    processes: int = 1
    gradient_scale: Callable[[], float] = field(default=lambda: 1.0)


class Step:
    """The batches of one update, and the gradient of their loss at the present weights.

    Called, it goes through all batches and leaves their gradient in the weights' ``.grad``. Called
    again with the weights moved, it gives the gradient there of the very same function: batches,
    dropout and noise are those of the first time.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        regularizers: Sequence[Regularizer],
        surroundings: Surroundings,
    ):
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.batches = batches
        self.regularizers = regularizers
        self.surroundings = surroundings
        self.plain_weight = 1 + sum(r.plain_weight for r in regularizers)
        self.plain: Tensor | None = None  # the loss without regularizers, once it is known
        # Of data parallelism that keeps gradients in its buckets.
        self._reused = bool(getattr(model, "gradient_as_bucket_view", False))
        self._parts: dict[float, Sequence[Batch]] = {1.0: batches}

    def __call__(self) -> Tensor:
        """Return the sum of the plain loss and all terms; the gradient is in ``.grad``."""
        for weight in self.weights:
            weight.grad = None
        total = torch.zeros((), device=self.batches[0].target.device)
        for i, batch in enumerate(self.batches):
            last = i == len(self.batches) - 1
            with nullcontext() if last else self.surroundings.unsynchronised():
                total = total + self._go_through(batch)
        if self.plain is None:
            self.plain = torch.stack([batch.plain for batch in self.batches]).sum()
        return self.surroundings.mean(total)

    @property
    def gradients(self) -> list[Tensor]:
        """The gradient, a tensor for each weight."""
        scale = self.surroundings.gradient_scale()
        found = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        # Without a scale no copy: the next sweep writes into tensors of its own.
        if scale == 1 and not self._reused:
            return found
        return [gradient / scale for gradient in found]

    @gradients.setter
    def gradients(self, values: Sequence[Tensor]) -> None:
        scale = self.surroundings.gradient_scale()
        for weight, value in zip(self.weights, values, strict=True):
            if weight.grad is not None:  # a weight that no loss reaches stays out of the update
                weight.grad = value if scale == 1 else value * scale

    @contextmanager
    def moved(self, direction: Sequence[Tensor], factor: float | Tensor) -> Iterator[None]:
        """Add ``factor`` times the direction to the weights, and put back their very bits."""
        before = [w.detach().clone() for w in self.weights]
        try:
            with torch.no_grad():
                for weight, change in zip(self.weights, direction, strict=True):
                    weight.add_(change, alpha=float(factor))
            torch.clear_autocast_cache()  # it may hold the weights as they were, in 16 bits
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self.weights, before, strict=True):
                    weight.copy_(value)
            torch.clear_autocast_cache()

    @contextmanager
    def on_part(self, fraction: float) -> Iterator[None]:
        """Let so many of each batch's documents stand for all of them, the same ones each time."""
        if fraction not in self._parts:
            self._parts[fraction] = [batch.part(fraction) for batch in self._parts[1.0]]
        before, self.batches = self.batches, self._parts[fraction]
        try:
            yield
        finally:
            self.batches = before

    def _go_through(self, batch: Batch) -> Tensor:
        """Differentiate the loss of one batch and all terms; return their sum."""
        batch.begin()
        total = torch.zeros((), device=batch.target.device)
        if self.plain_weight:
            reads = any(r.uses_gradient for r in self.regularizers)
            change = batch.no_change() if reads else None
            logits = batch.logits(change)
            share = batch.share(logits)
            self.surroundings.backward(self.plain_weight * share)
            gradient = None
            if change is not None and change.grad is not None:
                gradient = change.grad / (self.plain_weight * self.surroundings.gradient_scale())
            batch.keep(share, logits, gradient)
            total = total + self.plain_weight * share.detach()
        for regularizer in self.regularizers:
            for term in regularizer.terms(batch):
                self.surroundings.backward(term)
                total = total + term.detach()
        batch.release()
        return total


def regularized_backward(
    model: nn.Module,
    batches: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    loss: Loss,
    regularizers: Sequence[Regularizer],
    *,
    special: Sequence[int] = (),
    denominator: Tensor | float | None = None,
    rows: Tensor | float | None = None,
    of_loss: Mapping[str, Tensor] | None = None,
    surroundings: Surroundings | None = None,
) -> Tensor:
    """Do what ``loss.backward()`` does in a training loop, with regularizers.

    Afterwards the gradient of the regularized objective is in the weights' ``.grad``; what was
    there before is gone. The weights are as they were, to the bit.

    Args:
        model: takes the batch's entries as keyword arguments and returns logits (b, C) as
            ``outputs["logits"]`` or ``outputs[0]``, as transformers' classifiers do.
        batches: what one update learns from: one batch, or several whose gradients add up. Each has
            the model's inputs, and ``labels`` (b,) or (b, C) as the loss takes them.
        loss: any longarc loss; its reduction is the mean over all batches, whatever it says.
        regularizers: from the innermost to the outermost.
        special: token ids that embedding-space perturbations leave alone, such as those of [CLS]
            and [SEP]. Padding is known from ``attention_mask``.
        denominator: of the step's mean loss over all processes; None to count it here.
        rows: documents of the step in all processes; None to count them here.
        of_loss: further arguments of the loss, such as ``class_vectors``.
        surroundings: what a distributed or float16 loop does in its own way.

    Returns:
        This process's part of the plain loss, which no regularizer has changed.

    Raises:
        ModelError: a regularizer of embeddings, and a model that takes no ``inputs_embeds``.
        OptionError: something that is no regularizer, or cannot stand beside the others.
        DataError: a batch without labels.

    >>> import longarc
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    ...                   intermediate_size=16, vocab_size=30)
    >>> model = BertForSequenceClassification(tiny)
    >>> batch = {"input_ids": torch.tensor([[1, 5, 6], [1, 7, 8]]), "labels": torch.tensor([0, 1])}
    >>> loss = longarc.regularized_backward(
    ...     model, batch, longarc.CrossEntropyLoss(), [longarc.FGM(), longarc.SAM()])
    >>> all(w.grad is not None for w in model.parameters())
    True
    """
    surroundings = surroundings or Surroundings()
    batches = [batches] if isinstance(batches, Mapping) else list(batches)
    check_together(regularizers)
    check_labels(batches, loss)
    if any(r.uses_embeddings for r in regularizers):
        check_takes_embeddings(unwrapped(model))
    targets = [batch["labels"] for batch in batches]
    if denominator is None:
        denominator = _denominator(model, loss, targets)
    if rows is None:
        rows = float(sum(len(target) for target in targets))
    divisor = torch.as_tensor(denominator).clamp(min=torch.finfo(torch.float32).tiny)
    made = [
        Batch(
            model,
            {k: v for k, v in batch.items() if k != "labels"},
            target,
            loss,
            regularizers,
            special=special,
            per_loss=surroundings.processes / divisor,
            per_row=surroundings.processes / rows,
            gradient_scale=surroundings.gradient_scale,
            of_loss=of_loss,
        )
        for batch, target in zip(batches, targets, strict=True)
    ]
    step = Step(model, made, regularizers, surroundings)
    sweep: Callable[[], Tensor] = step
    for regularizer in regularizers:
        sweep = partial(regularizer.step, sweep, step)
    sweep()
    return cast(Tensor, step.plain)


def check_labels(batches: Sequence[Mapping[str, Tensor]], loss: Loss) -> None:
    """Raise DataError unless each batch has labels."""
    if any("labels" not in batch for batch in batches):
        raise DataError(
            "a batch has no labels. Where documents have none, give them the loss's ignore_index "
            f"({loss.ignore_index}): regularizers that need no label count them."
        )


def _denominator(model: nn.Module, loss: Loss, targets: Sequence[Tensor]) -> Tensor:
    if targets[0].ndim == 2:
        classes = targets[0].shape[1]
    elif (config := getattr(unwrapped(model), "config", None)) is not None:
        classes = config.num_labels
    else:
        raise OptionError(
            f"{type(model).__name__} has no config that tells the number of classes. Give the "
            "denominator: the documents that count, or the sum of their weights."
        )
    return torch.stack([loss.denominator(target, classes) for target in targets]).sum()
