"""From what was measured to a range of learning rates, rates to try in it, and the one to take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longarc.training.learning_rate.stability import Measurement

NEGLIGIBLE = 0.01
"""Part of the loss below which the implicit penalty bends no path: a step is as good as a flow."""

BEARABLE = 0.05
"""Part of what the model knows that a step may cost: next to a minimum most steps overshoot it."""

NARROWEST, WIDEST = 10.0, 1000.0
"""Between the ends of a range: a measurement is no better than the one, a few runs reach no further
than the other."""

APART = 1.25
"""Between two rates that are tried, at least: nearer ones differ by less than their noise."""

TIED = 0.005
"""Macro-F1 by which two short runs differ and still count as equals, at least: half a point."""


@dataclass(frozen=True)
class Range:
    """Learning rates worth trying, and what the ends rest on."""

    low: float
    high: float
    low_why: str
    high_why: str
    negligible: float | None
    """Below it the implicit penalty is negligible; None where no step lowered the loss."""
    unused: float | None
    """Below it the run's steps end before the loss could, even were it to go on falling as fast."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def learning_rate_range(
    measured: Sequence[Measurement], lost: float, budget: float, *, ignorant: float
) -> Range:
    """The range that the steps of a rising warm-up leave.

    **Upper end.** The largest rate whose step was bearable, before the model lost what it knew: the
    step lowered the loss, or raised it by no more than ``BEARABLE`` of the way to ``ignorant``. A
    probe leaves some trainings next to a minimum, where nearly every step overshoots and none does
    harm. If the step was stable, γ < γ_c, the end is γ_c, but not above the next rate that was
    measured: a warm-up to a larger peak would come to harm there.

    **Lower end.** Two rates, of which the larger counts. With u what a step subtracts per unit of
    γ, a step takes γ gᵀu from the loss L. In the metric in which the optimizer descends (held
    still, its preconditioner P makes u = P g) the implicit penalty (γ/4) ‖g‖² is (γ/4) gᵀu: below
    ``NEGLIGIBLE`` of L for γ < 4 · ``NEGLIGIBLE`` · L / gᵀu. And the learning rates of the whole
    run add up to ``budget`` times their peak, so for a peak γ < L / (budget · gᵀu) the loss would
    not reach 0 even were it to fall to the end as fast as now. L / gᵀu is the median over the steps
    that lowered L. The range is at least ``NARROWEST`` and at most ``WIDEST`` wide.

    Args:
        measured: of a rising warm-up, in its order.
        lost: the rate at which the model had lost what it knew; infinite if it never did.
        budget: the sum of the run's learning rates over their peak.
        ignorant: the loss of a model that says the same of every document.

    Sources: Barrett & Dherin 2021, arXiv 2009.11162 (the penalty); Kalra et al. 2026, arXiv
    2601.16979 (γ_c).

    >>> steps = [Measurement(9 - i, 10.0**-i, 2e-3, 1.0, 500.0, 6) for i in (5, 4, 3, 2)]
    >>> found = learning_rate_range(steps, lost=1e-2, budget=50, ignorant=3.0)
    >>> found.high, found.low
    (0.002, 8e-05)
    """
    before = [step for step in measured if step.learning_rate < lost]
    bearable = [
        step
        for step in before
        if step.stable or step.rise <= BEARABLE * max(0.0, ignorant - step.loss)
    ]
    if bearable and bearable[-1].stable:
        later = [step.learning_rate for step in measured if step.step > bearable[-1].step]
        critical, next_one = bearable[-1].critical_learning_rate, min([*later[:1], lost])
        high = min(critical, next_one)
        high_why = "the critical learning rate at the last step that still lowered the loss"
        if next_one < critical:
            high_why = "the rate that was measured after the last step that still lowered the loss"
    elif bearable:
        high = bearable[-1].learning_rate
        high_why = (
            f"the last rate whose step cost under {100 * BEARABLE:g} % of what the model knew"
        )
    else:
        high = measured[0].learning_rate if measured else lost
        high_why = "the rate at which the warm-up began: no step was bearable"
    falling = [step.loss / step.slope for step in before if step.slope > 0 and step.loss > 0]
    times = statistics.median(falling) if falling else None
    negligible = None if times is None else 4 * NEGLIGIBLE * times
    unused = None if times is None else times / budget
    ends = {
        "1/1000 of the upper end": high / WIDEST,
        "below it the implicit gradient penalty is under 1 % of the loss": negligible or 0.0,
        "below it the run would end before the loss could": unused or 0.0,
    }
    low_why = max(ends, key=lambda why: ends[why])
    low = ends[low_why]
    if low > high / NARROWEST:
        low, low_why = (
            high / NARROWEST,
            "a tenth of the upper end, which other bounds come nearer to",
        )
    return Range(low, high, low_why, high_why, negligible, unused)


