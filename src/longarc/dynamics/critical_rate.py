"""The critical learning rate: how far along an update the loss still falls, by forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longarc.dynamics.replay import replayed
from longarc.errors import ModelError, OptionError
from longarc.options import check_number, check_whole

FACTOR = 4.0
"""Between two rates of the geometric search."""


@dataclass(frozen=True)
class CriticalRate:
    """Where the loss along a direction is back at its start.

    >>> CriticalRate(0.5, 0.4, 0.6, ((0.0, 1.0), (0.4, 0.9), (0.6, 1.1))).sharpness
    4.0
    """

    rate: float
    """γ_c; 0 where the loss rises from the first step on, infinite where it never does."""
    below: float
    """The largest rate tried at which the loss was below its start; 0 if there is none."""
    above: float
    """The smallest rate tried at which it was not; infinite if there is none."""
    losses: tuple[tuple[float, float], ...]
    """(rate, loss) of every forward pass, the start first."""

    @property
    def sharpness(self) -> float:
        """Critical sharpness 2 / γ_c, in the unit of an eigenvalue of the Hessian."""
        return 2 / self.rate if self.rate else math.inf

    @property
    def passes(self) -> int:
        """Forward passes that it took."""
        return len(self.losses)


def critical_learning_rate(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    *,
    guess: float,
    tolerance: float = 0.05,
    max_passes: int = 12,
) -> CriticalRate:
    """The smallest γ at which L(θ − γ · direction) is no longer below L(θ).

    For a quadratic loss that is 2 dᵀg / dᵀHd: along the gradient 2 / λ if it is an eigenvector of
    eigenvalue λ, and never below 2 / λ_max, the largest learning rate at which gradient descent is
    stable. With an optimizer's own step as the direction, such as AdamW's, the same is measured in
    the geometry that the optimizer works in. Kalra et al., 2026, arXiv 2601.16979.

    A geometric search brackets γ_c. Inside the bracket the paper halves; here the mean slope
    (L(θ − γd) − L(θ)) / γ is interpolated, which is linear in γ for a quadratic loss, so that one
    interpolation is exact there. With a guess within a factor of 4 it takes 5 or 6 forward passes,
    the start's included, one of them to close the bracket.

    The weights are moved for each pass and are bit for bit the same afterwards; random numbers
    repeat in every pass, so dropout has one mask, and are drawn on from where they were.

    Args:
        loss: evaluates the loss at the present weights; called without gradients.
        parameters: the weights, moved in place.
        direction: what a learning rate of 1 would subtract from each of them.
        guess: where to begin, for example the learning rate in use.
        tolerance: relative, on γ_c.
        max_passes: forward passes after which to stop; the bracket says how far it came.

    Raises:
        ModelError: the loss is not a number at the start.

    >>> theta = torch.tensor([1.0, 0.0])
    >>> found = critical_learning_rate(lambda: 8 * theta[0] ** 2, [theta], [16 * theta], guess=1e-2)
    >>> round(found.rate, 6), round(found.sharpness, 3), theta
    (0.125, 16.0, tensor([1., 0.]))
    """
    check_number("guess", guess)
    check_whole("max_passes", max_passes, at_least=3)
    if not guess > 0:
        raise OptionError("guess is 0: expected a learning rate above 0 to begin with.")
    again = replayed(loss, parameters)
    kept = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def at(rate: float) -> float:
        for parameter, weight, part in zip(parameters, kept, direction, strict=True):
            torch.sub(weight, part, alpha=rate, out=parameter.data)
        return float(again())

    try:
        with torch.no_grad():
            start = float(again())
        if not math.isfinite(start):
            raise ModelError(f"the loss is {start} at the start, so no step can be judged by it.")
        return _search(at, start, guess, tolerance, max_passes)
    finally:
        with torch.no_grad():
            for parameter, weight in zip(parameters, kept, strict=True):
                parameter.data.copy_(weight)


def _search(
    at: Callable[[float], float], start: float, guess: float, tolerance: float, max_passes: int
) -> CriticalRate:
    losses = [(0.0, start)]
    # (rate, mean slope) of the bracket's ends: at the lower the loss is below its start.
    lower: tuple[float, float] | None = None
    upper: tuple[float, float] | None = None
    rate, fell = guess, None
    while True:
        losses.append((rate, at(rate)))
        last = rate, (losses[-1][1] - start) / rate
        falls = last[1] < 0  # not where the loss is not a number
        # The Illinois rule: an end that stays for a second interpolation counts half.
        if falls == fell and lower and upper:
            lower, upper = (lower, _half(upper)) if falls else (_half(lower), upper)
        lower, upper = (last, upper) if falls else (lower, last)
        fell = falls
        if lower and upper:
            found = _root(lower, upper)
            near = upper[0] <= lower[0] * (1 + tolerance) ** 2
        else:
            found, near = (rate * FACTOR if falls else rate / FACTOR), False
        if near or len(losses) == max_passes:
            if not (lower and upper):
                found = math.inf if falls else 0.0
            below = lower[0] if lower else 0.0
            above = upper[0] if upper else math.inf
            return CriticalRate(found, below, above, tuple(losses))
        if lower and upper:  # a little past the root: the bracket closes from the other side too
            found = min(max(found, lower[0] * (1 + tolerance)), upper[0] / (1 + tolerance))
        rate = found


def _half(end: tuple[float, float]) -> tuple[float, float]:
    return end[0], end[1] / 2


def _root(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Where a line through two mean slopes is zero; without such a line, between the rates."""
    if not math.isfinite(one[1] - other[1]) or one[1] == other[1]:
        return math.sqrt(one[0] * other[0])
    return one[0] + (other[0] - one[0]) * one[1] / (one[1] - other[1])
