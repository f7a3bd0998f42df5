"""All that the study of kernel machines measures."""

from __future__ import annotations

from dataclasses import dataclass

from longarc.studies.kernel_machine import ledger, neighbours
from longarc.studies.kernel_machine.exactness import UPDATES, residuals
from longarc.studies.kernel_machine.walks import Walked, digits_of, walk
from longarc.training.progress import Reporter


@dataclass(frozen=True)
class Size:
    """How much is computed: ``few_seeds`` of the neighbours, ``seeds`` of all else.

    ``rates`` are learning rates for the time ``time``, ``images`` to train on and ``queries`` to
    ask about for the walks, ``exact`` steps, images and queries of the exactness of all updates.
    """

    seeds: int
    few_seeds: int
    rates: tuple[float, ...]
    time: float
    images: int
    queries: int
    exact: tuple[int, int, int]
    ledger: ledger.LedgerSize
    neighbours: neighbours.NeighbourSize


@dataclass(frozen=True)
class Measured:
    """Walks by rate, residuals by kind of update, and one entry a seed of the rest."""

    size: Size
    walks: list[Walked]
    residuals: dict[str, float]
    binary: list[ledger.Binary]
    found: list[neighbours.Found]


def measure(size: Size, reporter: Reporter) -> Measured:
    """Measure all that the study has findings on."""
    digits = digits_of(size.seeds, size.images, size.queries)
    with reporter.task("walks", 2 * len(size.rates)) as advance:
        walks = [walk(rate, size.time, digits, advance) for rate in size.rates]
    with reporter.task("every kind of update", len(UPDATES)) as advance:
        missing = residuals(*size.exact, advance)
    with reporter.task("ledger and support vectors", 4 * size.seeds) as advance:
        binary = [ledger.try_seed(size.ledger, seed, advance) for seed in range(size.seeds)]
    with reporter.task("neighbours", 3 * size.few_seeds) as advance:
        found = [
            neighbours.try_seed(size.neighbours, seed, advance) for seed in range(size.few_seeds)
        ]
    return Measured(size, walks, missing, binary, found)
