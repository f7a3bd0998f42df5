"""Soft F1: one minus the macro-F1 of a batch, with probabilities in place of decisions."""

from __future__ import annotations

import torch
from torch import Tensor

from longarc.objectives.losses.contract import Loss, Reduction


class SoftF1Loss(Loss):
    """One minus macro-F1 over the batch: 1 − (1/K) Σ_c F_c, F_c = 2 Σ_i t_ic p_ic / Σ_i (t_ic + p_ic).

    p = softmax(z), or σ(z) for multi-label examples. The mean is over the K classes that have a
    positive in the batch; a batch without any costs 0. With probabilities of 0 and 1 the F_c are
    the F1 scores.

    **It belongs to the batch, not to an example.** Of b examples, example i has the share

        1 − (b/K) Σ_c 2 t_ic p_ic / Σ_j (t_jc + p_jc),

    which can be negative and depends on the others; the mean of the shares is the batch's loss.
    Under gradient accumulation each small batch has an F1 of its own, and the loss is their mean
    weighted by examples, not the F1 of all of them. Use batches in which rare classes meet some
    of their examples: a class that is absent is left out, and its false positives cost nothing
    but, for single labels, the probability they take from the true class.

    Like soft accuracy it is bounded, and its gradient vanishes where p is near 0 or 1, the wrong
    one included; ``F1WeightedCrossEntropy`` does not have this fault.

    Args:
        multi_label: whether an example can have several labels, or none.

    Source: for multi-label examples Bénédict et al. 2022, "sigmoidF1: A Smooth F1 Score Surrogate
    Loss for Multilabel Classification" (arXiv 2108.10566), whose sigmoid has a slope and an offset
    to tune; here it is the model's own.

    >>> import torch
    >>> certain = torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    >>> SoftF1Loss()(100 * certain, torch.tensor([0, 1, 1]))  # F1 of 2/3 for both classes
    tensor(0.3333)
    """  # noqa: E501

    convex = False

    def __init__(
        self,
        *,
        multi_label: bool = False,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(multi_label=multi_label, reduction=reduction, ignore_index=ignore_index)

    def in_batch(self, logits: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return each example's share, (b,); the mean of those kept is the batch's loss."""
        p = torch.where(keep[:, None], self.probabilities(logits), 0)
        present = target.sum(dim=0) > 0
        classes = present.sum().clamp(min=1)
        size = torch.where(present, (target + p).sum(dim=0), 1)
        hits = torch.where(present, 2 * target * p / size, 0).sum(dim=1)
        return torch.where(present.any(), 1 - keep.sum() * hits / classes, 0)


def soft_f1_loss(
    logits: Tensor,
    target: Tensor,
    *,
    multi_label: bool = False,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``SoftF1Loss`` as a function.

    >>> import torch
    >>> soft_f1_loss(torch.zeros(2, 2), torch.tensor([0, 1]))
    tensor(0.5000)
    """
    loss = SoftF1Loss(multi_label=multi_label, reduction=reduction, ignore_index=ignore_index)
    return loss(logits, target)
