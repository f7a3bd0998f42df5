"""All that the study of recurrent cells trains and measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from longarc.data.examples import Examples, read_examples
from longarc.data.licenses import read_licenses
from longarc.studies.rnn.bounds import Bounds, find_bounds
from longarc.studies.rnn.exercises import Exercise
from longarc.studies.rnn.readers import CELLS, GATED, Outcome, Start, Training, train
from longarc.studies.rnn.speed import speeds
from longarc.studies.rnn.texts import Reading, read, steps_of
from longarc.studies.shared.long_tailed_tuning import Task, make_task
from longarc.studies.shared.word_windows import Words
from longarc.training.progress import Reporter

NO_BIAS = "lstm, forget bias 0"
VARIANTS = (*CELLS, NO_BIAS)
"""The cells, and the LSTM without the start that longarc gives its forget gate."""

POOLINGS = ("last", "max")


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    ``bounds`` are random cells and steps. Exercises have ``hidden`` units and batches of
    ``batch``. Each cell tries ``rates`` with seed 0 and has the best with others: ``seeds`` for
    ``recall`` (length, distances, steps), for starts at each of ``scales`` (over the farthest
    distance, ``starts`` seeds, ``start_steps``) and for ``add`` (lengths, steps, seeds).
    ``points`` looks are taken in a training. ``texts`` are words, units, tokens, documents to train
    on and to test with, passes and seeds; ``limit`` of the licence texts that are read; ``rounds``
    of the speeds.
    """

    bounds: tuple[int, int]
    hidden: int
    batch: int
    rates: tuple[float, ...]
    recall: tuple[int, tuple[int, ...], int]
    seeds: int
    points: int
    scales: tuple[float, ...]
    starts: int
    start_steps: int
    add: tuple[tuple[int, ...], int, int]
    texts: tuple[int, int, int, int, int, int, int]
    rounds: int
    limit: int | None = None

    @property
    def farthest(self) -> Exercise:
        """What rates are chosen on, starts are compared on and terms are followed on."""
        length, distances, _ = self.recall
        return Exercise("recall", length, max(distances))


@dataclass(frozen=True)
class Measured:
    """What came out, one a seed.

    ``recall`` by cell and distance, ``starts`` by variant and scale, ``add`` by cell and length;
    ``rates`` by kind of exercise and cell.
    """

    size: Size
    bounds: Bounds
    rates: dict[str, dict[str, float]]
    recall: dict[str, dict[int, list[Outcome]]]
    starts: dict[str, dict[float, list[Outcome]]]
    add: dict[str, dict[int, list[Outcome]]]
    readings: list[Reading]
    speeds: dict[str, list[float]]
    device: str


