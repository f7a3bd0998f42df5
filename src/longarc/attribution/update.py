"""How an optimizer's update depends on the gradients: linear, its second moments taken as given.

With gradient g_t (after clipping), momentum μ, gain a and step sizes s_t (a vector for Adam),

m_t = μ m_{t−1} + a g_t,   θ_{t+1} = θ_t − s_t ⊙ m_t − c_t θ_t,

where c_t = lr λ is decoupled decay; coupled decay adds λθ_t to g_t. For Adam μ = β₁, a = 1 − β₁ and
s_t = lr_t / ((1 − β₁^t)(√v̂_t + ε)); for SGD s_t = lr_t, and with Nesterov's momentum the update is
s_t ⊙ (g_t + μ m_t). Adam's t is the parameter's own: steps without a gradient do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longarc.errors import OptionError


@dataclass(frozen=True)
class SecondMoments:
    """How Adam's step sizes depend on v: s = reach / (√(v / unbias) + ε), v' = β₂ v + (1 − β₂) g².

    Attributes:
        beta2: β₂.
        unbias: 1 − β₂^t.
        reach: lr / (1 − β₁^t).
        eps: ε.
    """

    beta2: float
    unbias: float
    reach: float
    eps: float


@dataclass(frozen=True)
class Update:
    """One parameter's coefficients in one step; ``scale`` is s_t, a tensor or a number.

    ``second`` says what Adam's ``scale`` was made of; None for SGD.
    """

    scale: Tensor | float
    momentum: float
    gain: float
    nesterov: bool
    decoupled: float
    coupled: float
    second: SecondMoments | None = None


def updates(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    fresh: set[str],
) -> dict[str, Update]:
    """The coefficients of the step that the optimizer has just made, for what it has moved.

    ``fresh`` names the parameters that had no state before: SGD's first momentum is the gradient.
    Parameters without a gradient, which the step left alone, are missing.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    found: dict[str, Update] = {}
    for group in optimizer.param_groups:
        if group.get("maximize"):
            raise OptionError(
                "the recorded training maximised its loss; expected one that it minimised."
            )
        for parameter in group["params"]:
            if parameter.grad is not None:
                name = names[parameter]
                if isinstance(optimizer, torch.optim.SGD):
                    found[name] = _sgd(group, name in fresh)
                else:
                    found[name] = _adam(group, optimizer.state[parameter])
    return found


def without_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> set[str]:
    """The parameters that no step has reached yet."""
    return {
        name
        for name, parameter in parameters.items()
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is None
    }


def _sgd(group: dict, fresh: bool) -> Update:
    momentum = group["momentum"]
    return Update(
        scale=float(group["lr"]),
        momentum=momentum,
        gain=1.0 if fresh or not momentum else 1 - group["dampening"],
        nesterov=group["nesterov"],
        decoupled=0.0,
        coupled=group["weight_decay"],
    )


def _adam(group: dict, state: dict[str, Tensor]) -> Update:
    (beta1, beta2), step = group["betas"], float(state["step"])
    rate, decay = float(group["lr"]), group["weight_decay"]
    second = SecondMoments(beta2, 1 - beta2**step, rate / (1 - beta1**step), group["eps"])
    square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    root = (square / second.unbias).sqrt_().add_(second.eps)
    decoupled = group.get("decoupled_weight_decay", False)
    return Update(
        scale=root.reciprocal_().mul_(second.reach),
        momentum=beta1,
        gain=1 - beta1,
        nesterov=False,
        decoupled=rate * decay if decoupled else 0.0,
        coupled=0.0 if decoupled else decay,
        second=second,
    )
