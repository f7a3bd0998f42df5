"""The figures that the claims on recurrent cells are about: lists, one number a seed.

Legend: every list has the runs in the order of their seeds, so that two lists are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from longarc.studies.rnn.gradients import Look
from longarc.studies.rnn.measured import Measured
from longarc.studies.rnn.readers import Outcome
from longarc.studies.rnn.texts import Reading
from longarc.studies.shared.intervals import interval
from longarc.studies.shared.long_tailed_tuning import figures

SOLVED = 0.9
"""The score from which an exercise counts as learnt."""


def during(look: Look, outcome: Outcome, *, weighted: bool = False) -> float:
    """The mean carry in the steps from after the symbol to the end: those that have to keep it."""
    carry = look.carried if weighted else look.carry
    kept = carry[outcome.exercise.place + 1 :]
    return sum(kept) / len(kept)


def before(look: Look, outcome: Outcome, *, weighted: bool = False) -> float:
    """The mean carry in the steps before the symbol, but the first, which has nothing to keep."""
    carry = look.carried if weighted else look.carry
    kept = carry[1 : outcome.exercise.place]
    return sum(kept) / len(kept)


def distances(measured: Measured) -> list[int]:
    """Those at which something has to be kept."""
    return [d for d in measured.size.recall[1] if d]


def gating(measured: Measured, cell: str, *, weighted: bool = False) -> list[float]:
    """Carry after the symbol minus before it, by seed: a mean over the distances."""
    return _by_seed(
        [
            [
                during(o.last, o, weighted=weighted) - before(o.last, o, weighted=weighted)
                for o in measured.recall[cell][distance]
            ]
            for distance in distances(measured)
        ]
    )


def need(measured: Measured, cell: str) -> list[float]:
    """Carry after the symbol minus that of the same steps where nothing is to be kept, by seed."""
    rows = []
    for distance in distances(measured):
        row = []
        pairs = zip(measured.recall[cell][distance], measured.recall[cell][0], strict=True)
        for with_memory, without in pairs:
            place = with_memory.exercise.place
            # Without the last step, at which the other one has its symbol.
            kept, other = (o.last.carry[place + 1 : -1] for o in (with_memory, without))
            row.append(sum(a - b for a, b in zip(kept, other, strict=True)) / len(kept))
        rows.append(row)
    return _by_seed(rows)


def left(measured: Measured, cell: str, distance: int) -> list[float]:
    """1 − carry after the symbol, weighted by the gradient that passes, by seed."""
    runs = measured.recall[cell][distance]
    return [1 - during(o.last, o, weighted=True) for o in runs]


def scores(runs: Sequence[Outcome]) -> list[float]:
    """What each run ended at."""
    return [run.score for run in runs]


def over_scales(measured: Measured, variant: str) -> list[float]:
    """The mean score over the scales of the start, by seed."""
    return _by_seed([scores(runs) for runs in measured.starts[variant].values()])


def growth_range(measured: Measured, variant: str) -> list[float]:
    """How much the growth of the gradient a step, in nats, differs over the scales, by seed."""
    by_scale = [
        [finite(run.first.growth) for run in runs] for runs in measured.starts[variant].values()
    ]
    return [max(each) - min(each) for each in zip(*by_scale, strict=True)]


def rest(measured: Measured, variant: str) -> list[float]:
    """Log of the norm of all terms but the carry at the start, by seed: a mean over the scales."""
    return _by_seed(
        [
            [math.log(run.first.sizes["rest"]) for run in runs]
            for runs in measured.starts[variant].values()
        ]
    )


def carry_ahead(measured: Measured, cell: str, step: int) -> list[float]:
    """Log of the carry's norm over that of all other terms, by seed, on the farthest exercise."""
    runs = measured.recall[cell][measured.size.farthest.distance]
    sizes = [run.looks[step].sizes for run in runs]
    return [math.log(each["kept"] / each["rest"]) for each in sizes]


def carry_share(measured: Measured, cell: str, step: int) -> list[float]:
    """The carry's share of what a step sends back, by seed, on the farthest exercise."""
    runs = measured.recall[cell][measured.size.farthest.distance]
    return [run.looks[step].terms["carry"] for run in runs]


def accuracies(reading: Reading, cell: str) -> list[float]:
    """Accuracy on the test documents, by seed."""
    return [figures(reading.task, run.given)["accuracy"] for run in reading.runs[cell]]


def far(reading: Reading, cell: str, *, trained: bool) -> list[float]:
    """The share of dL/dU that crossed half the longest document or more, by seed."""
    found = []
    for run in reading.runs[cell]:
        look = run.last if trained else run.first
        assert look is not None
        found.append(look.beyond(len(look.parameters) // 2))
    return found


def less(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Differences of pairs."""
    return [a - b for a, b in zip(one, other, strict=True)]


def finite(growth: float) -> float:
    """A rate of growth, −10 where all has vanished at once, or nothing is a number any more."""
    return max(growth, -10.0) if math.isfinite(growth) else -10.0


def told(values: Sequence[float], form: str = "+.3f") -> str:
    """A mean with half its 95 % interval.

    >>> told([1.0, 2.0, 3.0], ".1f")
    '2.0 ± 2.5'
    """
    mean, half = interval(values)
    return f"{mean:{form}} ± {half:{form.lstrip('+')}}"


def above(values: Sequence[float], bound: float = 0.0) -> bool:
    """Whether the 95 % interval of the mean lies above ``bound``."""
    mean, half = interval(values)
    return mean - half > bound


def _by_seed(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(each) / len(each) for each in zip(*rows, strict=True)]
