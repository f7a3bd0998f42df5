"""PGD: the loss at the worst embeddings that several projected steps find."""

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


class PGD(Regularizer):
    r"""Adversarial training by several gradient steps in a ball around the token embeddings.

    .. math:: L(e) + w\, L(e + r_K), \qquad
              r_{k+1} = \Pi_\epsilon\big( r_k + \alpha\, g(r_k) / \|g(r_k)\| \big), \quad r_0 = 0

    for each document, Π the projection on the ball of radius ε. The steps before the last need the
    gradient of the embeddings alone. With one step of α ≥ ε it is :class:`FGM`.

    Args:
        epsilon: radius of the ball over a document's tokens, as in ``FGM``.
        step_size: α.
        steps: K.
        weight: of the second term.

    Raises:
        OptionError: an option out of range.

    Madry et al. 2018, “Towards Deep Learning Models Resistant to Adversarial Attacks”, equation 2.1
    and section 2.1, with steps along the normalised gradient.

    >>> PGD(steps=2).steps
    2
    """

    uses_embeddings = True
    uses_gradient = True

    def __init__(
        self, epsilon: float = 0.2, step_size: float = 0.1, steps: int = 3, weight: float = 1.0
    ):
        self.epsilon = check_number("epsilon", epsilon)
        self.step_size = check_number("step_size", step_size)
        self.steps = check_whole("steps", steps, at_least=1)
        self.weight = check_number("weight", weight)

    def terms(self, batch: Batch) -> Iterator[Tensor]:
        """The loss at the end of the steps."""
        gradient, change = batch.gradient, torch.zeros_like(batch.gradient)
        for step in range(self.steps):
            if step:
                change.requires_grad_()
                gradient = batch.slope(batch.share(batch.probe(change)), change)
            change = within(change.detach() + self.step_size * unit(gradient), self.epsilon)
        yield self.weight * batch.share(batch.logits(change))
