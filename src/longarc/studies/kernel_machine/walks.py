"""Gradient descent on digits, and its end value rebuilt from kernels along the way.

S networks are trained side by side; f are the logits of Q images that they were not trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vjp
from torch.nn import functional

from longarc.attribution.quadrature import gauss
from longarc.studies.shared.digits_networks import (
    Digits,
    draw_digits,
    logits,
    slope_at,
    start_weights,
)

RULES = {
    "start of the step": ((0.0, 1.0),),
    "middle": tuple(gauss(1)),
    "two points": tuple(gauss(2)),
}
"""Where on a step ∇f is taken, with which weights. The first is the tangent kernel at θ_t."""

ORDERS = {"start of the step": 1, "middle": 2, "two points": 4}
"""In which power of γ the rebuilt value errs, by the theory of quadrature."""


@dataclass(frozen=True)
class Walked:
    """What one learning rate gave, each of S networks.

    ``missing`` has for each rule the error of f_T rebuilt, as a share of |f_T − f_0|; ``constant``
    that with one weight for each example; ``agreeing`` is how often this machine and the network
    name the same digit; ``accuracy`` are the network's and this machine's.
    """

    rate: float
    loss: Tensor
    missing: dict[str, Tensor]
    constant: Tensor
    agreeing: Tensor
    accuracy: tuple[Tensor, Tensor]


def digits_of(seeds: int, train: int, queries: int) -> Digits:
    """Digits in float64, with ``queries`` of the others to ask about."""
    drawn = draw_digits(seeds, train, 0.0)
    return Digits(
        drawn.x.double(), drawn.y, drawn.test_x[:, :queries].double(), drawn.test_y[:, :queries]
    )


def walk(
    rate: float, time: float, digits: Digits, advance: Callable[[], object] = lambda: None
) -> Walked:
    """Take ``time / rate`` steps, adding up what each moves f by, and walk them once more."""
    steps = round(time / rate)
    start = start_weights(len(digits.x)).double()
    f_start = logits(start, digits.test_x)
    rebuilt = {rule: f_start.clone() for rule in RULES}
    weights, support = start, torch.zeros(())
    for _ in range(steps):
        moved = -rate * slope_at(weights, digits).gradient
        support = support + rate * pulls(weights, digits)
        for rule, nodes in RULES.items():
            for place, share in nodes:
                rebuilt[rule] += share * _along(weights + place * moved, moved, digits.test_x)
        weights = weights + moved
    advance()
    f_end, loss = logits(weights, digits.test_x), slope_at(weights, digits).loss
    machine = f_start + _constant(start, support / steps, rate, steps, digits)
    advance()
    size = (f_end - f_start).abs().mean((1, 2))
    said, told = f_end.argmax(2), machine.argmax(2)
    return Walked(
        rate,
        loss,
        {rule: (value - f_end).abs().mean((1, 2)) / size for rule, value in rebuilt.items()},
        (machine - f_end).abs().mean((1, 2)) / size,
        (said == told).double().mean(1),
        tuple((who == digits.test_y).double().mean(1) for who in (said, told)),  # pyright: ignore[reportArgumentType]
    )


def pulls(weights: Tensor, digits: Digits) -> Tensor:
    """α = −∂ℓ_i/∂f (S, N, C), of the mean loss."""
    scores = logits(weights, digits.x)
    truth = functional.one_hot(digits.y, scores.shape[2]).to(scores)
    return (truth - scores.softmax(2)) / digits.x.shape[1]


def _along(weights: Tensor, moved: Tensor, x: Tensor) -> Tensor:
    """⟨∇f(x), Δ⟩ for all logits of all images, (S, Q, C)."""
    return jvp(lambda w: logits(w, x), (weights,), (moved,))[1]


def _constant(start: Tensor, support: Tensor, rate: float, steps: int, digits: Digits) -> Tensor:
    """Σ_i ᾱ_i K(x, x_i), K the sum over the path: the network with one weight an example."""
    weights, found = start, torch.zeros(())
    for _ in range(steps):
        moved = -rate * slope_at(weights, digits).gradient
        back = vjp(lambda w: logits(w, digits.x), weights)[1]
        (pulled,) = back(support)
        found = found + _along(weights + moved / 2, pulled, digits.test_x)
        weights = weights + moved
    return found
