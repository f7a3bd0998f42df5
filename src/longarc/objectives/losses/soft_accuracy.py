"""Soft accuracy: the accuracy expected when classes are drawn from the predicted probabilities."""

from __future__ import annotations

from torch import Tensor

from longarc.objectives.losses.contract import Loss, Reduction


class SoftAccuracyLoss(Loss):
    """One minus the expected accuracy of a class drawn from p: 1 − Σ_c t_c p_c, p = softmax(z).

    For multi-label examples p = σ(z), and the loss is the mean over the labels of the chance of a
    wrong answer, t (1 − p) + (1 − t) p. Shapes, reduction and ignored rows are those of ``Loss``.

    It is bounded by 1, so no example, mislabelled ones included, can cost more. The price is in
    the gradient: with two classes, or for one label, it is cross-entropy's p − t times the
    probability of the true class, so it **vanishes where the model is most wrong**. Start from a
    model that already works, such as a probe. It is not proper either: its minimum is all of the
    probability on the likeliest class.

    Args:
        multi_label: whether an example can have several labels, or none.

    Source: for one-hot labels it is half the mean absolute error of the probabilities, and the end
    q = 1 of the losses of Zhang & Sabuncu 2018, "Generalized Cross Entropy Loss for Training Deep
    Neural Networks with Noisy Labels" (arXiv 1805.07836); the other end, q → 0, is cross-entropy.

    >>> import torch
    >>> SoftAccuracyLoss()(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1]))
    tensor(0.7263)
    """

    convex = False

    def __init__(
        self,
        *,
        multi_label: bool = False,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(multi_label=multi_label, reduction=reduction, ignore_index=ignore_index)

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return one minus the expected accuracy of each example, (b,)."""
        if not self.multi_label:
            return 1 - (target * logits.softmax(dim=1)).sum(dim=1)
        p = logits.sigmoid()
        return (target * (1 - p) + (1 - target) * p).mean(dim=1)


def soft_accuracy_loss(
    logits: Tensor,
    target: Tensor,
    *,
    multi_label: bool = False,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``SoftAccuracyLoss`` as a function.

    >>> import torch
    >>> soft_accuracy_loss(torch.zeros(2, 4), torch.tensor([3, 1]))
    tensor(0.7500)
    """
    loss = SoftAccuracyLoss(multi_label=multi_label, reduction=reduction, ignore_index=ignore_index)
    return loss(logits, target)
