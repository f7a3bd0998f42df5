"""Gradient descent on the two-parameter model a·b, and the flows it is said to follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longarc.dynamics.modified_flow import ORDERS, gradient_descent, modified_flow
from longarc.studies.shared.power_law import slope

TARGET = 0.6


@dataclass(frozen=True)
class Start:
    """Where to start from, (a, b), and what is measured from there.

    Orders are measured within the time ``time``; the path that is drawn has ``drawn`` steps of
    ``lr``.
    """

    a: float
    b: float
    time: float
    lr: float
    drawn: int

    @property
    def point(self) -> Tensor:
        """(2,) float64."""
        return torch.tensor([self.a, self.b], dtype=torch.float64)

    @property
    def name(self) -> str:
        """As people write it."""
        return f"({self.a:g}, {self.b:g})"


STARTS = (
    Start(2.8, 3.5, time=0.4, lr=0.025, drawn=60),
    Start(75.0, 74.925, time=5e-4, lr=5e-5, drawn=12_000),
)


@dataclass(frozen=True)
class Followed:
    """How far gradient descent is from the flow of each order, for each step size.

    ``errors[order][i]`` is the largest distance on the way, with steps of ``sizes[i]``. ``paths``
    are those of gradient descent and the flows at ``start.lr``, (drawn + 1, 2).
    """

    start: Start
    sizes: list[float]
    errors: dict[int, list[float]]
    paths: dict[str, Tensor]

    def slope(self, order: int) -> float:
        """Slope of log error against log γ, by least squares."""
        return slope(self.sizes, self.errors[order])

    def sharpness(self, path: str) -> float:
        """Largest second derivative where a path ends: a² + b² in a minimum."""
        a, b = self.paths[path][-1].tolist()
        return a * a + b * b


def product_loss(weights: Tensor) -> Tensor:
    """(0.6 − a b)² / 2 of weights (a, b): y = a·b·x at x = 1, y = 0.6."""
    a, b = weights
    return (TARGET - a * b).square() / 2


def path_name(order: int) -> str:
    """What the flow of an order is called."""
    return ("gradient flow", "modified flow", "modified flow, second order")[order]


def follow(start: Start, numbers: Sequence[int]) -> Followed:
    """Walk and flow from a start, in so many steps each, and once at its learning rate."""
    errors: dict[int, list[float]] = {order: [] for order in ORDERS}
    sizes = [start.time / number for number in numbers]
    for lr, number in zip(sizes, numbers, strict=True):
        walked = gradient_descent(product_loss, start.point, lr, number)
        for order in ORDERS:
            flowed = modified_flow(product_loss, start.point, lr, number, order=order)
            errors[order].append(float((walked - flowed).norm(dim=1).max()))
    paths = {"gradient descent": gradient_descent(product_loss, start.point, start.lr, start.drawn)}
    for order in ORDERS:
        paths[path_name(order)] = modified_flow(
            product_loss, start.point, start.lr, start.drawn, order=order
        )
    return Followed(start, sizes, errors, paths)
