"""Focal loss at γ = 0.5 and saturated logits: whether value and gradient are finite, and right.

    pip install torchvision segmentation-models-pytorch balanced-loss
    python benchmarks/focal_safety.py

(1 − p)^0.5 has an infinite slope at p = 1, so a formula that is right on paper gives 0 · ∞ = NaN in
the gradient as soon as p rounds to 1. Each library's focal loss for single labels (two classes
where it has only a sigmoid) gets one example with the logits ±z, once right and once wrong, for
growing z in float32. The reference is the same formula with 200 digits, by its closed form; "right"
is within a hundredth of it, or of float32's smallest number.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
from collections.abc import Callable
from decimal import Decimal, getcontext

import torch
from torch import Tensor

from longarc.objectives.losses.focal import FocalLoss
from rows import append_row

GAMMA = 0.5
SIZES = (1.0, 10.0, 20.0, 50.0, 100.0, 1e4)


def main() -> None:
    """Append a row for each library, with what went wrong at each size."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    try:
        libraries = losses()
    except ImportError as error:
        print(
            f"skipped: {error}. pip install torchvision segmentation-models-pytorch balanced-loss"
        )
        return
    for name, loss in libraries.items():
        found = {f"±{z:g}": verdict(loss, z) for z in SIZES}
        version = importlib.metadata.version(name)
        append_row(
            "focal-safety", system=name, version=version, gamma=GAMMA, dtype="float32", **found
        )


def losses() -> dict[str, Callable[[Tensor, int], Tensor]]:
    """Each library's focal loss of one label with a logit, as a function of logit and label."""
    from balanced_loss import Loss as BalancedLoss
    from segmentation_models_pytorch.losses import FocalLoss as SegmentationFocal
    from torchvision.ops import sigmoid_focal_loss

    ours = FocalLoss(gamma=GAMMA, multi_label=True, reduction="sum")
    segmentation = SegmentationFocal("binary", gamma=GAMMA, reduction="sum")
    # It divides by the positive labels and has a row of two classes: once positive, once negative.
    balanced = BalancedLoss("focal_loss", fl_gamma=GAMMA)

    def balanced_binary(z: Tensor, y: int) -> Tensor:
        return balanced(torch.stack([-z, z], dim=1), torch.tensor([y])) / 2

    return {
        "longarc": lambda z, y: ours(z[:, None], torch.tensor([[float(y)]])),
        "torchvision": lambda z, y: sigmoid_focal_loss(
            z, torch.tensor([float(y)]), alpha=-1, gamma=GAMMA, reduction="sum"
        ),
        "segmentation-models-pytorch": lambda z, y: segmentation(z, torch.tensor([y])),
        "balanced-loss": balanced_binary,
    }


def verdict(loss: Callable[[Tensor, int], Tensor], size: float) -> str:
    """Return "right", or what is wrong with value or gradient, for the label and its opposite."""
    problems = []
    for y, what in ((1, "right"), (0, "wrong")):
        z = torch.tensor([size], requires_grad=True)
        value = loss(z, y)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        expected = reference(size, y)
        found = (value.item(), gradient.item())
        for part, actual, true in zip(("value", "gradient"), found, expected, strict=True):
            if not math.isfinite(actual):
                problems.append(f"{part} {actual} where certain and {what}")
            elif abs(actual - true) > 0.01 * abs(true) + torch.finfo(torch.float32).tiny:
                problems.append(f"{part} {actual:.3g} for {true:.3g} where certain and {what}")
    return "; ".join(problems) or "right"


def reference(size: float, y: int) -> tuple[float, float]:
    """The focal loss of label y at logit z and its derivative in z, from 200 digits."""
    getcontext().prec = 200
    z, gamma = Decimal(size), Decimal(GAMMA)
    odds = (-z if y else z).exp()  # (1 − p_t) / p_t
    p, rest = 1 / (1 + odds), odds / (1 + odds)
    value = -(rest**gamma) * p.ln()
    # d/ds of −(1 − p)^γ log p, s the logit of the true label: (1 − p)^γ (γ p log p − (1 − p)).
    slope = rest**gamma * (gamma * p * p.ln() - rest)
    return float(value), float(slope if y else -slope)


if __name__ == "__main__":
    main()
