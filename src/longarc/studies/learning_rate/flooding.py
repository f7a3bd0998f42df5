"""Flooding, |L − b| + b: what alternating descent and ascent near the level b does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD

from longarc.studies.learning_rate.runs import NOISE, WRONG, Size, walk
from longarc.studies.shared.digits_networks import (
    Digits,
    accuracy,
    draw_digits,
    losses,
    slope_at,
    start_weights,
)
from longarc.studies.shared.power_law import slope

PAIR_RATES = (0.1, 0.05, 0.025, 0.0125)


@dataclass(frozen=True)
class Pair:
    """One step down and one up, of size γ: how far they lead, by γ of ``PAIR_RATES``.

    ``moved`` is the length of the displacement, ``missed`` its distance from −γ² H g.
    """

    moved: list[float]
    missed: list[float]

    @property
    def slopes(self) -> tuple[float, float]:
        """Orders in γ of both."""
        return slope(PAIR_RATES, self.moved), slope(PAIR_RATES, self.missed)


@dataclass(frozen=True)
class Flooded:
    """Trainings at a rate with and without flooding from where the level is first reached.

    ``squared`` are ‖g‖² (steps, S) at the level and of training on; ``losses`` likewise;
    ``accuracy`` and ``robust`` (S,) at first, at the end with flooding, at the end without.
    ``turns`` is the share of steps at the level that go the other way than the one before.
    """

    rate: float
    squared: tuple[Tensor, Tensor]
    losses: tuple[Tensor, Tensor]
    accuracy: tuple[Tensor, ...]
    robust: tuple[Tensor, ...]
    turns: float


def step_down_and_up(size: Size) -> Pair:
    """Measure the displacement on the first network, in float64, where it reaches the level.

    θ − γ g(θ) + γ g(θ − γ g(θ)) = θ − γ² H g + O(γ³), and H g = ½ ∇‖g‖².
    """
    digits = draw_digits(1, size.train, WRONG)
    first = walk(
        start_weights(1),
        digits,
        lambda weights: SGD([weights], size.rates[0]),
        size.flood_level,
        size.limit,
    )
    digits = Digits(digits.x.double(), digits.y, digits.test_x.double(), digits.test_y)
    at = first.weights.double().requires_grad_()
    (g,) = torch.autograd.grad(losses(at, digits).sum(), at, create_graph=True)
    (half,) = torch.autograd.grad(g.square().sum() / 2, at)
    g, at = g.detach(), at.detach()
    moved, missed = [], []
    for rate in PAIR_RATES:
        down = at - rate * g
        displacement = down + rate * slope_at(down, digits).gradient - at
        moved.append(float(displacement.norm()))
        missed.append(float((displacement + rate**2 * half).norm()))
    return Pair(moved, missed)


def flood(size: Size, rate: float, advance: Callable[[], object]) -> Flooded:
    """Train to the level, then ``size.flood_steps`` steps with flooding, and as many without."""
    digits = draw_digits(size.seeds, size.train, WRONG)
    first = walk(
        start_weights(size.seeds),
        digits,
        lambda weights: SGD([weights], rate),
        size.flood_level,
        size.limit,
    ).weights
    flooded, squared, values, signs = _go_on(first, digits, rate, size.flood_level, size)
    advance()
    trained, squared_on, values_on, _ = _go_on(first, digits, rate, 0.0, size)
    advance()
    ends = (first, flooded, trained)
    return Flooded(
        rate,
        (squared, squared_on),
        (values, values_on),
        tuple(accuracy(weights, digits) for weights in ends),
        tuple(accuracy(weights, digits, NOISE) for weights in ends),
        float((signs[1:] != signs[:-1]).float().mean()),
    )


def _go_on(
    weights: Tensor, digits: Digits, rate: float, level: float, size: Size
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights (S, P) after ``size.flood_steps``; ‖g‖², losses and signs (steps, S) on the way."""
    noted = []
    for _ in range(size.flood_steps):
        at = slope_at(weights, digits)
        sign = torch.where(at.loss > level, 1.0, -1.0)
        noted.append(torch.stack([at.squared, at.loss, sign]))
        weights = weights - rate * sign[:, None] * at.gradient
    squared, values, signs = torch.stack(noted, dim=1)
    return weights, squared, values, signs
