"""Trained encoders fine-tuned on few or many classes, and what one gains over the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from longarc.data.examples import Examples
from longarc.data.splits import make_splits
from longarc.models.pooling import mean_pool
from longarc.studies.shared.scratch_encoders import encode
from longarc.studies.shared.word_windows import PAD, Words
from longarc.training.bootstrap import resampled_figures

RATE = 1e-3  # the largest learning rate; not tuned


@dataclass(frozen=True)
class Task:
    """Texts (N, n) and their classes (N,) to train on and to test with."""

    name: str
    classes: int
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Gain:
    """What one encoder has over another in a figure, its bootstrap distribution and interval."""

    difference: float
    drawn: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, over test documents."""
        low, high = np.nanquantile(self.drawn, [0.025, 0.975])
        return float(low), float(high)


def make_task(
    name: str,
    examples: Examples,
    words: Words,
    *,
    length: int,
    train: int,
    test: int,
    given: Examples | None = None,
) -> Task:
    """So many documents of ``examples`` to train on, and to test with (of ``given``, if there).

    Classes are those of the documents to train on; test documents of others are left out.
    """
    splits = make_splits(examples, test=given, validation_fraction=0)
    assert splits.test is not None
    kept = _sample(splits.train, train)
    names = sorted(set(map(str, kept.labels or ())))
    labels = map(str, splits.test.labels or ())
    known = splits.test.select([i for i, label in enumerate(labels) if label in names])
    measured = _sample(known, test)

    def tensors(chosen: Examples) -> tuple[Tensor, Tensor]:
        classes = torch.tensor([names.index(str(label)) for label in chosen.labels or ()])
        return words.padded(chosen.texts, length), classes

    return Task(name, len(names), tensors(kept), tensors(measured))


def fine_tune(
    model: PreTrainedModel,
    task: Task,
    *,
    epochs: int,
    batch: int = 32,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
) -> Tensor:
    """Train a copy with a linear head on the mean of the states; classes (N,) of the test texts.

    AdamW, cross-entropy, 10 % warm-up, then linear. Order and head follow from the seed alone.
    """
    encoder = copy.deepcopy(model).train()
    ids, target = task.train
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(encoder.config.hidden_size, task.classes)
    weights = [*encoder.base_model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01, fused=True)
    steps = steps_of(task, epochs, batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / steps, 1.0)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(ids), generator=generator).split(batch):
            functional.cross_entropy(head(_vectors(encoder, ids[rows])), target[rows]).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            advance()
    encoder.eval()
    with torch.inference_mode():
        return torch.cat([head(_vectors(encoder, x)).argmax(1) for x in task.test[0].split(256)])


def steps_of(task: Task, epochs: int, batch: int = 32) -> int:
    """How many steps ``fine_tune`` takes."""
    return epochs * -(-len(task.train[0]) // batch)


def gain(
    task: Task, better: Sequence[Tensor], worse: Sequence[Tensor], figure: str, seed: int = 0
) -> Gain:
    """The mean figure of the runs ``better`` minus that of ``worse``; both on the same resamples.

    Args:
        better, worse: classes (N,) that each run gave the test documents.
        figure: of ``resampled_figures``, such as ``accuracy`` or ``balanced_accuracy``.
        seed: of the resamples; tasks with other documents get other seeds.
    """
    sides = [
        np.mean([_drawn(task, run, figure, seed) for run in runs], 0) for runs in (better, worse)
    ]
    plain = [np.mean([figures(task, run)[figure] for run in runs]) for runs in (better, worse)]
    value, drawn = float(plain[0] - plain[1]), sides[0] - sides[1]
    # Resamples lack some rare classes, which moves a mean over classes: what counts is the spread.
    return Gain(value, drawn + value - np.nanmean(drawn))


def figures(task: Task, predicted: Tensor) -> dict[str, float]:
    """Accuracy, and the mean recall of the classes in the test documents."""
    target = task.test[1]
    right = (predicted == target).float()
    recalls = [right[target == c].mean() for c in target.unique()]
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(torch.stack(recalls).mean()),
    }


def _drawn(task: Task, predicted: Tensor, figure: str, seed: int) -> np.ndarray:
    return resampled_figures(
        task.test[1].numpy(), predicted.numpy(), groups=("head",) * task.classes, seed=seed
    )[figure]


def _vectors(encoder: PreTrainedModel, ids: Tensor) -> Tensor:
    mask = ids != PAD
    longest = int(mask.sum(1).max())  # the rest is padding in every text
    return mean_pool(encode(encoder, ids[:, :longest], mask[:, :longest]), mask[:, :longest])


def _sample(examples: Examples, count: int) -> Examples:
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    return examples.select(order[:count].tolist())
