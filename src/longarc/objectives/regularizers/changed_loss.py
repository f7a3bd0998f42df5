"""A loss with what regularizers make of each document's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longarc.objectives.losses.contract import Loss
from longarc.objectives.regularizers.contract import Regularizer


class ChangedLoss(Loss):
    """The loss that a step minimises whose regularizers act on single documents' losses alone.

    Args:
        loss: what they change.
        regularizers: from the innermost to the outermost; of those whose ``sums_over_documents`` is
            true, for the others do more.

    >>> import torch
    >>> from longarc import CrossEntropyLoss, Flooding
    >>> loss = ChangedLoss(CrossEntropyLoss(), [Flooding(level=1.0, per_example=True)])
    >>> loss(torch.zeros(1, 2), torch.tensor([0]))  # ln 2 lies below the level
    tensor(1.3069)
    """

    def __init__(self, loss: Loss, regularizers: Sequence[Regularizer]):
        super().__init__(multi_label=loss.multi_label, ignore_index=loss.ignore_index)
        self.loss = loss
        self.regularizers = list(regularizers)
        self.remembers = loss.remembers

    @property
    def belongs_to_batch(self) -> bool:
        """As of the loss."""
        return self.loss.belongs_to_batch

    def set_progress(self, fraction: float) -> None:
        """Tell the loss and the regularizers."""
        for part in (self.loss, *self.regularizers):
            part.set_progress(fraction)

    def in_batch(self, logits: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """The changed losses (b,)."""
        losses = self.loss.in_batch(logits, target, keep)
        for regularizer in self.regularizers:
            losses = regularizer.example_losses(losses)
        return losses

    def example_weights(self, target: Tensor) -> Tensor:
        """Those of the loss."""
        return self.loss.example_weights(target)
