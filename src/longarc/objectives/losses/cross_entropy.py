"""Softmax cross-entropy, with label smoothing; and the soft form that its relatives share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longarc.objectives.losses.contract import Loss, Reduction, apply_loss
from longarc.options import check_number


class CrossEntropyLoss(Loss):
    """Softmax cross-entropy: −Σ_c t_c log softmax(z)_c.

    With label smoothing ε the labels t become (1 − ε) t + ε / C. Shapes, reduction and ignored
    rows are those of ``Loss``; the value is that of ``torch.nn.CrossEntropyLoss``, except that a
    mean over no examples is 0. Without smoothing, a logit of −inf switches a class off for an
    example that does not have it.

    Args:
        label_smoothing: ε in [0, 1). 0 by default: smoothing flattens the probabilities, which a
            user should choose.

    Source: label smoothing is from Szegedy et al. 2016, "Rethinking the Inception Architecture for
    Computer Vision" (arXiv 1512.00567).

    >>> import torch
    >>> loss = CrossEntropyLoss()
    >>> loss(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0]))
    tensor(0.4100)
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, below=1.0)

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return −Σ_c t_c log softmax(z)_c with the smoothed labels, (b,)."""
        return _smoothed(logits, target, self.label_smoothing)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``CrossEntropyLoss`` as a function.

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([3, 1]))
    tensor(1.3863)
    """
    smoothing = check_number("label_smoothing", label_smoothing, below=1.0)
    return apply_loss(
        lambda z, t, _: _smoothed(z, t, smoothing),
        logits,
        target,
        reduction=reduction,
        ignore_index=ignore_index,
    )


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return −Σ_c t_c log softmax(z)_c for each row, (b,), from logits and soft labels (b, C).

    0 · log 0 is 0 here, in value and gradient, as the entropy's limit has it.

    >>> import torch
    >>> soft_cross_entropy(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[0.5, 0.5, 0.0]]))
    tensor([0.6931])
    """
    log_probability = F.log_softmax(logits, dim=1)
    return -(target * torch.where(target == 0, 0, log_probability)).sum(dim=1)


def _smoothed(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    if smoothing:
        target = (1 - smoothing) * target + smoothing / target.shape[1]
    return soft_cross_entropy(logits, target)
