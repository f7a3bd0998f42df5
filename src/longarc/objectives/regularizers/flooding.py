"""Flooding: a training loss that is kept from falling below a level."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longarc.objectives.regularizers.contract import Regularizer
from longarc.options import check_flag, check_number

if TYPE_CHECKING:
    from longarc.objectives.regularizers.step import Step


class Flooding(Regularizer):
    r"""Descent above a level of the loss, ascent below it.

    .. math:: | L - b | + b

    has the gradient ±∇L. Around the level the steps alternate, and a step down with a step up adds
    to −γ² H g = −½ γ² ∇‖∇L‖²: flooding goes on by lowering the gradient (``longarc study
    learning-rate`` measures it). It costs nothing.

    Args:
        level: b, in the units of the loss. Between the loss that the model can reach in training
            and that on new documents.
        per_example: take ``|ℓ_i − b| + b`` of each document's loss instead of the step's mean.

    Raises:
        OptionError: an option out of range.

    With other regularizers, L includes all of their terms, and what those before it make of the
    whole step.

    Ishida et al. 2020, “Do We Need Zero Training Loss After Achieving Zero Training Error?”,
    equation 3; for each document: Xie et al. 2022, “iFlood”.

    >>> flooding = Flooding(level=0.1, per_example=True)
    >>> flooding.example_losses(torch.tensor([0.5, 0.02]))
    tensor([0.5000, 0.1800])
    """

    def __init__(self, level: float = 0.1, per_example: bool = False):
        self.level = check_number("level", level)
        self.per_example = check_flag("per_example", per_example)

    @property
    def sums_over_documents(self) -> bool:
        """If it is for each document."""
        return self.per_example

    def example_losses(self, losses: Tensor) -> Tensor:
        """The flooded losses (k,), if it is for each document."""
        return (losses - self.level).abs() + self.level if self.per_example else losses

    def step(self, sweep: Callable[[], Tensor], step: Step) -> Tensor:
        """Turn the gradient round below the level."""
        loss = sweep()
        if self.per_example:
            return loss
        if loss < self.level:
            for weight in step.weights:
                if weight.grad is not None:
                    weight.grad.neg_()
        return torch.abs(loss - self.level) + self.level
