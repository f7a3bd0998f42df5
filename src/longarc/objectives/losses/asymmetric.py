"""Asymmetric loss for multi-label examples: absent labels count less, the easier they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longarc.objectives.losses.contract import Loss, Reduction
from longarc.options import check_number


class AsymmetricLoss(Loss):
    """Asymmetric loss: −(1/C) Σ_c [ t_c (1 − p)^γ⁺ log p + (1 − t_c) p_m^γ⁻ log(1 − p_m) ].

    p = σ(z_c), p_m = max(p − m, 0). Most labels of most examples are absent and easily seen to be.
    With γ⁻ > γ⁺ these count less than the few that are present, and below p = m not at all; at the
    other end, an absent label of p near 1, which may be a gap in the annotation, costs no more than
    −log m. The price is a score σ(z) above the probability that the label is present.

    The mean over the labels is each example's loss, as for ``BinaryCrossEntropyLoss``. The authors'
    code sums over labels and examples instead: its learning rates are for a loss b · C times as
    large. It also adds 1e-8 inside the logarithms, which half precision rounds to 0; here they are
    taken in log space.

    A (b, C) target is multi-hot, or soft; a row of zeros is an example without any label. Class
    indices (b,) mean one positive label each.

    Args:
        gamma_positive: γ⁺, 1 by default; 0 leaves the labels that are present at cross-entropy.
        gamma_negative: γ⁻, 4 by default; 0 with margin 0 leaves the absent ones there.
        margin: m in [0, 1), 0.05 by default. The three defaults are those of the authors' code.

    Raises:
        OptionError: a negative gamma; a margin outside [0, 1).

    Source: Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification"
    (arXiv 2009.14119).

    >>> import torch
    >>> loss = AsymmetricLoss()
    >>> loss(torch.tensor([[0.0, 3.0, -3.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    tensor(0.1163)
    """

    multi_label = True
    convex = False

    def __init__(
        self,
        gamma_positive: float = 1.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        self.gamma_positive = check_number("gamma_positive", gamma_positive)
        self.gamma_negative = check_number("gamma_negative", gamma_negative)
        self.margin = check_number("margin", margin, below=1.0)

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over the labels, (b,)."""
        present = _focused(-logits, self.gamma_positive)
        if self.margin:
            absent = _focused_above(logits, self.gamma_negative, self.margin)
        else:
            absent = _focused(logits, self.gamma_negative)
        return -(target * present + (1 - target) * absent).mean(dim=1)


def asymmetric_cross_entropy(
    logits: Tensor,
    target: Tensor,
    gamma_positive: float = 1.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``AsymmetricLoss`` as a function.

    >>> import torch
    >>> asymmetric_cross_entropy(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), 0, 0, 0)
    tensor(0.6931)
    """
    loss = AsymmetricLoss(
        gamma_positive, gamma_negative, margin, reduction=reduction, ignore_index=ignore_index
    )
    return loss(logits, target)


def _focused(z: Tensor, gamma: float) -> Tensor:
    """p^γ log(1 − p), p = σ(z): the power too in log space, or γ < 1 has no gradient at p = 0."""
    return (gamma * F.logsigmoid(z)).exp() * F.logsigmoid(-z)


def _focused_above(z: Tensor, gamma: float, margin: float) -> Tensor:
    """The same of p_m = max(p − m, 0), for m > 0."""
    above = torch.sigmoid(z) - margin
    # Any number does below the margin, so long as its gradient is finite.
    shifted = torch.where(above > 0, above, 0.5)
    # 1 − p_m as σ(−z) + m, which is at least m also where p rounds to 1.
    return torch.where(above > 0, shifted**gamma * (torch.sigmoid(-z) + margin).log(), 0)
