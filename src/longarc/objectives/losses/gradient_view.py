"""The gradient view: every loss here is cross-entropy with its gradient scaled by some factor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longarc.errors import DataError, OptionError
from longarc.objectives.losses.contract import Loss


def gradient_weight(
    loss: Callable[[Tensor, Tensor], Tensor],
    p: Tensor | Sequence[float],
    y: Tensor | Sequence[float],
) -> Tensor:
    """Return the factor by which a loss scales cross-entropy's gradient, (n,) in float64.

    With z the logit of "the class is there", cross-entropy has the gradient p − y in z. The factor
    of a loss L is w = (∂L/∂z) / (p − y): 1 for cross-entropy; 0 where L has nothing to say; above 1
    where L pulls harder; negative where it pulls the other way.

    How the n points become a batch:

    - For single-label losses there are two classes, and class 1 is the class: the logits are
      (log(1 − p), log p), (n, 2), and the target is the class index y. So ``class_counts`` has two
      entries, [others, the class].
    - For multi-label losses (those with a true ``multi_label``) there is one label, C = 1: the
      logits are log(p / (1 − p)), (n, 1), the target is y, (n, 1), and ``class_counts`` has one
      entry. The mean over the labels is then no division.

    **The points are one batch.** To a loss whose examples depend on each other, such as
    ``F1WeightedCrossEntropy``, they are each other's company: choose them accordingly. The loss is
    the batch's sum, so w does not depend on n otherwise.

    Args:
        loss: a ``Loss``, whose own reduction does not matter; or any other module or function of
            logits and target that returns a sum, or a loss for each example, such as
            ``torch.nn.CrossEntropyLoss(reduction="sum")``. Set ``multi_label = True`` on one that
            is for multi-label examples. It is called once; a module is copied first, so that its
            running statistics stay as they are, and the copy computes in float64 on the CPU.
        p: (n,) probabilities of the class, between 0 and 1 exclusive.
        y: (n,) whether the class is there: 0, 1, or between for soft labels.

    Raises:
        DataError: shapes that differ or are not (n,); a p outside (0, 1); a y outside [0, 1]; p
            equal to y, where cross-entropy has no gradient to compare with.
        OptionError: a module of another library with ``reduction="mean"``.

    >>> from longarc.objectives.losses.class_weighted import ClassWeightedLoss
    >>> gradient_weight(ClassWeightedLoss([90, 10]), [0.1, 0.9, 0.1, 0.9], [0, 0, 1, 1])
    tensor([0.5556, 0.5556, 5.0000, 5.0000], dtype=torch.float64)
    >>> from longarc.objectives.losses.focal import FocalLoss
    >>> gradient_weight(FocalLoss(gamma=2), [0.1, 0.9], [1, 1])  # hard, and already right
    tensor([1.2245, 0.0290], dtype=torch.float64)
    """
    p, y = _points(p, y)
    multi_label = bool(getattr(loss, "multi_label", False))
    call: Any = loss
    if isinstance(loss, nn.Module):
        if not isinstance(loss, Loss) and getattr(loss, "reduction", None) == "mean":
            raise OptionError(
                f"{type(loss).__name__} has reduction='mean', which divides the gradient by the "
                "number of points. Give it reduction='sum'."
            )
        call = copy.deepcopy(loss).to("cpu", torch.float64)
    with torch.enable_grad():
        log_p, log_rest = p.log(), torch.log1p(-p)
        if multi_label:
            logits, target = (log_p - log_rest)[:, None], y[:, None]
        else:
            logits = torch.stack([log_rest, log_p], dim=1)
            is_hard = bool(((y == 0) | (y == 1)).all())
            target = y.long() if is_hard else torch.stack([1 - y, y], dim=1)
        logits.requires_grad_()
        options = {"reduction": "sum"} if isinstance(loss, Loss) else {}
        (gradient,) = torch.autograd.grad(call(logits, target, **options).sum(), logits)
    return gradient[:, -1] / (p - y) + 0.0  # where the gradient is 0, no −0


def _points(p: Any, y: Any) -> tuple[Tensor, Tensor]:
    points = [torch.as_tensor(v).detach().to("cpu", torch.float64) for v in (p, y)]
    shapes = [tuple(v.shape) for v in points]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise DataError(
            f"p has shape {shapes[0]} and y {shapes[1]}; expected (n,) for both: a probability and "
            "a label for each point."
        )
    p, y = points
    for name, values, wrong, expected in (
        ("p", p, ~((p > 0) & (p < 1)), "probabilities lie between 0 and 1, both excluded"),
        ("y", y, ~((y >= 0) & (y <= 1)), "labels are 0, 1 or between"),
        ("p", p, p == y, "that is y too, and there cross-entropy has no gradient to compare with"),
    ):
        if bool(wrong.any()):
            at = int(wrong.int().argmax())
            raise DataError(f"{name} has {float(values[at]):g} at point {at}; {expected}.")
    return p, y
