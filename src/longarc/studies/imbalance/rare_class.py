"""The case of the imbalance study: one class in ten, and every probability that it can get."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.gradient_view import gradient_weight
from longarc.objectives.losses.registry import build_loss

RARE, NUM_EXAMPLES = 100, 1000

#: (99,) the probabilities looked at, 0.01 to 0.99.
GRID = torch.arange(1, 100, dtype=torch.float64) / 100

#: Examples without the class for each one that has it.
OTHERS = (NUM_EXAMPLES - RARE) // RARE

#: (990,) the batch: the grid once for examples of the class, nine times for the others.
P = GRID.repeat(1 + OTHERS)
Y = torch.cat([torch.ones_like(GRID), torch.zeros_like(GRID).repeat(OTHERS)])


def build_for_rare_class(name: str, *, multi_label: bool, **options: Any) -> Loss:
    """Build a loss by name for the rare class: the second of two, or the only label.

    >>> build_for_rare_class("class-weighted", multi_label=False).class_weights()
    tensor([0.5556, 5.0000])
    """
    return build_loss(
        name,
        class_counts=[RARE] if multi_label else [NUM_EXAMPLES - RARE, RARE],
        num_examples=NUM_EXAMPLES,
        multi_label=multi_label,
        options=options,
    )


def rare_class_weights(loss: Loss) -> tuple[Tensor, Tensor]:
    """Return a loss's gradient weights over ``GRID`` with the class and without, (99,) each.

    >>> loss = build_for_rare_class("soft-accuracy", multi_label=True)
    >>> present, absent = rare_class_weights(loss)
    >>> present[9], absent[9]  # at p = 0.1
    (tensor(0.1000, dtype=torch.float64), tensor(0.9000, dtype=torch.float64))
    """
    weights = gradient_weight(loss, P, Y)
    return weights[: len(GRID)], weights[len(GRID) : 2 * len(GRID)]
