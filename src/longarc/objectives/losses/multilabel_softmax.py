"""Softmax for multi-label examples: each label that one has is compared with each it lacks."""

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


class MultiLabelSoftmaxLoss(Loss):
    """Multi-label softmax (ZLPR): log(1 + Σ_c (1 − t_c) e^{s_c}) + log(1 + Σ_c t_c e^{−s_c}).

    s = z + τ log(π_c / (1 − π_c)), π_c = n_c / N; with τ = 0, the default, s = z.

    The loss is small where every label that the example has scores above 0 and every other below:
    **the threshold is 0**. Each of the two sums is a soft maximum, of the labels that are wrongly
    high and of those that are wrongly low. A thousand absent labels that all score low thus weigh
    next to nothing, where binary cross-entropy adds up all of them. The terms of an example are not
    averaged over the labels. For C = 1 the loss is binary cross-entropy; for more labels σ(z) is a
    score and not a probability, since an example's labels share the two logarithms.

    τ > 0 accounts for the prior outside the model. The best z with τ is the best z without it less
    τ log(π_c / (1 − π_c)), so the threshold 0 on z stands for τ log(π_c / (1 − π_c)) on plain ZLPR:
    a rare label is predicted sooner. For C = 1 and τ = 1 the best z is log p(x | 1) / p(x | 0), and
    z > 0 is the decision with the least balanced error of the label (the mean of the errors on the
    examples that have it and on those that do not). A label that none, or every, training example
    has is counted as if one did, or did not.

    A (b, C) target is multi-hot, or soft, as in the formula; a row of zeros is an example without
    any label. Class indices (b,) mean one positive label each. A logit of −inf switches a label off
    for an example that does not have it.

    Args:
        class_counts: (C,) training examples of each label. Needed only for tau > 0.
        num_examples: N. Needed only for tau > 0: an example can have several labels or none, so the
            counts do not add up to it.
        tau: τ. 0 by default, the published loss.

    Raises:
        OptionError: a negative tau; counts or num_examples missing for one above 0; counts that are
            negative, not whole, all zero or above num_examples; on call, logits with another number
            of labels.

    Source: Su et al. 2022, "ZLPR: A Novel Loss for Multi-label Classification" (arXiv 2208.02955),
    with its form for soft labels. The prior is an addition of longarc's, after the logit adjustment
    of Menon et al. 2021 (arXiv 2007.07314).

    >>> import torch
    >>> loss = MultiLabelSoftmaxLoss()
    >>> loss(torch.tensor([[0.0, 3.0, -3.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    tensor(0.7663)
    >>> MultiLabelSoftmaxLoss([50, 10], 100, tau=1).prior_log_odds()
    tensor([ 0.0000, -2.1972])
    """

    multi_label = True
    class_counts: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor | None = None,
        num_examples: int | None = None,
        tau: float = 0.0,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        self.tau = check_number("tau", tau)
        needed_for = f"tau={self.tau:g}" if self.tau else None
        counts = as_label_counts(class_counts, num_examples, needed_for=needed_for)
        self.register_buffer("class_counts", counts, persistent=False)
        self.num_examples = num_examples

    def prior_log_odds(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Return log(π_c / (1 − π_c)), (C,), or None without counts.

        Add τ times this to the logits for those of plain ZLPR.
        """
        if self.class_counts is None or self.num_examples is None:
            return None
        positive = self.class_counts.clamp(min=1)
        negative = (self.num_examples - self.class_counts).clamp(min=1)
        return (positive.to(dtype) / negative).log()

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return log(1 + Σ (1 − t) e^s) + log(1 + Σ t e^−s), (b,)."""
        if self.class_counts is not None:
            check_classes("class_counts", self.class_counts, logits)
        log_odds = self.prior_log_odds(logits.dtype) if self.tau else None
        return _softmax_losses(logits if log_odds is None else logits + self.tau * log_odds, target)


def multilabel_softmax(
    logits: Tensor,
    target: Tensor,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``MultiLabelSoftmaxLoss`` as a function, with τ = 0: add any prior to the logits.

    >>> import torch
    >>> multilabel_softmax(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))
    tensor(0.6931)
    """
    return apply_loss(
        lambda z, t, _: _softmax_losses(z, t),
        logits,
        target,
        multi_label=True,
        reduction=reduction,
        ignore_index=ignore_index,
    )


def _softmax_losses(s: Tensor, target: Tensor) -> Tensor:
    return _log_one_plus_sum(s, 1 - target) + _log_one_plus_sum(-s, target)


def _log_one_plus_sum(s: Tensor, weight: Tensor) -> Tensor:
    """log(1 + Σ_c weight_c e^{s_c}), (b,)."""
    # Where the weight is 0 the score is left out before the sum: it may be infinite.
    terms = torch.where(weight > 0, s + weight.log(), -torch.inf)
    return F.pad(terms, (1, 0)).logsumexp(dim=1)  # the pad is log 1
