"""Dice loss for each example and class, in three forms."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from longarc.objectives.losses.contract import Loss, Reduction
from longarc.objectives.losses.log_space import log_probabilities
from longarc.options import check_choice, check_number

DiceForm = Literal["plain", "squared", "self-adjusting"]


class DiceLoss(Loss):
    """Dice loss: Σ_c [ 1 − (2 p_c t_c + ε) / (p_c + t_c + ε) ], p = softmax(z), one class vs. the rest.

    For multi-label examples p = σ(z) and the mean over the labels stands for the sum. Forms:

    - ``"plain"``: as above.
    - ``"squared"``: p² + t² + ε in the denominator.
    - ``"self-adjusting"``: q = (1 − p)^α p in place of p, above and below, so that examples already
      sure pull less.

    Dice is a soft F1 of each example and class on its own, so unlike ``SoftF1Loss`` it does not
    depend on the batch. It is bounded: a class that is certain and wrong costs 1 / (1 + ε). ε is
    what makes the classes that an example does not have count: they cost p / (p + ε).

    **The self-adjusting form is not monotone in p.** q falls again after p = 1 / (1 + α), so with
    α = 1 the loss of a true class is least at p = ½ and grows on either side, and that of a false
    class is greatest there and 0 where p = 1. Start it from a model that already works, and do not
    read its p as probabilities.

    Args:
        form: ``"plain"`` (default: the simplest), ``"squared"`` or ``"self-adjusting"``.
        smooth: ε, at least 1e-6. 1 by default, as is usual; a small one makes negatives matter only
            where p is of its size.
        alpha: α ≥ 0 of the self-adjusting form; the others have no use for it. 1 by default, the
            paper's first choice; 0 is the plain form.
        multi_label: whether an example can have several labels, or none.

    Raises:
        OptionError: an unknown form; smooth or alpha out of range.

    Source: Li et al. 2020, "Dice Loss for Data-imbalanced NLP Tasks" (arXiv 1911.02855), section 3:
    the smoothed, the squared (after Milletari et al. 2016, arXiv 1606.04797) and the self-adjusting
    coefficient.

    >>> import torch
    >>> z = torch.tensor([[0.0, 0.0]])
    >>> DiceLoss()(z, torch.tensor([0]))  # 1 − 2/2.5 and 1 − 1/1.5
    tensor(0.5333)
    >>> DiceLoss("squared")(z, torch.tensor([0]))  # 1 − 2/2.25 and 1 − 1/1.25
    tensor(0.3111)
    """  # noqa: E501

    convex = False

    def __init__(
        self,
        form: DiceForm = "plain",
        smooth: float = 1.0,
        alpha: float = 1.0,
        *,
        multi_label: bool = False,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(multi_label=multi_label, reduction=reduction, ignore_index=ignore_index)
        self.form = check_choice("form", form, get_args(DiceForm))
        # Of a smaller one the square, in the gradient, underflows in float32.
        self.smooth = check_number("smooth", smooth, at_least=1e-6)
        self.alpha = check_number("alpha", alpha)

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the classes, or the mean over the labels, (b,)."""
        log_p, log_rest = log_probabilities(logits, self.multi_label)
        q = (self.alpha * log_rest + log_p).exp() if self.form == "self-adjusting" else log_p.exp()
        size = q.square() + target.square() if self.form == "squared" else q + target
        losses = 1 - (2 * q * target + self.smooth) / (size + self.smooth)
        return losses.mean(dim=1) if self.multi_label else losses.sum(dim=1)


def dice_loss(
    logits: Tensor,
    target: Tensor,
    form: DiceForm = "plain",
    smooth: float = 1.0,
    alpha: float = 1.0,
    *,
    multi_label: bool = False,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``DiceLoss`` as a function.

    >>> import torch
    >>> dice_loss(torch.zeros(1, 1), torch.ones(1, 1), "self-adjusting", multi_label=True)
    tensor(0.3333)
    """
    loss = DiceLoss(
        form, smooth, alpha,
        multi_label=multi_label, reduction=reduction, ignore_index=ignore_index,
    )  # fmt: skip
    return loss(logits, target)
