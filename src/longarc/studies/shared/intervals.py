"""How sure a mean over few seeds is."""

from __future__ import annotations

import math
from collections.abc import Sequence


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the values and half the width of its 95 % interval by Student's t; 0 of one value.

    >>> interval([1.0, 2.0, 3.0])
    (2.0, 2.48...)
    """
    from scipy.stats import t

    n = len(values)
    mean = float(sum(values)) / n
    if n < 2:
        return mean, 0.0
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, float(t.ppf(0.975, n - 1)) * math.sqrt(variance / n)
