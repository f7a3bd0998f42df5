"""A loss as the textbook writes it, in Python floats: what the contract suite compares with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Row = list[float]

#: ``(z, t, counts, num_examples, options)`` of one example → its loss and its weight in the mean.
Example = Callable[[Row, Row, list[int], int, dict[str, Any]], tuple[float, float]]

#: The same of a whole batch, row by row, for a loss whose examples depend on each other.
Batch = Callable[[list[Row], list[Row], list[int], int, dict[str, Any]], list[tuple[float, float]]]


@dataclass(frozen=True)
class Textbook:
    """The formula for each kind of labels that the loss is for.

    ``single`` and ``multi`` are of type ``Example``, or ``Batch`` where ``whole_batch``;
    ``variants`` are the options to test with, ``multi_variants`` more of them for multi-label
    examples. ``detached``: a factor counts as a constant, so the gradient is not the value's.
    ``at_worst``: of a bounded loss, what the worst of certain answers must cost at least.
    """

    single: Any = None
    multi: Any = None
    variants: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    multi_variants: list[dict[str, Any]] = field(default_factory=list)
    whole_batch: bool = False
    detached: bool = False
    at_worst: float | None = None


def softmax(z: Row) -> Row:
    total = sum(math.exp(value) for value in z)
    return [math.exp(value) / total for value in z]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))
