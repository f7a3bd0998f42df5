"""The differential equation whose solution gradient descent with a finite step size visits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from longarc.errors import DataError, OptionError
from longarc.options import check_number, check_whole

ORDERS = (0, 1, 2)
RELATIVE, ABSOLUTE = 1e-11, 1e-12  # of the solver


def modified_field(
    loss: Callable[[Tensor], Tensor], lr: float, order: int = 1
) -> Callable[[Tensor], Tensor]:
    """Return the field f with θ' = f(θ) that θ ← θ − γ ∇L(θ) follows, up to γ^order.

    With D = d/dt, a step of size γ along the solution is e^{γD} θ, so (e^{γD} − 1) θ = −γ g and
    θ' = −γD / (e^{γD} − 1) g = −(1 − γD/2 + γ²D²/12 − …) g. Here D g = H θ' and D² g = T[θ', θ'] +
    H θ'', with L's gradient g, Hessian H and third derivative T. Putting θ' = −g − (γ/2) H g and
    θ'' = H g into it,

        f = −g − (γ/2) H g − γ² ( H H g / 3 + T[g, g] / 12 ) − …

    Order 0 is the gradient flow. Order 1 descends L + (γ/4) ‖g‖². Order 2 descends no loss: the
    Jacobian of H H g / 3 + T[g, g] / 12 is not symmetric.

    Args:
        loss: L, a function of the weights (d,) that returns a scalar, as often differentiable as
            order + 1 asks.
        lr: γ, above 0.
        order: 0, 1 or 2.

    Returns:
        A function from weights (d,) to their velocity (d,), both detached.

    Raises:
        OptionError: an lr or an order out of range.

    Source: Hairer, Lubich & Wanner, *Geometric Numerical Integration*, IX.1, for Euler's method.

    >>> field = modified_field(lambda w: w.square().sum() / 2, lr=0.1, order=2)  # L = ‖w‖²/2
    >>> field(torch.tensor([1.0], dtype=torch.float64))  # −(1 + γ/2 + γ²/3)
    tensor([-1.0533], dtype=torch.float64)
    """
    lr = _positive(lr)
    if order not in ORDERS:
        raise OptionError(f"order must be 0, 1 or 2; found {order!r}.")

    def field(weights: Tensor) -> Tensor:
        with torch.enable_grad():
            at = weights.detach().requires_grad_()
            gradient = _gradient(loss(at), at)
            g = gradient.detach()
            if order == 0:
                return -g
            hessian_g = _gradient(gradient @ g, at)
            velocity = -g - lr / 2 * hessian_g.detach()
            if order == 1:
                return velocity
            third = _gradient(hessian_g @ g, at)
            twice = _gradient(gradient @ hessian_g.detach(), at)
            return velocity - lr**2 * (twice / 3 + third / 12).detach()

    return field


def modified_flow(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    lr: float,
    steps: int,
    *,
    order: int = 1,
) -> Tensor:
    """Return where the modified flow is at the times 0, γ, 2γ, … of each step, (steps + 1, d).

    Row k is to be compared with the k-th iterate of ``gradient_descent``. At a given time the two
    differ by O(γ^{order + 1}): order 0, the gradient flow itself, by O(γ). For models of a handful
    of weights: every evaluation takes ``order`` + 1 nested derivatives, and the solver (DOP853 of
    scipy, relative tolerance 1e-11) needs a dozen for each of its steps.

    Args:
        loss: L, a function of weights (d,) that returns a scalar.
        start: (d,) float64 weights.
        lr: γ, above 0. Also the unit of time: order 0 too is given at the times of the steps.
        steps: how many.
        order: as in ``modified_field``.

    Raises:
        DataError: a start that is not (d,) in float64.
        OptionError: an lr, a number of steps or an order out of range; a flow that cannot be
            followed so far, as where γ is too large for the series.

    >>> w = modified_flow(lambda w: w.square().sum() / 2, torch.ones(1).double(), 0.1, 10)
    >>> w[-1]  # e^{−1.05}; gradient descent is at 0.9^10 = 0.3487, the gradient flow at 0.3679
    tensor([0.3499], dtype=torch.float64)
    """
    start, lr, steps = _checked(start, lr, steps)
    field = modified_field(loss, lr, order)
    if steps == 0:
        return start[None].clone()
    from scipy.integrate import solve_ivp

    times = lr * np.arange(steps + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        solved = solve_ivp(
            lambda _, weights: field(torch.from_numpy(weights)).numpy(),
            (0.0, times[-1]), start.numpy(), method="DOP853", t_eval=times,
            rtol=RELATIVE, atol=ABSOLUTE,
        )  # fmt: skip
    if not solved.success or not np.isfinite(solved.y).all():
        reached = solved.t[-1] / lr if len(solved.t) else 0.0
        raise OptionError(
            f"The flow of order {order} cannot be followed beyond step {reached:.0f} of {steps} "
            f"at lr={lr:g}. Use fewer steps, or a smaller lr: the series in γ needs γ λ_max < 1."
        )
    return torch.from_numpy(np.ascontiguousarray(solved.y.T))


def gradient_descent(
    loss: Callable[[Tensor], Tensor], start: Tensor, lr: float, steps: int
) -> Tensor:
    """Return the iterates θ_0 … θ_steps of θ ← θ − γ ∇L(θ), (steps + 1, d).

    Arguments and errors are those of ``modified_flow``.

    >>> gradient_descent(lambda w: w.square().sum() / 2, torch.ones(1).double(), 0.1, 2)
    tensor([[1.0000],
            [0.9000],
            [0.8100]], dtype=torch.float64)
    """
    start, lr, steps = _checked(start, lr, steps)
    field = modified_field(loss, lr, order=0)
    visited = [start]
    for _ in range(steps):
        visited.append(visited[-1] + lr * field(visited[-1]))
    return torch.stack(visited)


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    """The gradient, differentiable; zero where the value no longer depends on the weights."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)
    return gradient


def _positive(lr: float) -> float:
    if check_number("lr", lr) == 0:
        raise OptionError("lr must be above 0: it is the time that a step takes.")
    return float(lr)


def _checked(start: Tensor, lr: float, steps: int) -> tuple[Tensor, float, int]:
    if start.ndim != 1 or start.dtype != torch.float64:
        raise DataError(
            f"start is {tuple(start.shape)} in {start.dtype}; expected (d,) in torch.float64, "
            "since what is looked for is a difference of small powers of the step size."
        )
    return start.detach().cpu(), _positive(lr), check_whole("steps", steps)
