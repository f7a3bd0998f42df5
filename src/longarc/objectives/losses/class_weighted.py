"""Cross-entropy weighted by the inverse of the class's frequency."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longarc.objectives.losses.contract import (
    Loss,
    Reduction,
    apply_loss,
    as_class_counts,
    check_classes,
)
from longarc.objectives.losses.cross_entropy import soft_cross_entropy
from longarc.options import check_number


class ClassWeightedLoss(Loss):
    """Cross-entropy with a weight for each class: −Σ_c w_c t_c log softmax(z)_c, w_c ∝ n_c^−power.

    n_c is the number of training examples of class c. The weights are scaled so that their mean
    over the training examples is 1, hence w_c = N / (K n_c) for power 1 and K classes that occur:
    scikit-learn's ``"balanced"``. A class without training examples has the weight of a class with
    one.

    The mean divides by Σ w_y over the batch, as ``torch.nn.CrossEntropyLoss(weight=…)`` does for
    class indices. For soft labels torch divides by b; here an example with soft labels t adds
    Σ_c w_c t_c, so that one-hot labels and indices agree.

    On very long tails plain inverse frequency can do worse than no weights (Cao et al. 2019,
    arXiv 1906.07413): a handful of examples then makes most of the gradient. Try power 0.5 or
    ``LogitAdjustedLoss``.

    Args:
        class_counts: (C,) training examples of each class.
        power: 1 (default) is inverse frequency, which gives every class the same total weight; 0.5
            its square root; 0 plain cross-entropy.

    Raises:
        OptionError: counts that are negative, not whole or all zero; a negative power; on call,
            logits with another number of classes.

    >>> import torch
    >>> loss = ClassWeightedLoss([90, 10])
    >>> loss.class_weights()
    tensor([0.5556, 5.0000])
    >>> loss(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    tensor(1.9269)
    """

    class_counts: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        power: float = 1.0,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        self.register_buffer("class_counts", as_class_counts(class_counts), persistent=False)
        self.power = check_number("power", power)

    def class_weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return w, (C,)."""
        counts = self.class_counts.to(dtype)
        # Relative to the largest class, so that a large power cannot underflow to 0 everywhere.
        return mean_one((counts.max() / counts.clamp(min=1)) ** self.power, self.class_counts)

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return −Σ_c w_c t_c log softmax(z)_c, (b,)."""
        check_classes("class_counts", self.class_counts, logits)
        return soft_cross_entropy(logits, self.class_weights(logits.dtype) * target)

    def example_weights(self, target: Tensor) -> Tensor:
        """Return Σ_c w_c t_c, (b,)."""
        return (self.class_weights(target.dtype) * target).sum(dim=1)


def mean_one(weights: Tensor, class_counts: Tensor) -> Tensor:
    """Scale class weights (C,) so that their mean over the training examples is 1.

    >>> import torch
    >>> mean_one(torch.tensor([1.0, 9.0]), torch.tensor([90, 10]))
    tensor([0.5556, 5.0000])
    """
    counts = class_counts.to(weights.dtype)
    return weights / (counts / counts.sum() * weights).sum()


def class_weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``ClassWeightedLoss`` as a function of any class weights (C,).

    >>> import torch
    >>> weights = torch.tensor([0.5, 2.0])
    >>> class_weighted_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), weights)
    tensor(0.6931)
    """

    def weighted(z: Tensor, t: Tensor, _: Tensor) -> Tensor:
        check_classes("class_weights", class_weights, z)
        return soft_cross_entropy(z, class_weights.to(z.dtype) * t)

    return apply_loss(
        weighted,
        logits,
        target,
        example_weights=lambda t: (class_weights.to(t.dtype) * t).sum(dim=1),
        reduction=reduction,
        ignore_index=ignore_index,
    )
