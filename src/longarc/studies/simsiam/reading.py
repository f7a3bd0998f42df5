"""What the findings read off the runs, and how they write it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from longarc.studies.shared.intervals import interval
from longarc.studies.simsiam.measured import Measured, Runs
from longarc.studies.simsiam.runs import Outcome


def compared(
    measured: Measured,
    name: str,
    other: str | dict[str, str],
    *,
    more: bool | None,
    by: Literal["knn", "probe"] = "knn",
) -> tuple[str, bool]:
    """What was measured, and whether it is more, less, or (None) no less, by the interval."""
    said, right = [], []
    for runs in measured.materials:
        rival = other if isinstance(other, str) else other[runs.material.name]
        ours, theirs = values_of(runs, name, by), values_of(runs, rival, by)
        if len(theirs) == 1:  # the inputs are the same from every start
            theirs = theirs * len(ours)
        mean, half = interval([a - b for a, b in zip(ours, theirs, strict=True)])
        said.append(
            f"{runs.material.name}: {interval(ours)[0]:.1%} against {interval(theirs)[0]:.1%}, "
            f"{mean:+.1%} ± {half:.1%}"
        )
        right.append({True: mean > half, False: mean < -half, None: mean >= -half}[more])
    return "; ".join(said), all(right)


def rate_ratio(outcome: Outcome) -> float:
    """Geometric mean of predictor's over encoder's rate, over the first half of the steps."""
    half = outcome.rates[: max(1, len(outcome.rates) // 2)]
    logs = [math.log(phi / theta) for phi, theta in half if phi > 0 and theta > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def outcomes_of(measured: Measured, names: Sequence[str]) -> list[Outcome]:
    """The runs of these variants, on both materials."""
    return [o for runs in measured.materials for name in names for o in runs.outcomes[name]]


def values_of(runs: Runs, name: str, value: str) -> list[float]:
    """An attribute of each of a variant's runs."""
    return [getattr(outcome, value) for outcome in runs.outcomes[name]]


def end_spreads(runs: Runs, name: str) -> list[float]:
    """The spread at the end of each of a variant's runs."""
    return values_of(runs, name, "end_spread")


def mean_knn(runs: Runs, name: str) -> float:
    """A variant's mean accuracy of nearest neighbours."""
    return interval(values_of(runs, name, "knn"))[0]


def mean_loss(runs: Runs, name: str) -> float:
    """A variant's mean last loss."""
    return interval([o.loss[-1] for o in runs.outcomes[name]])[0]


def written_spreads(measured: Measured, name: str) -> str:
    """A variant's spread at the end on each material, with its interval."""
    each = [(runs.material.name, *interval(end_spreads(runs, name))) for runs in measured.materials]
    return ", ".join(f"{data} {mean:.3f} ± {half:.3f}" for data, mean, half in each)


def span(values: Sequence[float]) -> str:
    """Least and greatest, or the one value.

    >>> span([0.12345, 2.0]), span([3]), span([])
    ('0.123 … 2', '3', 'none')
    """
    if not values:
        return "none"
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} … {high}"


def pair(values: tuple[float, float]) -> str:
    """Both, to four decimals."""
    return f"({values[0]:.4f}, {values[1]:.4f})"


def quoted(names: Sequence[str]) -> str:
    """The names, in quotation marks."""
    return ", ".join(f"“{name}”" for name in names)
