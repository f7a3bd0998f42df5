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

    .. math:: L + \lambda\, \mathrm{mean}_i\, h( \| v_i \| ), \quad v_i = \nabla_{e_i} \ell_i, \quad
              h(s) = \begin{cases} s^2 & s \le \delta \\ 2 \delta s - \delta^2 & s > \delta
              \end{cases}

    with the loss ℓ_i of each document, its weight included, and its token embeddings e_i. The mean
    divides as the loss's does. h is Huber's function: a head whose logits are large has gradients a
    hundred times as long as a new one's, and their squares would be all that training sees. The
    penalty's gradient comes from a step of at most ε δ along v_i, at the cost of one more pass:

    .. math:: \nabla_\theta h( \| v_i \| ) \approx
              \tfrac 2 \epsilon \big( \nabla_\theta \ell_i(e_i + \epsilon c_i v_i) -
              \nabla_\theta \ell_i(e_i) \big), \qquad c_i = \min(1, \delta / \| v_i \|)

    Args:
        weight: λ.
        method: ``"finite-difference"``, or ``"double-backward"`` as the exact reference, slower and
            in need of attention that can be differentiated twice.
        epsilon: ε.
        delta: δ, the length from which the penalty grows no faster than the gradient. A token's
            vector has a length of about 1, and with the default ε no step is longer than 0.05, for
            which the difference is a derivative. A large δ, with a smaller ε, gives Drucker and
            LeCun's squares.

    Raises:
        OptionError: an option out of range.

    Drucker & LeCun 1992, “Improving Generalization Performance Using Double Backpropagation”; Huber
    1964, “Robust Estimation of a Location Parameter”.

    >>> InputGradientPenalty(weight=0.1).method
    'finite-difference'
    """

    uses_embeddings = True
    uses_gradient = True

    def __init__(
        self,
        weight: float = 0.1,
        method: str = "finite-difference",
        epsilon: float = 0.1,
        delta: float = 0.5,
    ):
        self.weight = check_number("weight", weight)
        self.method = check_choice("method", method, METHODS)
        self.epsilon = check_number("epsilon", epsilon, at_least=1e-6)
        self.delta = check_number("delta", delta, at_least=1e-6)

    @property
    def plain_weight(self) -> float:
        """The difference takes of L what it adds at the changed embeddings."""
        return -2 * self.weight / self.epsilon if self.method == "finite-difference" else 0.0

    def terms(self, batch: Batch) -> Iterator[Tensor]:
        """The difference of losses, or the penalty itself."""
        if self.method == "finite-difference":
            slope = batch.gradient / batch.per_loss  # of each document's own loss
            length = slope.flatten(1).norm(dim=1)
            change = slope * (self.delta / length.clamp(min=self.delta))[:, None, None]
            moved = batch.share(batch.logits(self.epsilon * change))
            difference = 2 * self.weight / self.epsilon * moved
            # With what is taken of L it is 2λ‖cv‖‖v‖, whose gradient at a fixed cv is that of λh.
            surplus = length.clamp(max=self.delta).square().sum()
            yield difference - self.weight * surplus * batch.per_loss
            return
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            change = batch.no_change()
            share = batch.share(batch.logits(change))
            (found,) = torch.autograd.grad(share, change, create_graph=True)
            slope = found * batch.may_change / batch.per_loss
            yield self.weight * self._huber(slope).sum() * batch.per_loss

    def _huber(self, slope: Tensor) -> Tensor:
        """Of each document (b,), from slopes (b, n, d)."""
        squared = slope.square().sum((1, 2))
        beyond = squared > self.delta**2
        length = torch.where(beyond, squared, 1.0).sqrt()  # no root of 0, whose slope is infinite
        return torch.where(beyond, 2 * self.delta * length - self.delta**2, squared)