def spread(low: float, high: float, number: int) -> list[float]:
    """``number`` rates that part a range into equal stretches of the logarithm, the last its end.

    >>> spread(1e-6, 1e-3, 3)
    [1e-05, 0.0001, 0.001]
    """
    step = math.log(high / low) / number
    return [rounded(low * math.exp(step * (i + 1))) for i in range(number)]


def rounded(rate: float) -> float:
    """A rate as it is written down, with two digits.

    >>> rounded(0.000123456)
    0.00012
    """
    return float(f"{rate:.1e}")


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the best macro-F1; of those that may be as good the one with the least loss.

    As good are those within two standard errors of the best, and at least ``TIED``: about where its
    figure would lie in 95 % of draws of validation documents. (One, the rule of Breiman et al. 1984
    for trees, let two documents of rare classes choose a rate whose loss was higher by a seventh.)
    Short runs favour larger rates, and the loss is the first to suffer from them. Rows that
    diverged, with a macro-F1 of None, are never it, unless all have.

    >>> rows = [{"macro_f1": f, "loss": l} for f, l in ((0.8, 0.5), (0.77, 0.4))]
    >>> [best_of([row | {"macro_f1_error": e} for row in rows])["macro_f1"] for e in (0.02, 0.01)]
    [0.77, 0.8]
    """
    sound = [row for row in rows if row["macro_f1"] is not None]
    if not sound:
        return rows[0]
    best = max(sound, key=lambda row: row["macro_f1"])
    margin = max(TIED, 2 * best["macro_f1_error"])
    tied = [row for row in sound if row["macro_f1"] >= best["macro_f1"] - margin]
    return min(tied, key=lambda row: row["loss"])


def next_rate(rows: Sequence[dict[str, Any]], low: float, high: float) -> float | None:
    """Where one more run says most: midway between the best rate and its neighbour.

    Of the two neighbours the one further away, on the logarithm, an end of the range where there is
    none; of equals the better. None where both are within ``APART`` twice.

    >>> rows = [{"learning_rate": r, "macro_f1": f, "macro_f1_error": 0.01, "loss": 1.0}
    ...         for r, f in ((1e-5, 0.7), (1e-4, 0.8), (1e-3, 0.75))]
    >>> next_rate(rows, 1e-6, 1e-3)
    0.00032
    """
    tried = sorted(row["learning_rate"] for row in rows)
    chosen = best_of(rows)["learning_rate"]
    quality = {row["learning_rate"]: row["macro_f1"] or 0.0 for row in rows}
    below = max((rate for rate in tried if rate < chosen), default=low)
    above = min((rate for rate in tried if rate > chosen), default=high)
    sides = {below: chosen / below, above: above / chosen}
    further = max(sides, key=lambda rate: (round(math.log(sides[rate]), 1), quality.get(rate, 0.0)))
    if sides[further] < APART**2:
        return None
    return rounded(math.sqrt(chosen * further))
