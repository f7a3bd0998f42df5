"""Trainings on digits to one training loss, by learning rate, explicit penalty and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD, Adam, Optimizer

from longarc.studies.learning_rate.product import Start
from longarc.studies.shared.digits_networks import (
    Activation,
    Digits,
    Slope,
    accuracy,
    draw_digits,
    penalised_slope_at,
    slope_at,
    start_weights,
)

WRONG = 0.2  # of the labels, where some are wrong
NOISE = 0.2  # relative, of the weights
SETTLE = 1.5  # times the final loss: from there on all walk alike


@dataclass(frozen=True)
class Size:
    """How much is trained.

    ``starts`` and ``numbers`` of steps are for two weights, all else is of digits. ``levels`` are
    the final losses, with all labels right and with some wrong; ``limit`` the most steps that a
    training takes. ``penalties`` are tried at the smallest rate. ``follow`` and ``follow_time`` are
    the rates and the time for which explicit penalties have to lead to the same weights.
    ``flood_*`` belong to flooding: its level, rates, and steps at the level.
    """

    starts: tuple[Start, ...]
    numbers: tuple[int, ...]
    seeds: int
    train: int
    levels: tuple[float, float]
    limit: int
    rates: tuple[float, ...]
    penalties: tuple[float, ...]
    adam_rates: tuple[float, ...]
    follow: tuple[float, ...]
    follow_time: float
    flood_level: float
    flood_rates: tuple[float, ...]
    flood_steps: int


@dataclass(frozen=True)
class Setting:
    """One way to train: labels right or ``wrong`` in part; λ; Adam if it has a ``beta2``."""

    wrong: bool
    rate: float
    penalty: float = 0.0
    beta2: float | None = None

    def optimizer(self, weights: Tensor) -> Optimizer:
        """Gradient descent, or Adam with β₁ = 0.9."""
        if self.beta2 is None:
            return SGD([weights], self.rate)
        return Adam([weights], self.rate, betas=(0.9, self.beta2), foreach=False)


@dataclass(frozen=True)
class Trial:
    """What a setting gave, (S,) each.

    ``rises`` is the share of steps that raised the loss, ``arrived`` the slope where the loss first
    was at 1.5 times its final value, ``settled`` that at the end; ``accuracy`` and ``robust`` are
    of the test images, without and with noise on the weights.
    """

    setting: Setting
    steps: Tensor
    rises: Tensor
    arrived: Slope
    settled: Slope
    accuracy: Tensor
    robust: Tensor


@dataclass(frozen=True)
class Walk:
    """Where a training first was at a loss: weights (S, P), steps (S,), share of rises (S,)."""

    weights: Tensor
    steps: Tensor
    rises: Tensor


def settings(size: Size) -> list[Setting]:
    """All that is trained, the smallest rate first in each group."""
    plain = [Setting(wrong, rate) for wrong in (True, False) for rate in size.rates]
    penalised = [Setting(True, size.rates[0], penalty) for penalty in size.penalties]
    adam = [
        Setting(wrong, rate, beta2=beta2)
        for wrong in (True, False)
        for beta2 in (0.999, 0.9)
        for rate in size.adam_rates
    ]
    return [*plain, *penalised, *adam]


def try_settings(size: Size, advance: Callable[[], object]) -> list[Trial]:
    """Train every setting from the same weights on the same images."""
    data = {wrong: draw_digits(size.seeds, size.train, WRONG * wrong) for wrong in (False, True)}
    trials = []
    for setting in settings(size):
        trials.append(train(setting, data[setting.wrong], size))
        advance()
    return trials


def train(setting: Setting, digits: Digits, size: Size) -> Trial:
    """Train to 1.5 times the final loss as the setting says, the rest at the smallest rate.

    The common end takes the bouncing of a large rate away, so that places are compared, not phases
    of an oscillation.
    """
    level = size.levels[setting.wrong]
    first = walk(
        start_weights(len(digits.x)),
        digits,
        setting.optimizer,
        SETTLE * level,
        size.limit,
        penalty=setting.penalty,
    )
    plain = Setting(setting.wrong, size.rates[0])
    last = walk(first.weights, digits, plain.optimizer, level, size.limit)
    return Trial(
        setting,
        first.steps,
        first.rises,
        slope_at(first.weights, digits),
        slope_at(last.weights, digits),
        accuracy(last.weights, digits),
        accuracy(last.weights, digits, NOISE),
    )


def walk(
    start: Tensor,
    digits: Digits,
    optimizer_of: Callable[[Tensor], Optimizer],
    level: float,
    limit: int,
    *,
    penalty: float = 0.0,
) -> Walk:
    """Train until every network was at the level, and return each where it first was.

    One that is not there after ``limit`` steps is returned as it is then.
    """
    weights = start.clone().requires_grad_()
    optimizer = optimizer_of(weights)
    found = start
    there = torch.zeros(len(start), dtype=torch.bool)
    steps, rises = torch.zeros(len(start)), torch.zeros(len(start))
    before = torch.full((len(start),), torch.inf)
    for _ in range(limit):
        if penalty:
            slope, weights.grad = penalised_slope_at(weights, digits, penalty)
        else:
            slope = slope_at(weights, digits)
            weights.grad = slope.gradient
        rises += ~there & (slope.loss > before)
        arriving = ~there & (slope.loss <= level)
        found = torch.where(arriving[:, None], weights.detach(), found)
        there |= arriving
        if bool(there.all()):
            break
        steps += ~there
        before = slope.loss
        optimizer.step()
    found = torch.where(there[:, None], found, weights.detach())
    return Walk(found, steps, rises / steps.clamp(min=1))


def unexplained(
    size: Size, activation: Activation = functional.gelu
) -> dict[float, tuple[float, Tensor]]:
    """How much of what a larger rate changes an explicit penalty does not account for.

    For each rate γ of ``size.follow``: the distance between the weights that γ and γ/4 lead to in
    the same time, a mean over the seeds; and the share (S,) of it that is left when γ/4 has the
    penalty (γ − γ/4) / 4.
    """
    digits = draw_digits(size.seeds, size.train, WRONG)
    found = {}
    for rate in size.follow:
        small = rate / 4
        large = go(digits, rate, size.follow_time, activation)
        apart = (large - go(digits, small, size.follow_time, activation)).norm(dim=1)
        explicit = go(digits, small, size.follow_time, activation, penalty=(rate - small) / 4)
        found[rate] = (float(apart.mean()), (large - explicit).norm(dim=1) / apart)
    return found


def go(
    digits: Digits, rate: float, time: float, activation: Activation, *, penalty: float = 0.0
) -> Tensor:
    """Weights (S, P) after the time ``time``, rate × steps, of gradient descent."""
    weights = start_weights(len(digits.x))
    for _ in range(round(time / rate)):
        if penalty:
            _, gradient = penalised_slope_at(weights, digits, penalty, activation)
        else:
            gradient = slope_at(weights, digits, activation).gradient
        weights = weights - rate * gradient
    return weights


def of(trials: Sequence[Trial], **wanted: object) -> list[Trial]:
    """Trials whose setting has these values, in the order of their rates and penalties.

    >>> of([], wrong=True)
    []
    """
    return [t for t in trials if all(getattr(t.setting, k) == v for k, v in wanted.items())]
