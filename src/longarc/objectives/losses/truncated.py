"""Truncated cross-entropy: no loss from an example that is already right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longarc.objectives.losses.contract import Loss, Reduction
from longarc.objectives.losses.log_space import log_probabilities
from longarc.options import check_number


class TruncatedCrossEntropy(Loss):
    """Cross-entropy without the examples already right: −Σ_c t_c [p_c ≤ threshold] log p_c.

    p = softmax(z). For multi-label examples p = σ(z), and each label is cut on its own:
    −(1/C) Σ_c ( t_c [p_c ≤ threshold] log p_c + (1 − t_c) [p_c ≥ 1 − threshold] log(1 − p_c) ).

    An example whose true class has more probability than ``threshold`` has neither loss nor
    gradient, so the training set's easy part stops pulling and what remains is the border. It still
    counts in the mean's denominator: the loss falls as fewer are left. The value jumps at the
    threshold; the gradient is that of either side. Probabilities stop growing there, so they say
    which class, not how sure. ``FocalLoss`` is the smooth relative.

    Args:
        threshold: in [0.5, 1). Above 0.5 a class is the argmax for certain, hence the bound. 0.6 by
            default, close to it: a little further than merely right.
        multi_label: whether an example can have several labels, or none.

    Source: folklore; the hinge loss's idea with cross-entropy's slope.

    >>> import torch
    >>> z = torch.tensor([[2.0, 0.0], [0.2, 0.0]])  # p = 0.88, 0.55
    >>> TruncatedCrossEntropy(reduction="none")(z, torch.tensor([0, 0]))
    tensor([0.0000, 0.5981])
    """

    convex = False

    def __init__(
        self,
        threshold: float = 0.6,
        *,
        multi_label: bool = False,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(multi_label=multi_label, reduction=reduction, ignore_index=ignore_index)
        self.threshold = check_number("threshold", threshold, at_least=0.5, below=1.0)

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return what is left of cross-entropy, (b,): summed over classes, or the labels' mean."""
        log_p, log_rest = log_probabilities(logits, self.multi_label)
        if self.multi_label:
            positive, negative = self._cut(log_p, target), self._cut(log_rest, 1 - target)
            return (positive + negative).mean(dim=1)
        return self._cut(log_p, target).sum(dim=1)

    def _cut(self, log_p: Tensor, target: Tensor) -> Tensor:
        counts = (log_p <= math.log(self.threshold)) & (target > 0)
        return target * torch.where(counts, -log_p, 0)


def truncated_cross_entropy(
    logits: Tensor,
    target: Tensor,
    threshold: float = 0.6,
    *,
    multi_label: bool = False,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``TruncatedCrossEntropy`` as a function.

    >>> import torch
    >>> truncated_cross_entropy(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([1, 1]))
    tensor(0.3466)
    """
    loss = TruncatedCrossEntropy(
        threshold, multi_label=multi_label, reduction=reduction, ignore_index=ignore_index
    )
    return loss(logits, target)
