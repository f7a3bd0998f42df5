"""All that the study of RealFormer trains and measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from longarc.data.examples import Examples, read_examples
from longarc.data.licenses import read_licenses
from longarc.studies.realformer.attention_patterns import attention_weights, entropy, neighbours
from longarc.studies.realformer.residual_minilm import WAYS, Introduced, introduce
from longarc.studies.realformer.scratch_training import Cell, Outcome, gradient_norms, train_cell
from longarc.studies.shared.long_tailed_tuning import Task, fine_tune, make_task, steps_of
from longarc.studies.shared.scratch_encoders import ARCHITECTURES, Shape, build_encoder
from longarc.studies.shared.word_windows import Corpus, mask_tokens, read_corpus
from longarc.training.progress import Reporter

COMPARED = ("PostLN", "RealFormer")
"""The two whose difference on long-tailed labels is asked for."""


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    A cell takes ``steps`` steps of ``batch`` windows. ``rates`` and both warm-ups are tried with
    seed 0; the best are trained again with ``seeds`` other seeds, which are the ones compared.
    ``train`` and ``test`` are documents to fine-tune on; ``minilm`` the tokens of a window of the
    pretrained model, and texts for ``introduce``. ``texts`` limits the corpus, and leaves out what
    takes seconds to read: the rules, and so the licences' keys.
    """

    shape: Shape
    steps: int
    batch: int
    points: int
    rates: tuple[float, ...]
    seeds: int
    held_out: int
    train: int
    test: int
    epochs: int
    minilm: tuple[int, int, int, int]
    texts: int | None = None


@dataclass(frozen=True)
class Tuned:
    """The classes that each encoder's runs gave the test documents of a task."""

    task: Task
    given: dict[str, list[Tensor]]


@dataclass(frozen=True)
class Measured:
    """What came out. Lists by layer come one a seed."""

    size: Size
    grid: list[Outcome]
    runs: dict[str, list[Outcome]]
    gradients: dict[str, list[list[float]]]
    entropies: dict[str, list[list[float]]]
    alike: dict[str, list[list[float]]]
    alike_by_number: dict[str, list[list[float]]]
    tuned: list[Tuned]
    minilm: list[Introduced]

    def cell(self, architecture: str, rate: float, warm_up: bool) -> Outcome:
        """What the grid found for this cell."""
        wanted = Cell(architecture, rate, warm_up)
        return next(outcome for outcome in self.grid if outcome.cell == wanted)


def measure(
    size: Size, tables: tuple[str | Path, str | Path] | None, reporter: Reporter
) -> Measured:
    """Train every cell, look into the best, fine-tune them, and change the pretrained MiniLM.

    ``tables`` are one more task, to train on and to test with.
    """
    corpus = read_corpus(size.shape.length, size.shape.words, size.held_out, size.texts)
    tasks = _tasks(size, corpus, tables)  # before an hour of training: a wrong table ends it here
    shape, seeds = size.shape, range(1, size.seeds + 1)
    cells = len(ARCHITECTURES) * (2 * len(size.rates) + size.seeds)
    with reporter.task("masked tokens", cells * size.steps) as advance:
        grid = [
            _train(Cell(architecture, rate, warm_up), size, corpus, advance)
            for architecture in ARCHITECTURES
            for rate in size.rates
            for warm_up in (True, False)
        ]
        runs: dict[str, list[Outcome]] = {}
        for architecture in ARCHITECTURES:
            tried = (outcome for outcome in grid if outcome.cell.architecture == architecture)
            best = max(tried, key=lambda outcome: float(outcome.final.mean())).cell
            runs[architecture] = [
                _train(Cell(architecture, best.rate, best.warm_up, seed), size, corpus, advance)
                for seed in seeds
            ]
    gradients = {
        name: [
            gradient_norms(
                build_encoder(name, shape, seed, corpus.vectors), corpus, size.batch, seed
            )
            for seed in seeds
        ]
        for name in ARCHITECTURES
    }
    ids, _ = mask_tokens(corpus.held_out[:32], 0)
    weights = {
        name: [attention_weights(o.model, ids, summed=name == "RealFormer") for o in outcomes]
        for name, outcomes in runs.items()
    }
    total = sum(steps_of(task, size.epochs) for task in tasks) * len(COMPARED) * size.seeds
    with reporter.task("fine-tuning", total) as advance:
        tuned = [
            Tuned(
                task,
                {
                    name: [
                        fine_tune(
                            outcome.model, task, epochs=size.epochs, seed=outcome.cell.seed,
                            advance=advance,
                        )
                        for outcome in runs[name]
                    ]
                    for name in COMPARED
                },
            )
            for task in tasks
        ]  # fmt: skip
    n, learned, adapted, tested = size.minilm
    with reporter.task("MiniLM", 1 + len(WAYS)) as advance:
        minilm = introduce(n, learned=learned, adapted=adapted, tested=tested, advance=advance)
    return Measured(
        size=size,
        grid=grid,
        runs=runs,
        gradients=gradients,
        entropies={k: [[entropy(w) for w in run] for run in v] for k, v in weights.items()},
        alike={k: [neighbours(run) for run in v] for k, v in weights.items()},
        alike_by_number={
            k: [neighbours(run, matched=False) for run in v] for k, v in weights.items()
        },
        tuned=tuned,
        minilm=minilm,
    )


def _train(cell: Cell, size: Size, corpus: Corpus, advance: Callable[[], object]) -> Outcome:
    return train_cell(
        cell,
        size.shape,
        corpus,
        steps=size.steps,
        batch=size.batch,
        points=size.points,
        advance=advance,
    )


def _tasks(size: Size, corpus: Corpus, tables: tuple[str | Path, str | Path] | None) -> list[Task]:
    """Licence categories, the documents of the tables if there are any, and licence keys."""
    rules = size.texts is None
    categories = read_licenses("category", include_rules=rules)
    found: list[tuple[str, Examples, Examples | None]] = [("categories", categories, None)]
    if tables is not None:
        train, test = (read_examples(table)[0] for table in tables)
        found.append((Path(tables[0]).stem.removesuffix("-train"), train, test))
    if rules:
        found.append(("licences", read_licenses("key"), None))
    return [
        make_task(
            name,
            examples,
            corpus.words,
            length=size.shape.length,
            train=size.train,
            test=size.test,
            given=given,
        )
        for name, examples, given in found
    ]
