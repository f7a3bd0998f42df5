"""Cross-entropy weighted by the inverse of the effective number of a class's examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longarc.objectives.losses.class_weighted import ClassWeightedLoss, mean_one
from longarc.objectives.losses.contract import Reduction
from longarc.options import check_number


class ClassBalancedLoss(ClassWeightedLoss):
    """Class-balanced cross-entropy: −Σ_c w_c t_c log softmax(z)_c, w_c ∝ (1 − β) / (1 − β^n_c).

    n_c is the number of training examples of class c. Each further example of a class is taken to
    be worth β of the one before, since it resembles those already there; (1 − β^n) / (1 − β) is the
    effective number of examples, at most 1 / (1 − β), and its inverse the weight. Classes far below
    1 / (1 − β) examples are weighed by inverse frequency, classes far above it all the same. A
    class without training examples has the weight of a class with one.

    Scale of the weights, mean and soft labels are those of ``ClassWeightedLoss``: the mean weight
    over the training examples is 1. (The paper scales the weights to sum to C, which is the same
    for ``reduction="mean"``.)

    Args:
        class_counts: (C,) training examples of each class.
        beta: β in [0, 1). 0 is plain cross-entropy, and β → 1 inverse frequency. 0.999 by default,
            the middle of what the paper tried: classes above some thousand examples weigh alike.

    Raises:
        OptionError: counts that are negative, not whole or all zero; beta outside [0, 1); on call,
            logits with another number of classes.

    Source: Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples"
    (arXiv 1901.05555), Proposition 1.

    >>> import torch
    >>> loss = ClassBalancedLoss([90, 10], beta=0.9)
    >>> loss.class_weights()
    tensor([0.9492, 1.4572])
    >>> loss(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    tensor(1.3380)
    """

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        beta: float = 0.999,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(class_counts, reduction=reduction, ignore_index=ignore_index)
        self.beta = check_number("beta", beta, below=1.0)

    def class_weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return w, (C,)."""
        return class_balanced_weights(self.class_counts, self.beta, dtype)


def class_balanced_weights(
    class_counts: Tensor, beta: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return w_c ∝ 1 / (1 − β^n_c), (C,), with a mean of 1 over the training examples.

    >>> class_balanced_weights(torch.tensor([90, 10]), beta=0.9)
    tensor([0.9492, 1.4572])
    """
    log_beta = math.log(beta) if beta else -math.inf
    # 1 − β^n would be 0 in float32 for β near 1.
    effective = -torch.expm1(class_counts.clamp(min=1).to(dtype) * log_beta)
    return mean_one(1 / effective, class_counts)


def class_balanced_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_counts: Sequence[int] | Tensor,
    beta: float = 0.999,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``ClassBalancedLoss`` as a function.

    >>> class_balanced_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), [90, 10])
    tensor(0.6931)
    """
    loss = ClassBalancedLoss(class_counts, beta, reduction=reduction, ignore_index=ignore_index)
    return loss.to(logits.device)(logits, target)
