"""LDAM: cross-entropy with larger margins for rarer classes, and weights that come in late."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longarc.objectives.losses.class_balanced import class_balanced_weights
from longarc.objectives.losses.contract import (
    Loss,
    Reduction,
    apply_loss,
    as_class_counts,
    check_classes,
)
from longarc.objectives.losses.log_space import log_one_minus_softmax
from longarc.options import check_number


class LDAMLoss(Loss):
    """Cross-entropy with label-distribution-aware margins Δ_c = max_margin · (n_min / n_c)^¼.

    The loss is Σ_c t_c ℓ_c, ℓ_c = −log e^{s (z_c − Δ_c)} / (e^{s (z_c − Δ_c)} + Σ_{i≠c} e^{s z_i}).

    n_c is the number of training examples of class c, n_min that of the rarest. The true class has
    to win by its margin. Of all ways to divide a given sum of margins, n^−¼ has the least of the
    paper's bound on the balanced error of two separable classes. A class without training examples
    is counted as one.

    Deferred re-weighting (DRW): from the fraction ``reweight_after`` of the training on, examples
    count by the class-balanced weights w_c ∝ (1 − β) / (1 − β^n_c), whose mean over the training
    examples is 1; the mean then divides by Σ_c w_c t_c, as for ``ClassBalancedLoss``. So the
    features are learnt from plain frequencies, and the decisions move to the rare classes at the
    end. ``longarc.Trainer`` tells the loss how far it is; in a loop of your own call
    ``set_progress`` before each update. Losses from before and after the switch do not compare.

    Args:
        class_counts: (C,) training examples of each class.
        max_margin: the margin Δ of the rarest class, 0.5 by default as in the authors' code.
        scale: s. The paper takes 30, for logits that are cosines and therefore lie in [−1, 1];
            copies that multiply the unbounded logits of a linear layer by 30 saturate the softmax,
            and with it the gradient. The heads here give such logits, hence 1 by default. The
            probabilities are softmax(s z).
        reweight_after: fraction of the training in [0, 1) from which on the weights apply, 0.8 in
            the authors' code; None (default) for never.
        beta: β in [0, 1) of the weights, 0.9999 by default as in the authors' code.

    Raises:
        OptionError: counts that are negative, not whole or all zero; an option out of range; on
            call, logits with another number of classes.

    Source: Cao et al. 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin
    Loss" (arXiv 1906.07413); deferred re-weighting is its Algorithm 1.

    >>> import torch
    >>> loss = LDAMLoss([160, 10], reweight_after=0.8, beta=0.9)
    >>> loss.margins()
    tensor([0.2500, 0.5000])
    >>> z, y = torch.zeros(2, 2), torch.tensor([0, 1])
    >>> loss(z, y)
    tensor(0.9000)
    >>> loss.set_progress(0.8)
    >>> loss(z, y)
    tensor(0.9156)
    """

    class_counts: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        max_margin: float = 0.5,
        scale: float = 1.0,
        reweight_after: float | None = None,
        beta: float = 0.9999,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        self.register_buffer("class_counts", as_class_counts(class_counts), persistent=False)
        self.max_margin = check_number("max_margin", max_margin)
        self.scale = check_number("scale", scale, at_least=1e-6)
        self.reweight_after = (
            None
            if reweight_after is None
            else check_number("reweight_after", reweight_after, below=1.0)
        )
        self.beta = check_number("beta", beta, below=1.0)
        self.set_progress(0.0)

    def set_progress(self, fraction: float) -> None:
        """Switch the weights on or off for this fraction of the training, 0 to 1."""
        # Not the fraction itself: torch.compile would compile anew each time that it changes.
        self.reweights = self.reweight_after is not None and fraction >= self.reweight_after

    def margins(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return Δ, (C,)."""
        counts = self.class_counts.clamp(min=1)
        return self.max_margin * (counts.min() / counts.to(dtype)) ** 0.25

    def class_weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights that apply now, (C,): ones before the switch."""
        if self.reweights:
            return class_balanced_weights(self.class_counts, self.beta, dtype)
        return torch.ones_like(self.class_counts, dtype=dtype)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return softmax(s z), (b, C)."""
        return super().probabilities(self.scale * logits)

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return Σ_c w_c t_c ℓ_c, (b,)."""
        check_classes("class_counts", self.class_counts, logits)
        weighted = self.class_weights(logits.dtype) * target
        return _margin_losses(logits, weighted, self.margins(logits.dtype), self.scale)

    def example_weights(self, target: Tensor) -> Tensor:
        """Return Σ_c w_c t_c, (b,)."""
        return (self.class_weights(target.dtype) * target).sum(dim=1)


def margin_cross_entropy(
    logits: Tensor,
    target: Tensor,
    margins: Tensor,
    scale: float = 1.0,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``LDAMLoss``, without its weights, as a function of any margins (C,).

    >>> import torch
    >>> margin_cross_entropy(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0.25, 0.5]))
    tensor(0.9741)
    """
    scale = check_number("scale", scale, at_least=1e-6)

    def with_margins(z: Tensor, t: Tensor, _: Tensor) -> Tensor:
        check_classes("margins", margins, z)
        return _margin_losses(z, t, margins.to(z.dtype), scale)

    return apply_loss(with_margins, logits, target, reduction=reduction, ignore_index=ignore_index)


def _margin_losses(logits: Tensor, target: Tensor, margins: Tensor, scale: float) -> Tensor:
    z = scale * logits
    # With p = softmax(s z), ℓ_c = −log σ(log p_c / (1 − p_c) − s Δ_c): all classes in O(b C).
    log_odds = F.log_softmax(z, dim=1) - log_one_minus_softmax(z)
    log_share = F.logsigmoid(log_odds - scale * margins)
    return -(target * torch.where(target == 0, 0, log_share)).sum(dim=1)
