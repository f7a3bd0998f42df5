"""The gradient penalty that a finite learning rate adds to the loss by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longarc.dynamics.replay import buffers_kept, replayed
from longarc.errors import ModelError
from longarc.options import check_number


@dataclass(frozen=True)
class ImplicitRegularization:
    """What a step of size γ adds to the loss L of a batch, g being L's gradient in the weights.

    ``squared_gradient_norm`` is ‖g‖², ``penalty`` (γ/4) ‖g‖², in the unit of the loss.
    """

    loss: float
    squared_gradient_norm: float
    penalty: float

    @property
    def ratio(self) -> float:
        """Penalty over loss; nan where the loss is 0."""
        return self.penalty / self.loss if self.loss else math.nan


def implicit_regularization(
    model: nn.Module,
    batch: Any,
    lr: float,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
) -> ImplicitRegularization:
    """Return the penalty (γ/4) ‖g‖² that gradient descent with step γ adds to the loss.

    θ ← θ − γ g goes in straight lines where the flow θ' = −g bends. To first order in γ the points
    it visits lie on the flow of ∇( L + (γ/4) ‖g‖² ) instead (``modified_flow`` has that flow, and
    the next order): a step size is a gradient penalty, and this is how large it is. Where its ratio
    to the loss is far below 1, a smaller step would have led to much the same place.

    What it means for the optimizers in use:

    - **SGD**, batches in random order: after an epoch the mean path follows L + (γ/4) E‖g_batch‖²,
      the mean over the batches of what this returns for each. That is larger than the penalty of
      all examples at once by the variance of the batches' gradients (Smith et al. 2021).
    - **Momentum** β: the penalty is (1 + β) / (1 − β)² times as large, 190 times for 0.9; give
      ``lr`` that factor (Ghosh et al. 2023).
    - **Adam** does not descend that field, and the number is not what its step size adds. Its own
      correction is in the one-norm of the gradient, and has the opposite sign for β₂ > β₁, as
      usual: it holds the one-norm up (Cattaneo et al. 2024). Read ‖g‖² alone then.

    The approximation is one for steps below the stability limit, γ < 2/λ_max, and for losses with a
    second derivative: a ReLU's kinks, which g jumps at, are not in it.

    Args:
        model: any module; left as it is, ``.grad``, buffers and the random state included. It is
            used in the mode it is in: in training mode dropout makes the result that of one draw.
        batch: what the loss takes, on the model's device. By default the keyword arguments of a
            Hugging Face model, labels among them.
        lr: γ, the learning rate.
        loss: a function of model and batch that returns the batch's mean loss, a scalar. By default
            ``model(**batch).loss``.

    Raises:
        OptionError: an lr that is negative or not finite.
        ModelError: no weight requires a gradient; the model returns no loss, or one that is not a
            scalar or does not depend on the weights.

    Sources: Barrett & Dherin 2021, "Implicit Gradient Regularization" (arXiv 2009.11162); Smith et
    al. 2021 (arXiv 2101.12176); Ghosh et al. 2023 (arXiv 2302.00849); Cattaneo et al. 2024 (arXiv
    2309.00079).

    >>> model = nn.Linear(1, 1, bias=False)
    >>> nn.init.constant_(model.weight, 3.0).item()
    3.0
    >>> def loss(model, x):  # of the weight w: w² x² / 2
    ...     return model(x).square().mean() / 2
    >>> implicit_regularization(model, torch.tensor([[1.0]]), lr=0.1, loss=loss)
    ImplicitRegularization(loss=4.5, squared_gradient_norm=9.0, penalty=0.225)
    """
    lr = check_number("lr", lr)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ModelError(
            f"No weight of this {type(model).__name__} requires a gradient, so there is none to "
            "measure. Unfreeze what training would move."
        )
    call = loss_of_output if loss is None else loss
    with buffers_kept(model), torch.enable_grad():
        value = replayed(lambda: call(model, batch), weights)()
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                f"The loss is {found}; expected a scalar tensor that depends on the weights: the "
                "batch's mean, not detached."
            )
        gradients = torch.autograd.grad(value.sum(), weights, allow_unused=True)
    norms = [
        torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
        for g in gradients
        if g is not None
    ]
    squared = sum(float(norm) ** 2 for norm in norms)
    return ImplicitRegularization(float(value.detach()), squared, lr / 4 * squared)


def loss_of_output(model: nn.Module, batch: Any) -> Any:
    """``model(**batch).loss``, or a ModelError that says what is missing."""
    if not hasattr(batch, "keys"):
        raise ModelError(
            f"The batch is a {type(batch).__name__}; without a loss it has to be a mapping, the "
            "keyword arguments of the model. Or give loss=, a function of model and batch."
        )
    value = getattr(model(**batch), "loss", None)
    if value is None:
        raise ModelError(
            f"{type(model).__name__} returned no loss. Put labels into the batch, found "
            f"{', '.join(map(str, batch.keys()))}; or give loss=, a function of model and batch."
        )
    return value
