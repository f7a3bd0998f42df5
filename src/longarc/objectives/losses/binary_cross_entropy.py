"""Binary cross-entropy for multi-label examples: each label is a question of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longarc.objectives.losses.contract import (
    Loss,
    Reduction,
    apply_loss,
    as_label_counts,
    check_classes,
)
from longarc.options import check_number


class BinaryCrossEntropyLoss(Loss):
    """Binary cross-entropy: −(1/C) Σ_c [ r_c t_c log σ(z_c) + (1 − t_c) log σ(−z_c) ].

    The mean over the labels is each example's loss; the reduction is over the examples. A (b, C)
    target is multi-hot, or soft; a row of zeros is an example without any label. Class indices
    (b,) mean one positive label each.

    r_c = ((N − n_c) / n_c)^pos_weight_power weighs a label's positives, n_c of N training examples
    having it. A label that none, or every, example has is treated as if one did, or did not.

    Args:
        class_counts: (C,) training examples of each label. Needed only for pos_weight_power > 0.
        num_examples: N. Needed only for pos_weight_power > 0: an example can have several labels
            or none, so the counts do not add up to it.
        pos_weight_power: 0 (default) leaves the positives unweighted, so that σ(z) estimates
            probabilities. 1 gives a label's positives and negatives the same total weight, at the
            price of probabilities that are too high for rare labels.

    Raises:
        OptionError: a negative pos_weight_power; counts or num_examples missing for one above 0;
            counts that are negative, not whole, all zero or above num_examples; on call, logits
            with another number of labels.

    >>> import torch
    >>> loss = BinaryCrossEntropyLoss()
    >>> loss(torch.tensor([[0.0, 3.0, -3.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    tensor(0.2634)
    >>> BinaryCrossEntropyLoss([50, 10], 100, pos_weight_power=1).pos_weight()
    tensor([1., 9.])
    """

    multi_label = True
    class_counts: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor | None = None,
        num_examples: int | None = None,
        pos_weight_power: float = 0.0,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        self.pos_weight_power = check_number("pos_weight_power", pos_weight_power)
        needed_for = (
            f"pos_weight_power={self.pos_weight_power:g}" if self.pos_weight_power else None
        )
        counts = as_label_counts(class_counts, num_examples, needed_for=needed_for)
        self.register_buffer("class_counts", counts, persistent=False)
        self.num_examples = num_examples

    def pos_weight(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Return r, (C,), or None for pos_weight_power 0."""
        if not self.pos_weight_power or self.class_counts is None or self.num_examples is None:
            return None
        positive = self.class_counts.clamp(min=1)
        negative = (self.num_examples - self.class_counts).clamp(min=1)
        return (negative.to(dtype) / positive) ** self.pos_weight_power

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over the labels, (b,)."""
        if self.class_counts is not None:
            check_classes("class_counts", self.class_counts, logits)
        return _mean_over_labels(logits, target, self.pos_weight(logits.dtype))


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    pos_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``BinaryCrossEntropyLoss`` as a function of any weights of the positives (C,).

    >>> import torch
    >>> binary_cross_entropy(torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    tensor(0.6931)
    """

    def mean_over_labels(z: Tensor, t: Tensor, _: Tensor) -> Tensor:
        if pos_weight is not None:
            check_classes("pos_weight", pos_weight, z)
        return _mean_over_labels(z, t, None if pos_weight is None else pos_weight.to(z.dtype))

    return apply_loss(
        mean_over_labels,
        logits,
        target,
        multi_label=True,
        reduction=reduction,
        ignore_index=ignore_index,
    )


def _mean_over_labels(logits: Tensor, target: Tensor, pos_weight: Tensor | None) -> Tensor:
    losses = F.binary_cross_entropy_with_logits(
        logits, target, pos_weight=pos_weight, reduction="none"
    )
    return losses.mean(dim=1)
