"""Radius margin: each example owns a ball around its code, the larger, the rarer its class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longarc.errors import DataError, OptionError
from longarc.objectives.losses.contract import (
    Loss,
    Reduction,
    apply_loss,
    as_class_counts,
    as_class_values,
    check_classes,
)
from longarc.objectives.losses.logit_adjusted import count_log_prior
from longarc.options import check_number


class RadiusMarginLoss(Loss):
    """Cross-entropy with room for a ball of radius r_y around the example's code h.

    For an example of class y, with logits s_i = ⟨u_i, h⟩ + bias_i,

    ℓ_y = −log e^{s_y − r_y‖u_y‖} / (e^{s_y − r_y‖u_y‖} + Σ_{i≠y} e^{s_i + r_y‖u_i‖}).

    In the ball s_i reaches up to s_i + r_y‖u_i‖ and s_y down to s_y − r_y‖u_y‖, so ℓ_y is an upper
    bound of the cross-entropy of every code in it (each logit is taken at its own worst point). A
    test document of a rare class lies further from those trained on than one of a frequent class,
    hence larger balls for rare classes: r_c = −(τ/2) log π_c, π_c = n_c / Σ n, unless ``radii`` are
    given. A class without training examples is counted as one.

    **With unit norms**, ‖u_i‖ = 1, only 2 r_y is left: cross-entropy with the margin
    m_y = −τ log π_y on the true logit. ``LogitAdjustedLoss`` has m_y − m_i for the true class y and
    another i, so the two differ by the rival's own margin, and agree for no τ > 0. There the
    margins of equal priors cancel; here they are τ log C between all classes. A class that is rare
    is pushed up in both, but argmax s is the decision with the least balanced error only there.

    ``forward(logits, target, class_vectors=None)`` takes the class vectors u, (C, d), of any
    floating type: the rows of the last linear layer's weight. Gradients flow into them too, and
    keep norms small. Without them all norms are 1, as for cosine heads. ``longarc.Trainer`` and the
    linear probe hand them over.

    Soft labels give Σ_c t_c ℓ_c, in O(b C²) time and memory; class indices O(b C). A logit of −inf
    switches a class off for an example that does not have it.

    Args:
        class_counts: (C,) training examples of each class. Needed unless radii are given, and not
            used then.
        tau: τ, 1 by default, so that with unit norms the margin is −log π_y. 0 is plain
            cross-entropy.
        radii: (C,) r, 0 or more, in the units of the codes, in place of those from counts and tau.

    Raises:
        OptionError: neither class_counts nor radii; counts that are negative, not whole or all
            zero; a negative tau; radii that are negative or not finite; on call, logits with
            another number of classes.
        DataError: on call, class_vectors that are not (C, d) or of no floating type.

    Source: that such a ball is a penalty on the norms of a linear classifier is in Xu et al. 2009,
    "Robustness and Regularization of Support Vector Machines" (arXiv 0803.3490); a radius for each
    class is longarc's.

    >>> import torch
    >>> loss = RadiusMarginLoss([90, 10])
    >>> loss.class_radii()
    tensor([0.0527, 1.1513])
    >>> z = torch.zeros(1, 2)
    >>> loss(z, torch.tensor([0])), loss(z, torch.tensor([1]))
    (tensor(0.7472), tensor(2.3979))
    >>> loss(z, torch.tensor([1]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor(6.9088)
    """

    uses_class_vectors = True
    class_counts: Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int] | Tensor | None = None,
        tau: float = 1.0,
        radii: Sequence[float] | Tensor | None = None,
        *,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction=reduction, ignore_index=ignore_index)
        if class_counts is None and radii is None:
            raise OptionError(
                "class_counts and radii are both missing. Give one of them: the training examples "
                "of each class, or its radius."
            )
        counts = as_class_counts(class_counts) if radii is None else None
        self.register_buffer("class_counts", counts, persistent=False)
        self.tau = check_number("tau", tau)
        self.radii = None if radii is None else as_class_values("radii", radii, at_least=0.0)

    def class_radii(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return r, (C,)."""
        if self.class_counts is not None:
            return -self.tau / 2 * count_log_prior(self.class_counts, dtype)
        return torch.tensor(self.radii, dtype=dtype)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        class_vectors: Tensor | None = None,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """Return the loss: a scalar, or (b,) for ``reduction="none"``.

        ``class_vectors`` (C, d) are the rows of the last linear layer; None for norms of 1.
        ``reduction`` stands in for the loss's own in this call.
        """

        def with_radii(z: Tensor, t: Tensor, _: Tensor) -> Tensor:
            radii = self.class_radii(z.dtype)
            if self.class_counts is not None:
                check_classes("class_counts", self.class_counts, z)
            else:
                check_classes("radii", radii, z)
                radii = radii.to(z.device)
            return _radius_losses(z, t, radii, class_vectors, one_class=target.ndim == 1)

        return apply_loss(
            with_radii,
            logits,
            target,
            reduction=reduction or self.reduction,
            ignore_index=self.ignore_index,
        )


def radius_margin_cross_entropy(
    logits: Tensor,
    target: Tensor,
    radii: Tensor,
    class_vectors: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``RadiusMarginLoss`` as a function of any radii (C,).

    >>> import torch
    >>> radii = torch.tensor([0.0, 1.0])
    >>> radius_margin_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), radii)
    tensor(1.4100)
    """

    def with_radii(z: Tensor, t: Tensor, _: Tensor) -> Tensor:
        check_classes("radii", radii, z)
        return _radius_losses(z, t, radii.to(z.dtype), class_vectors, one_class=target.ndim == 1)

    return apply_loss(with_radii, logits, target, reduction=reduction, ignore_index=ignore_index)


def _radius_losses(
    logits: Tensor, target: Tensor, radii: Tensor, class_vectors: Tensor | None, *, one_class: bool
) -> Tensor:
    """Σ_c t_c ℓ_c, (b,); with ``one_class`` every row of the target is one-hot, or zero."""
    norms = torch.ones_like(radii) if class_vectors is None else _norms(class_vectors, logits)
    if one_class:
        return _losses_of(logits, target, (target * radii).sum(dim=1), norms)
    one_hot = torch.diag(torch.ones_like(radii))  # a row for each class that could be the true one
    losses = _losses_of(logits[:, None], one_hot, radii, norms)
    return (target * torch.where(target == 0, 0, losses)).sum(dim=1)


def _losses_of(logits: Tensor, one_hot: Tensor, radius: Tensor, norms: Tensor) -> Tensor:
    """ℓ_y for logits and one-hot labels (…, C) and radii (…)."""
    worst = logits + radius[..., None] * norms * (1 - 2 * one_hot)
    # A sum with 0 for the other classes, whose logits may be −inf.
    return worst.logsumexp(dim=-1) - torch.where(one_hot > 0, worst, 0).sum(dim=-1)


def _norms(class_vectors: Tensor, logits: Tensor) -> Tensor:
    """‖u‖, (C,), in the logits' type."""
    shape, classes = tuple(class_vectors.shape), logits.shape[1]
    if len(shape) != 2 or shape[0] != classes or not class_vectors.is_floating_point():
        raise DataError(
            f"class_vectors have shape {shape} and type {class_vectors.dtype}; expected "
            f"({classes}, d) floating-point numbers, one row for each class: the weight of the "
            "last linear layer."
        )
    return torch.linalg.vector_norm(class_vectors.to(logits.dtype), dim=1)