def measure(
    size: Size, tables: tuple[str | Path, str | Path] | None, reporter: Reporter
) -> Measured:
    """Find the bounds, train on both exercises and on texts, and time the cells.

    ``tables`` are one more task of texts, to train on and to test with.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words, tasks = _tasks(size, tables)  # before the training: a wrong table ends it here
    vectors = words.vectors()
    with reporter.task("bounds"):
        bounds = find_bounds(*size.bounds)
    length, distances, steps = size.recall
    lengths, add_steps, add_seeds = size.add
    total = len(size.rates) * len(CELLS) * (steps + add_steps)
    with reporter.task("learning rates", total) as advance:
        rates = {
            "recall": _rates(size, size.farthest, steps, device, advance),
            "add": _rates(size, Exercise("add", lengths[0]), add_steps, device, advance),
        }

    def run(start: Start, exercise: Exercise, count: int, looked: range | tuple[int, ...]):
        training = Training(count, size.batch, size.hidden, rates[exercise.kind][start.cell])
        return train(start, exercise, training, looked=looked, device=device, advance=advance)

    with reporter.task("recall", len(GATED) * len(distances) * size.seeds * steps) as advance:
        looked = points(steps, size.points)
        recall = {
            cell: {
                distance: [
                    run(Start(cell, seed), Exercise("recall", length, distance), steps, looked)
                    for seed in range(1, size.seeds + 1)
                ]
                for distance in distances
            }
            for cell in GATED
        }
    total = len(VARIANTS) * len(size.scales) * size.starts * size.start_steps
    with reporter.task("starts", total) as advance:
        starts = {
            variant: {
                scale: [
                    run(_start(variant, seed, scale), size.farthest, size.start_steps, (0,))
                    for seed in range(1, size.starts + 1)
                ]
                for scale in size.scales
            }
            for variant in VARIANTS
        }
    with reporter.task("add", len(CELLS) * len(lengths) * add_seeds * add_steps) as advance:
        looked = points(add_steps, size.points)
        add = {
            cell: {
                each: [
                    run(Start(cell, seed), Exercise("add", each), add_steps, looked)
                    for seed in range(1, add_seeds + 1)
                ]
                for each in lengths
            }
            for cell in CELLS
        }
    _, hidden, _, _, _, epochs, text_seeds = size.texts
    total = sum(steps_of(task, epochs) for task in tasks) * len(CELLS) * len(POOLINGS) * text_seeds
    with reporter.task("texts", total) as advance:
        readings = [
            Reading(
                task,
                pooling,
                {
                    cell: [
                        read(
                            cell, pooling, task, vectors, hidden=hidden, epochs=epochs, seed=seed,
                            device=device, advance=advance,
                        )
                        for seed in range(1, text_seeds + 1)
                    ]
                    for cell in CELLS
                },
            )
            for task in tasks
            for pooling in POOLINGS
        ]  # fmt: skip
    with reporter.task("speed", size.rounds + 1) as advance:
        timed = speeds(
            size.rounds, batch=size.batch, length=size.texts[2], hidden=hidden, device=device,
            advance=advance,
        )  # fmt: skip
    return Measured(size, bounds, rates, recall, starts, add, readings, timed, device)


def points(steps: int, count: int) -> tuple[int, ...]:
    """The steps of ``count`` looks, the first before any training, the last after all.

    >>> points(100, 5)
    (0, 25, 50, 75, 100)
    """
    return tuple(round(steps * i / (count - 1)) for i in range(count))


def _start(variant: str, seed: int, scale: float) -> Start:
    if variant == NO_BIAS:
        return Start("lstm", seed, scale, forget_bias=0.0)
    return Start(variant, seed, scale)


def _rates(
    size: Size, exercise: Exercise, steps: int, device: str, advance: Callable[[], object]
) -> dict[str, float]:
    """The rate with the best mean score over a training with seed 0: the soonest to learn."""
    found = {}
    for cell in CELLS:
        soon: dict[float, float] = {}
        for rate in size.rates:
            training = Training(steps, size.batch, size.hidden, rate)
            scores = train(
                Start(cell), exercise, training, scored=points(steps, 9), device=device,
                advance=advance,
            ).scores  # fmt: skip
            soon[rate] = sum(scores.values()) / len(scores)
        found[cell] = max(soon, key=lambda rate: soon[rate])
    return found


def _tasks(size: Size, tables: tuple[str | Path, str | Path] | None) -> tuple[Words, list[Task]]:
    """Licence categories, and the documents of the tables if there are any."""
    count, _, length, train_count, test_count, *_ = size.texts
    found: list[tuple[str, Examples, Examples | None]] = [
        ("licences", read_licenses("category", limit=size.limit), None)
    ]
    if tables is not None:
        given, test = (read_examples(table)[0] for table in tables)
        found.append((Path(tables[0]).stem.removesuffix("-train"), given, test))
    words = Words([text for _, examples, _ in found for text in examples.texts], count)
    return words, [
        make_task(name, examples, words, length=length, train=train_count, test=test_count,
                  given=test)
        for name, examples, test in found
    ]  # fmt: skip
