"""Focal loss, and the probabilities that a model trained with it stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longarc.errors import OptionError
from longarc.objectives.losses.contract import Loss, Reduction
from longarc.objectives.losses.log_space import log_probabilities
from longarc.options import check_number


class FocalLoss(Loss):
    """Focal loss: −Σ_c t_c (1 − p_c)^γ log p_c, p = softmax(z).

    For multi-label examples p = σ(z), and the loss is
    −(1/C) Σ_c [ α t (1 − p)^γ log p + (1 − α) (1 − t) p^γ log(1 − p) ]; without α both weigh 1.

    The factor (1 − p)^γ turns training away from examples already right, which
    ``TruncatedCrossEntropy`` does at one stroke. It changes what the model learns to say: the
    expected loss is **not** least where p is the class's probability; between two classes it is
    always at a flatter p. The classes keep their order, and ``probabilities`` regains the
    probability in closed form.

    Args:
        gamma: γ ≥ 0, any real number. 2 by default, the paper's best; 0 is cross-entropy.
        alpha: α in (0, 1), the weight of a label's positives; its negatives weigh 1 − α. For
            multi-label examples only. None by default: both weigh 1. The paper's 0.25 goes with
            γ = 2, which has already taken the weight from the many easy negatives.
        multi_label: whether an example can have several labels, or none.

    Raises:
        OptionError: gamma or alpha out of range; an alpha for single-label examples, where weights
            for the classes are what class-weighted and class-balanced are for.

    Source: Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv 1708.02002), eq. 4 and
    5; the correction, Charoenphakdee et al. 2021, "On Focal Loss for Class-Posterior Probability
    Estimation: A Theoretical Perspective" (arXiv 2011.09172).

    >>> import torch
    >>> z, y = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0])
    >>> FocalLoss(reduction="none")(z, y)  # cross-entropy is 0.1269 and 0.6931
    tensor([0.0018, 0.1733])
    >>> z.softmax(dim=1)[0], FocalLoss().probabilities(z)[0]
    (tensor([0.8808, 0.1192]), tensor([0.9955, 0.0045]))
    """

    convex = False

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | None = None,
        *,
        multi_label: bool = False,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(multi_label=multi_label, reduction=reduction, ignore_index=ignore_index)
        self.gamma, self.alpha = _check_options(gamma, alpha, multi_label)

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the focal loss, (b,): summed over the classes, or the mean over the labels."""
        log_p, log_rest = log_probabilities(logits, self.multi_label)
        positives = target * _focal(log_p, log_rest, self.gamma, target)
        if not self.multi_label:
            return positives.sum(dim=1)
        negatives = (1 - target) * _focal(log_rest, log_p, self.gamma, 1 - target)
        if self.alpha is not None:
            positives, negatives = self.alpha * positives, (1 - self.alpha) * negatives
        return (positives + negatives).mean(dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return ``focal_probabilities`` of the logits (b, C), with this loss's γ and α."""
        return focal_probabilities(logits, self.gamma, self.alpha, multi_label=self.multi_label)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float | None = None,
    *,
    multi_label: bool = False,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``FocalLoss`` as a function.

    >>> import torch
    >>> focal_loss(torch.zeros(2, 2), torch.tensor([0, 1]), gamma=1)
    tensor(0.3466)
    """
    loss = FocalLoss(
        gamma, alpha, multi_label=multi_label, reduction=reduction, ignore_index=ignore_index
    )
    return loss(logits, target)


def focal_probabilities(
    logits: Tensor, gamma: float = 2.0, alpha: float | None = None, *, multi_label: bool = False
) -> Tensor:
    """Return the class probabilities (b, C) for which the logits (b, C) minimise the focal loss.

    With h(v) = v / ( (1 − v)^γ − γ (1 − v)^{γ−1} v log v ) they are h(p_c) / Σ_j h(p_j), p the
    softmax: where Σ_c q_c ℓ(p_c) is least over the p that sum to 1, the q_c ℓ'(p_c) are all equal,
    and h is −1/ℓ'. For a label of its own, α q ℓ(p) + (1 − α) (1 − q) ℓ(1 − p) is least where
    q / (1 − q) = h(p) / h(1 − p) · (1 − α) / α. float32, or float64 for float64 logits.

    Args:
        gamma, alpha, multi_label: as in ``FocalLoss``; those of the training.

    Source: Charoenphakdee et al. 2021 (arXiv 2011.09172); the form with α is derived above.

    >>> import torch
    >>> focal_probabilities(torch.tensor([[2.0, 0.0, 0.0]]), gamma=2)
    tensor([[0.9730, 0.0135, 0.0135]])
    >>> focal_probabilities(torch.tensor([[0.0]]), alpha=0.25, multi_label=True)
    tensor([[0.7500]])
    """
    gamma, alpha = _check_options(gamma, alpha, multi_label)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_p, log_rest = log_probabilities(logits, multi_label)
    log_h = _log_h(log_p, log_rest, gamma)
    if not multi_label:
        return log_h.softmax(dim=1)
    log_odds = log_h - _log_h(log_rest, log_p, gamma)
    if alpha is not None:
        log_odds = log_odds - math.log(alpha / (1 - alpha))
    return log_odds.sigmoid()


def _focal(log_p: Tensor, log_rest: Tensor, gamma: float, target: Tensor) -> Tensor:
    """−(1 − p)^γ log p, and 0 where the target is: a power of the logarithm has finite slopes."""
    return -(gamma * log_rest).exp() * torch.where(target == 0, 0, log_p)


def _log_h(log_p: Tensor, log_rest: Tensor, gamma: float) -> Tensor:
    """Return log h(p) = log p − γ log(1 − p) − log(1 + γ r), where r = −p log p / (1 − p) ≤ 1."""
    p, rest = log_p.exp(), log_rest.exp()
    # log p has lost its digits near p = 1, where 1 − p has kept them.
    minus_p_log_p = torch.where(rest < 0.5, -p * torch.log1p(-rest), torch.special.entr(p))
    r = torch.where(rest > 0, minus_p_log_p / rest, 1)
    return log_p - gamma * log_rest - torch.log1p(gamma * r)


def _check_options(
    gamma: float, alpha: float | None, multi_label: bool
) -> tuple[float, float | None]:
    gamma = check_number("gamma", gamma)
    if alpha is None:
        return gamma, None
    if not multi_label:
        raise OptionError(
            f"alpha={alpha!r} weighs a label's positives against its negatives, which single-label "
            "examples do not have. To weigh classes use loss class-weighted or class-balanced."
        )
    if check_number("alpha", alpha, below=1.0) == 0:
        raise OptionError("alpha must be above 0: with 0 the positives would count for nothing.")
    return gamma, float(alpha)
