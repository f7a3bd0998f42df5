"""A penalty on the gradient of the weights: what a finite learning rate does unasked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm

from longarc.errors import OptionError
from longarc.objectives.regularizers.contract import Regularizer
from longarc.options import check_choice, check_number

if TYPE_CHECKING:
    from longarc.objectives.regularizers.step import Step

METHODS = ("finite-difference", "double-backward")

LONGEST = 0.05
"""Of the step uphill: SAM's usual radius, and enough for bfloat16. A head whose logits are large
has a gradient a thousand times as long as a new one's, and ε g would lead to another place."""


class GradientPenalty(Regularizer):
    r"""Prefer weights at which the loss is flat: L + λ‖∇L‖², the gradient that of the whole step.

    Gradient descent with steps γ follows the flow of L + (γ/4)‖∇L‖² (Barrett & Dherin 2021); here
    the penalty has a weight of its own, beside the small steps that fine-tuning takes. Its gradient
    2λ H g comes from a step uphill, at the cost of one more pass forward and backward:

    .. math:: H g \approx \big( g(\theta + \epsilon g) - g(\theta) \big) / \epsilon

    Args:
        weight: λ, in units of one over the loss.
        method: ``"finite-difference"``, or ``"double-backward"`` as the exact reference: slower, in
            need of attention that can be differentiated twice, and of the plain loss alone.
        epsilon: ε, less where the step ε ‖g‖ would be longer than ``LONGEST``. Karakida et al. 2023
            find that large ones generalise better, and they survive bfloat16 better when the loss
            has become small.
        warmup: part of the training over which λ rises from 0. With Adam a penalty from the start
            can hurt (Zhao et al. 2024, arXiv 2406.09723).

    Raises:
        OptionError: an option out of range; the reference beside other regularizers, in a step.

    Barrett & Dherin 2021, “Implicit Gradient Regularization”, equation 6 and section 6; Karakida et
    al. 2023, “Understanding Gradient Regularization in Deep Learning”, equation 5.

    >>> penalty = GradientPenalty(weight=0.1, warmup=0.5)
    >>> penalty.set_progress(0.25)
    >>> penalty.present_weight
    0.05
    """

    def __init__(
        self,
        weight: float = 0.01,
        method: str = "finite-difference",
        epsilon: float = 0.01,
        warmup: float = 0.1,
    ):
        self.weight = check_number("weight", weight)
        self.method = check_choice("method", method, METHODS)
        self.epsilon = check_number("epsilon", epsilon, at_least=1e-8)
        self.warmup = check_number("warmup", warmup)
        if self.warmup > 1:
            raise OptionError(f"warmup is a part of the training, at most 1; found {warmup!r}.")
        self.progress = 1.0

    def set_progress(self, fraction: float) -> None:
        """Set the part of the training that is done, 0 to 1; without it the weight is full."""
        self.progress = fraction

    @property
    def stands_alone(self) -> bool:
        """The reference differentiates the plain loss only."""
        return self.method == "double-backward"

    @property
    def present_weight(self) -> float:
        """λ at this point of the training."""
        return self.weight * min(1.0, self.progress / self.warmup if self.warmup else 1.0)

    def step(self, sweep: Callable[[], Tensor], step: Step) -> Tensor:
        """Add 2λ H g to the gradient."""
        weight, loss = self.present_weight, sweep()
        gradient = step.gradients
        length = get_total_norm(gradient)
        if weight == 0 or not length.isfinite():
            return loss
        if self.method == "double-backward":
            curved = self._exact(step, gradient)
        else:
            epsilon = min(self.epsilon, LONGEST / max(float(length), 1e-30))
            with step.moved(gradient, epsilon):
                sweep()
            curved = [(u - g) / epsilon for u, g in zip(step.gradients, gradient, strict=True)]
        step.gradients = [g + 2 * weight * c for g, c in zip(gradient, curved, strict=True)]
        return loss + weight * length**2

    def _exact(self, step: Step, gradient: list[Tensor]) -> list[Tensor]:
        curved = [torch.zeros_like(w) for w in step.weights]
        for batch in step.batches:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                share = batch.share(batch.probe())
                first = torch.autograd.grad(
                    share, step.weights, create_graph=True, allow_unused=True
                )
                pairs = zip(first, gradient, strict=True)
                along = torch.stack([(f * g).sum() for f, g in pairs if f is not None]).sum()
                second = torch.autograd.grad(along, step.weights, allow_unused=True)
            for total, part in zip(curved, second, strict=True):
                if part is not None:
                    total += part
        return [step.surroundings.mean(c) for c in curved]
