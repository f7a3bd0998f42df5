"""How far the search for a learning rate goes. Free of torch."""

from __future__ import annotations

from longarc.errors import OptionError
from longarc.options import check_number, check_whole

CANDIDATES = 5
"""Rates tried: three across the range, then two beside the best, some 2.4 times apart."""

FRACTION = 0.2
"""Of the run's steps, in each short run: five of them cost what the run costs."""


def check_search(candidates: int, fraction: float) -> None:
    """Raise OptionError for less than one candidate, or a fraction that is not in (0, 1].

    >>> check_search(5, 0.2)
    """
    check_whole("candidates", candidates, at_least=1)
    if not 0 < check_number("fraction", fraction) <= 1:
        raise OptionError(f"fraction is {fraction:g}: expected a number above 0 and up to 1.")
