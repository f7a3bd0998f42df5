"""Logit adjustment: cross-entropy on logits to which the class prior has been added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longarc.errors import OptionError
from longarc.objectives.losses.contract import (
    Loss,
    Reduction,
    apply_loss,
    as_class_counts,
    as_class_values,
    check_classes,
)
from longarc.objectives.losses.cross_entropy import soft_cross_entropy
from longarc.options import check_number


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
        class_counts: (C,) training examples of each class. Needed unless log_prior is given, and
            not used then.
        tau: τ. 1 by default, the value for which the balanced-error property holds; 0 is plain
            cross-entropy, more leans further to rare classes.
        log_prior: (C,) log π, up to a constant, where it is not to come from the counts: a prior of
            other data, or one that was estimated.

    Raises:
        OptionError: neither class_counts nor log_prior; counts that are negative, not whole or all
            zero; a log_prior that is not finite; a negative tau; on call, logits with another
            number of classes.

    Source: Menon et al. 2021, "Long-tail learning via logit adjustment" (arXiv 2007.07314), eq. 10;
    τ = 1 is the balanced softmax of Ren et al. 2020 (arXiv 2007.10740).

    >>> import torch
    >>> loss = LogitAdjustedLoss([90, 10])
    >>> loss.log_prior()
    tensor([-0.1054, -2.3026])
    >>> z = torch.zeros(1, 2)
    >>> loss(z, torch.tensor([0])), loss(z, torch.tensor([1]))
    (tensor(0.1054), tensor(2.3026))
    >>> LogitAdjustedLoss(log_prior=[2.0, 2.0]).log_prior()
    tensor([-0.6931, -0.6931])
    """

    class_counts: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor | None = None,
        tau: float = 1.0,
        log_prior: Sequence[float] | Tensor | None = None,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        if class_counts is None and log_prior is None:
            raise OptionError(
                "class_counts and log_prior are both missing. Give one of them: the training "
                "examples of each class, or the logarithm of its prior."
            )
        counts = as_class_counts(class_counts) if log_prior is None else None
        self.register_buffer("class_counts", counts, persistent=False)
        self.given_log_prior = (
            None if log_prior is None else as_class_values("log_prior", log_prior)
        )
        self.tau = check_number("tau", tau)

    def log_prior(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return log π, (C,), normalised, with classes of no example counted as one."""
        if self.class_counts is not None:
            return count_log_prior(self.class_counts, dtype)
        return torch.tensor(self.given_log_prior, dtype=dtype).log_softmax(dim=0)

    def mutual_information(self, logits: Tensor) -> Tensor:
        """Return the pointwise mutual information of document and class, log p(c|x)/π_c.

        That is what the document says about the class beyond the prior, in nats: above 0 where it
        speaks for the class, and Σ_c π_c e^{pmi_c} = 1. ``logits`` (b, C) are the bare logits of a
        model trained with this loss, so that p(c | x) is softmax(z + τ log π). With τ = 1 it is
        z_c − log Σ_k π_k e^{z_k}: the bare logit less a number that is the same for all classes.
        The result is (b, C) too, in float32, or float64 for float64 logits.

        >>> loss = LogitAdjustedLoss([90, 10])
        >>> loss.mutual_information(torch.tensor([[0.0, 3.0]]))
        tensor([[-1.0677,  1.9323]])
        """
        z = logits if logits.dtype == torch.float64 else logits.float()
        log_prior = self._log_prior_of(z)
        return F.log_softmax(z + self.tau * log_prior, dim=1) - log_prior

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return −Σ_c t_c log softmax(z + τ log π)_c, (b,)."""
        return soft_cross_entropy(logits + self.tau * self._log_prior_of(logits), target)

    def _log_prior_of(self, logits: Tensor) -> Tensor:
        """Log π of the classes of these logits, in their type and on their device."""
        log_prior = self.log_prior(logits.dtype)
        if self.class_counts is None:
            check_classes("log_prior", log_prior, logits)
            return log_prior.to(logits.device)
        check_classes("class_counts", self.class_counts, logits)
        return log_prior


def count_log_prior(class_counts: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return log π, (C,), from class counts (C,), with classes of no example counted as one.

    >>> count_log_prior(torch.tensor([90, 10]))
    tensor([-0.1054, -2.3026])
    """
    counts = class_counts.clamp(min=1)
    return (counts.to(dtype) / counts.sum()).log()


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
