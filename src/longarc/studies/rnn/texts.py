"""Encoders of one direction that learn to tell what a text is, and where their gradient goes.

Legend: b documents, n tokens, H hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.model import RecurrentForSequenceClassification
from longarc.studies.rnn.gradients import Look, look_back
from longarc.studies.shared.long_tailed_tuning import Task
from longarc.studies.shared.scratch_encoders import main_directions
from longarc.studies.shared.word_windows import PAD

RATE = 5e-3
"""The largest learning rate, for every cell; not tuned."""

BATCH = 32


@dataclass(frozen=True)
class Read:
    """What a trained encoder gave the test documents (N,), where its gradient went, ms a step.

    The looks are from before the training and after it; None where the pooling is not ``last``.
    """

    cell: str
    seed: int
    given: Tensor
    first: Look | None
    last: Look | None
    milliseconds: float = field(compare=False)


@dataclass(frozen=True)
class Reading:
    """The runs of each cell on a task with one pooling."""

    task: Task
    pooling: str
    runs: dict[str, list[Read]]


def build(
    cell: str, pooling: str, task: Task, vectors: Tensor, *, hidden: int, seed: int
) -> RecurrentForSequenceClassification:
    """An encoder without dropout; words start as the main directions of ``vectors`` (words, d)."""
    settings: dict[str, Any] = {
        "cell": cell, "vocab_size": len(vectors), "embedding_size": hidden, "cell_size": hidden,
        "bidirectional": False, "pooling": pooling, "embedding_dropout": 0.0, "layer_dropout": 0.0,
        "classifier_dropout": 0.0, "pad_token_id": PAD, "num_labels": task.classes,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = RecurrentForSequenceClassification(RecurrentConfig(**settings))
        table: Any = model.recurrent.embeddings
        table.weight.copy_(main_directions(vectors, hidden))
    return model.train()


def read(
    cell: str,
    pooling: str,
    task: Task,
    vectors: Tensor,
    *,
    hidden: int,
    epochs: int,
    seed: int,
    device: str = "cpu",
    advance: Callable[[], object] = lambda: None,
) -> Read:
    """Train by Adam, cross-entropy, the rate falling to 0; the order follows from the seed."""
    model = build(cell, pooling, task, vectors, hidden=hidden, seed=seed)
    cast(Any, model).to(device)
    weights = list(model.parameters())
    steps = epochs * -(-len(task.train[0]) // BATCH)
    optimizer = torch.optim.Adam(weights, lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(seed)
    ids, target = (part.to(device) for part in task.train)
    looked = pooling == "last"
    first = _look(model, ids[:8], target[:8]) if looked else None
    times = []
    for _ in range(epochs):
        for rows in torch.randperm(len(ids), generator=generator).split(BATCH):
            before = time.perf_counter()
            functional.cross_entropy(_logits(model, ids[rows]), target[rows]).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - before))
            advance()
    model.eval()
    with torch.inference_mode():
        parts = task.test[0].to(device).split(256)
        given = torch.cat([_logits(model, part).argmax(1) for part in parts]).cpu()
    last = _look(model, ids[:8], target[:8]) if looked else None
    return Read(cell, seed, given, first, last, float(torch.tensor(times).median()))


def steps_of(task: Task, epochs: int) -> int:
    """How many steps ``read`` takes."""
    return epochs * -(-len(task.train[0]) // BATCH)


def _logits(model: RecurrentForSequenceClassification, ids: Tensor) -> Tensor:
    ids, mask = _cut(ids)
    return model(input_ids=ids, attention_mask=mask).logits


def _cut(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Without the steps that are padding in every text, and which are not in each."""
    mask = ids != PAD
    longest = int(mask.sum(1).max())
    return ids[:, :longest], mask[:, :longest]


def _look(model: RecurrentForSequenceClassification, ids: Tensor, target: Tensor) -> Look:
    """Of documents of a task, by the error that enters at their last token."""
    ids, mask = _cut(ids)
    with torch.no_grad():
        x = model.recurrent.embeddings(ids)
        states = model.recurrent(inputs_embeds=x, attention_mask=mask).last_hidden_state
    code = model.pooling(states, mask).detach().requires_grad_()
    (error,) = torch.autograd.grad(functional.cross_entropy(model.classifier(code), target), code)
    layer: Any = model.recurrent.layers[0]
    return look_back(layer.onward, x, mask, error)
