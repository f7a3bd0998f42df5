"""SimSiam in two numbers: l = ½ (φθ − θ)², φ the predictor and θ the encoder.

Gradient flow, with the gradient of θ through h = φθ, through the target t = θ, or through both.
Every case has an invariant, from which follows where it ends:

    both branches:      θ² − (1 − φ)² / r
    the first only:     θ² − φ² / r        (the stop-gradient)
    the second only:    θ² + 2 φ / r

r is how many times faster the predictor moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Branches = Literal["first", "both", "second"]

START = (0.6, 0.1)


@dataclass(frozen=True)
class Flow:
    """Times, φ and θ of one trajectory."""

    branches: Branches
    times: list[float]
    phi: list[float]
    theta: list[float]


def velocity(
    phi: float, theta: float, branches: Branches, speed: float = 1.0
) -> tuple[float, float]:
    """Return dφ/dt and dθ/dt.

    >>> velocity(0.5, 2.0, "both")
    (2.0, -0.5)
    """
    pull = phi * theta - theta  # ∂l/∂h, and −∂l/∂t
    through_h, through_t = -pull * phi, pull
    theta_moves = {"first": through_h, "both": through_h + through_t, "second": through_t}
    return -speed * pull * theta, theta_moves[branches]


def flow(
    branches: Branches, *, speed: float = 1.0, until: float = 400.0, step: float = 0.05
) -> Flow:
    """Follow the gradient flow from ``START`` by Runge and Kutta's method of fourth order."""
    phi, theta = START
    times, phis, thetas = [0.0], [phi], [theta]
    for i in range(round(until / step)):
        ways: list[tuple[float, float]] = []
        for part in (0.0, 0.5, 0.5, 1.0):
            last = ways[-1] if ways else (0.0, 0.0)
            at = phi + part * step * last[0], theta + part * step * last[1]
            ways.append(velocity(*at, branches, speed))
        phi, theta = (
            value + step / 6 * (a + 2 * b + 2 * c + d)
            for value, a, b, c, d in zip((phi, theta), *ways, strict=True)
        )
        times.append((i + 1) * step)
        phis.append(phi)
        thetas.append(theta)
    return Flow(branches, times, phis, thetas)


def end(branches: Branches, speed: float = 1.0) -> tuple[float, float]:
    """Return where φ and θ end, by the invariants: at φ = 1 if θ lasts until then, else at θ = 0.

    >>> end("first")
    (1.0, 0.806...)
    >>> end("both")
    (0.612..., 0.0)
    """
    phi, theta = START
    if branches == "first":
        return 1.0, math.sqrt(theta**2 + (1 - phi**2) / speed)
    if branches == "both":
        left = theta**2 - (1 - phi) ** 2 / speed
        return (1.0, math.sqrt(left)) if left >= 0 else (1 - math.sqrt(-left * speed), 0.0)
    left = theta**2 - 2 * (1 - phi) / speed
    return (1.0, math.sqrt(left)) if left >= 0 else (phi + speed * theta**2 / 2, 0.0)


def least_speed() -> float:
    """Return the r above which θ survives without the stop-gradient: (1 − φ)² / θ² at the start.

    >>> least_speed()
    16.0...
    """
    phi, theta = START
    return ((1 - phi) / theta) ** 2
