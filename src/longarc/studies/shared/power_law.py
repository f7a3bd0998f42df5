"""The order in which an error shrinks with a step."""

from __future__ import annotations

import math
from collections.abc import Sequence


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y against log x, by least squares.

    >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    u, v = ([math.log(value) for value in values] for values in (x, y))
    middle = sum(u) / len(u)
    return sum((a - middle) * b for a, b in zip(u, v, strict=True)) / sum(
        (a - middle) ** 2 for a in u
    )
