"""The books of one query while a sweep goes back over the path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longarc.attribution.explanation import Explanation


@dataclass
class Account:
    """What has been added up so far, and how exactly the query's segments are integrated.

    Attributes:
        initial: the query's value at the start.
        final: at the end.
        budget: of the error of a segment.
        rung: the rule of :data:`~longarc.attribution.quadrature.NODES` to begin with.
        values: before and after the step in hand.
    """

    initial: float
    final: float
    budget: float
    contributions: np.ndarray
    steps: np.ndarray
    decay: float = 0.0
    elsewhere: float = 0.0
    quadrature: float = 0.0
    within: bool = True
    rung: int = 0
    values: tuple[float, float] = (0.0, 0.0)

    @staticmethod
    def open(
        values: np.ndarray, tolerance: float, *, steps: int, documents: int, rounding: float
    ) -> Account:
        """Books of a query with these values at the snapshots and at the end."""
        moved = float(np.abs(np.diff(values)).sum())
        largest = max(1.0, float(np.abs(values).max()))
        return Account(
            initial=float(values[0]),
            final=float(values[-1]),
            budget=max(tolerance * moved / max(steps, 1), rounding * largest),
            contributions=np.zeros(documents),
            steps=np.zeros(steps),
        )

    def enough(self, rung: int, error: float, last: float) -> bool:
        """Whether a rule with this error serves, or more nodes would not help."""
        if abs(error) <= self.budget:
            # A rule far better than needed may be too good for the next step.
            self.rung = max(rung - 1, 0) if abs(error) < 1e-2 * self.budget else rung
            return True
        if abs(error) > 0.7 * last and rung - self.rung >= 3:
            self.within = False  # what is left is rounding, or a kink
            return True
        return False

    def explanation(self, name: str, labels: Sequence[str] | None) -> Explanation:
        """The books, closed."""
        return Explanation(
            name=name,
            initial=self.initial,
            final=self.final,
            contributions=self.contributions,
            steps=self.steps,
            decay=self.decay,
            elsewhere=self.elsewhere,
            quadrature=self.quadrature,
            tolerance=self.budget * max(len(self.steps), 1),
            within=self.within,
            labels=labels,
        )
