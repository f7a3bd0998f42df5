"""Logit adjustment: cross-entropy on logits to which the class prior has been added."""

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
    check_number,
)
from longarc.objectives.losses.cross_entropy import soft_cross_entropy


class LogitAdjustedLoss(Loss):
    """Cross-entropy on adjusted logits: −Σ_c t_c log softmax(z + τ log π)_c, π_c = n_c / Σ n.

    Training fits softmax(z + τ log π) to p(y | x). With τ = 1 the bare logit z_c therefore
    approaches log p(x | c), up to a constant in c: the prior is accounted for outside the model,
    and **argmax z is the decision with the least balanced error** (the mean over the classes of
    each class's error). Predict with z, not with the adjusted logits; z + log π are the logits for
    plain accuracy. Seen another way, the pair of classes (y, c) has the margin
    τ log(π_c / π_y), large where y is rare.

    A class without training examples has no log π. It is counted as one example, the least that
    was possible: its logit is then pushed down a little by every example, where −inf would leave it
    untrained and free to win the argmax.

    Args:
        class_counts: (C,) training examples of each class.
        tau: τ. 1 by default, the value for which the balanced-error property holds; 0 is plain
            cross-entropy, more leans further to rare classes.

    Raises:
        OptionError: counts that are negative, not whole or all zero; a negative tau; on call,
            logits with another number of classes.

    Source: Menon et al. 2021, "Long-tail learning via logit adjustment" (arXiv 2007.07314), eq. 10;
    τ = 1 is the balanced softmax of Ren et al. 2020 (arXiv 2007.10740).

    >>> import torch
    >>> loss = LogitAdjustedLoss([90, 10])
    >>> loss.log_prior()
    tensor([-0.1054, -2.3026])
    >>> z = torch.zeros(1, 2)
    >>> loss(z, torch.tensor([0])), loss(z, torch.tensor([1]))
    (tensor(0.1054), tensor(2.3026))
    """

    class_counts: Tensor

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor,
        tau: float = 1.0,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        self.register_buffer("class_counts", as_class_counts(class_counts), persistent=False)
        self.tau = check_number("tau", tau)

    def log_prior(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return log π, (C,), with classes of no example counted as one."""
        counts = self.class_counts.clamp(min=1)
        return (counts.to(dtype) / counts.sum()).log()

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return −Σ_c t_c log softmax(z + τ log π)_c, (b,)."""
        check_classes("class_counts", self.class_counts, logits)
        return soft_cross_entropy(logits + self.tau * self.log_prior(logits.dtype), target)


def logit_adjusted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    log_prior: Tensor,
    tau: float = 1.0,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``LogitAdjustedLoss`` as a function of any log prior (C,), up to a constant.

    >>> import torch
    >>> log_prior = torch.tensor([0.9, 0.1]).log()
    >>> logit_adjusted_cross_entropy(torch.zeros(1, 2), torch.tensor([1]), log_prior)
    tensor(2.3026)
    """
    tau = check_number("tau", tau)

    def adjusted(z: Tensor, t: Tensor, _: Tensor) -> Tensor:
        check_classes("log_prior", log_prior, z)
        return soft_cross_entropy(z + tau * log_prior.to(z.dtype), t)

    return apply_loss(adjusted, logits, target, reduction=reduction, ignore_index=ignore_index)
