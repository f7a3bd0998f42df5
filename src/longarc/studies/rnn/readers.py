"""A recurrent cell with a linear layer on its last state, trained on an exercise.

Legend: b sequences, n steps, H hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from longarc.models.recurrent.layer import make_cell, start_cell
from longarc.studies.rnn.exercises import Exercise
from longarc.studies.rnn.gradients import Look, look

CELLS = ("rnn", "relu-rnn", "lstm", "gru", "output-gated-gru")
GATED = CELLS[2:]
CLIP = 1.0
TESTED = 512
"""Sequences that a score is of."""


@dataclass(frozen=True)
class Start:
    """What a reader is, and how it starts: U orthogonal times ``scale``."""

    cell: str
    seed: int = 0
    scale: float = 1.0
    forget_bias: float = 1.0


@dataclass(frozen=True)
class Training:
    """Adam for ``steps`` batches of ``batch`` sequences, norms of gradients cut at 1."""

    steps: int
    batch: int
    hidden: int
    rate: float


@dataclass(frozen=True)
class Outcome:
    """A training: scores and looks at the gradient by step, from 0; the median of a step's time."""

    start: Start
    exercise: Exercise
    rate: float
    scores: dict[int, float]
    looks: dict[int, Look]
    milliseconds: float = field(compare=False)

    @property
    def score(self) -> float:
        """After the last step."""
        return self.scores[max(self.scores)]

    @property
    def last(self) -> Look:
        """After the last step."""
        return self.looks[max(self.looks)]

    @property
    def first(self) -> Look:
        """Before any."""
        return self.looks[0]


class Reader(nn.Module):
    """(b, n, inputs) → (b, outputs)."""

    def __init__(self, start: Start, exercise: Exercise, hidden: int):
        super().__init__()
        self.cell = started(
            start.cell, exercise.inputs, hidden, start.seed,
            scale=start.scale, forget_bias=start.forget_bias,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start.seed)
            self.head = nn.Linear(hidden, exercise.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """What is answered after the last step."""
        return self.head(self.cell(x)[0][:, -1])


def started(
    kind: str,
    inputs: int,
    size: int,
    seed: int,
    *,
    scale: float = 1.0,
    forget_bias: float = 1.0,
) -> nn.Module:
    """A cell as longarc's encoders start it, its recurrent weights times ``scale``.

    The random numbers are its own.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        cell = make_cell(kind, inputs, size)
        start_cell(cell, forget_bias)
        weight: Tensor = cell.weight_hh_l0  # pyright: ignore[reportAssignmentType]
        weight.mul_(scale)
    return cell


def train(
    start: Start,
    exercise: Exercise,
    training: Training,
    *,
    scored: Collection[int] = (),
    looked: Collection[int] = (),
    device: str = "cpu",
    advance: Callable[[], object] = lambda: None,
) -> Outcome:
    """Train a reader; what it sees follows from the seed alone, the same for every cell.

    After the steps ``scored`` and ``looked`` there is a score, after ``looked`` a look at the
    gradient too; after the last always both. Scores are of sequences that no training sees, the
    same for all.
    """
    reader = Reader(start, exercise, training.hidden).to(device)
    weights = list(reader.parameters())
    optimizer = torch.optim.Adam(weights, lr=training.rate)
    generator = torch.Generator().manual_seed(start.seed)
    tested = exercise.draw(TESTED, torch.Generator().manual_seed(10_000))
    seen = [part.to(device) for part in tested]
    scores, looks, times = {}, {}, []
    looked = {*looked, training.steps}
    for step in range(training.steps + 1):
        if step in looked or step in scored:
            with torch.inference_mode():
                scores[step] = exercise.score(reader(seen[0]), seen[1])
        if step in looked:
            looks[step] = look(reader.cell, reader.head, exercise, seen[0][:32], seen[1][:32])
        if step == training.steps:
            break
        x, wanted = (part.to(device) for part in exercise.draw(training.batch, generator))
        before = time.perf_counter()
        loss = exercise.loss(reader(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - before))
        advance()
    return Outcome(
        start, exercise, training.rate, scores, looks, float(torch.tensor(times).median())
    )
