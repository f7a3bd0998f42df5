"""FreeLB: the mean loss on the way to the worst embeddings, so that no pass is for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longarc.objectives.regularizers.contract import Regularizer
from longarc.objectives.regularizers.embeddings import unit, within
from longarc.options import check_number, check_whole

if TYPE_CHECKING:
    from longarc.objectives.regularizers.batch import Batch


class FreeLB(Regularizer):
    r"""Adversarial training in which every ascent step also trains the weights.

    .. math:: \frac 1 K \sum_{k<K} L(e + r_k), \qquad
              r_{k+1} = \Pi_\epsilon\big( r_k + \alpha\, g(r_k) / \|g(r_k)\| \big), \quad r_0 = 0

    takes the place of L(e): K forward and backward passes in all. Dropout is the same in each, as
    the paper asks. The paper's other start, a random r₀, would need one more pass.

    Args:
        epsilon: radius of the ball over a document's tokens, as in ``FGM``.
        step_size: α.
        steps: K.

    Raises:
        OptionError: an option out of range.

    Zhu et al. 2020, “FreeLB: Enhanced Adversarial Training for Natural Language Understanding”,
    algorithm 1.

    >>> round(FreeLB(steps=3).plain_weight, 3)  # a third of L is left
    -0.667
    """

    uses_embeddings = True
    uses_gradient = True

    def __init__(self, epsilon: float = 0.2, step_size: float = 0.1, steps: int = 3):
        self.epsilon = check_number("epsilon", epsilon)
        self.step_size = check_number("step_size", step_size)
        self.steps = check_whole("steps", steps, at_least=1)

    @property
    def plain_weight(self) -> float:
        """The pass at r₀ = 0 is one of K."""
        return 1 / self.steps - 1

    def terms(self, batch: Batch) -> Iterator[Tensor]:
        """The losses at r₁ … r_{K−1}."""
        gradient, change = batch.gradient, torch.zeros_like(batch.gradient)
        for _ in range(1, self.steps):
            change = within(change.detach() + self.step_size * unit(gradient), self.epsilon)
            change.requires_grad_()
            yield batch.share(batch.logits(change)) / self.steps
            if change.grad is not None:  # of a positive multiple of L: the direction is the same
                gradient = change.grad * batch.may_change
