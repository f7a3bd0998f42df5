"""A penalty on the gradient of the token embeddings, adversarial training's close relative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from longarc.objectives.regularizers.contract import Regularizer
from longarc.objectives.regularizers.gradient_penalty import METHODS
from longarc.options import check_choice, check_number

if TYPE_CHECKING:
    from longarc.objectives.regularizers.batch import Batch


class InputGradientPenalty(Regularizer):
    r"""Prefer predictions that small changes of the input leave alone.

    .. math:: L + \lambda\, \mathrm{mean}_i\, \| \nabla_{e_i} \ell_i \|^2

    with the loss ℓ_i of each document, its weight included, and its token embeddings e_i. The mean
    divides as the loss's does. The penalty's gradient comes from a step along v_i = ∇ℓ_i, at the
    cost of one more pass:

    .. math:: \nabla_\theta \| v_i \|^2 \approx
              \tfrac 2 \epsilon \big( \nabla_\theta \ell_i(e_i + \epsilon v_i) -
              \nabla_\theta \ell_i(e_i) \big)

    Args:
        weight: λ.
        method: ``"finite-difference"``, or ``"double-backward"`` as the exact reference, slower and
            in need of attention that can be differentiated twice.
        epsilon: ε.

    Raises:
        OptionError: an option out of range.

    Drucker & LeCun 1992, “Improving Generalization Performance Using Double Backpropagation”.

    >>> InputGradientPenalty(weight=0.1).method
    'finite-difference'
    """

    uses_embeddings = True
    uses_gradient = True

    def __init__(
        self, weight: float = 0.1, method: str = "finite-difference", epsilon: float = 0.1
    ):
        self.weight = check_number("weight", weight)
        self.method = check_choice("method", method, METHODS)
        self.epsilon = check_number("epsilon", epsilon, at_least=1e-6)

    @property
    def plain_weight(self) -> float:
        """The difference takes of L what it adds at the changed embeddings."""
        return -2 * self.weight / self.epsilon if self.method == "finite-difference" else 0.0

    def terms(self, batch: Batch) -> Iterator[Tensor]:
        """The difference of losses, or the penalty itself."""
        if self.method == "finite-difference":
            slope = batch.gradient / batch.per_loss  # of each document's own loss
            moved = batch.share(batch.logits(self.epsilon * slope))
            difference = 2 * self.weight / self.epsilon * moved
            # With what is taken of L it is 2λ‖v‖², whose gradient at a fixed v is that of λ‖v‖².
            yield difference - self.weight * slope.square().sum() * batch.per_loss
            return
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            change = batch.no_change()
            share = batch.share(batch.logits(change))
            (found,) = torch.autograd.grad(share, change, create_graph=True)
            slope = found * batch.may_change / batch.per_loss
            yield self.weight * slope.square().sum() * batch.per_loss
