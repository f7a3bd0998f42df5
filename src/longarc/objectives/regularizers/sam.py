"""SAM: the gradient at the worst weights nearby, which leads to flat minima."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.utils import get_total_norm

from longarc.errors import OptionError
from longarc.objectives.regularizers.contract import Regularizer
from longarc.options import check_number

if TYPE_CHECKING:
    from longarc.objectives.regularizers.step import Step


class SAM(Regularizer):
    r"""Sharpness-aware minimisation: descend with the gradient from a step uphill.

    .. math:: \nabla L(\theta + \rho\, g / \|g\|), \qquad g = \nabla L(\theta)

    It costs one more forward and backward pass, or a ``fraction`` of one.

    Args:
        rho: ρ, the length of the step uphill; 0.05 as in the paper.
        fraction: of each batch's documents that g is computed from. A quarter gives a noisier
            direction at a quarter of the cost.

    Raises:
        OptionError: an option out of range.

    Foret et al. 2021, “Sharpness-Aware Minimization for Efficiently Improving Generalization”,
    equations 2–3. The loss that is reported is that at θ; with a fraction, that of the part.

    >>> SAM(fraction=0.25).rho
    0.05
    """

    def __init__(self, rho: float = 0.05, fraction: float = 1.0):
        self.rho = check_number("rho", rho)
        self.fraction = check_number("fraction", fraction)
        if not 0 < self.fraction <= 1:
            raise OptionError(f"fraction must be above 0 and at most 1; found {fraction!r}.")

    def step(self, sweep: Callable[[], Tensor], step: Step) -> Tensor:
        """The gradient uphill."""
        with step.on_part(self.fraction):
            loss = sweep()
        uphill = step.gradients
        length = get_total_norm(uphill)
        if not 0 < length < float("inf"):  # nothing to climb, or float16 overflowed: skip the step
            return loss if self.fraction == 1 else sweep()
        with step.moved(uphill, self.rho / length):
            return sweep()
