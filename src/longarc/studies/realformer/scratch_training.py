"""Masked tokens learnt from nothing: one run, the same texts and masks for every encoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from longarc.studies.shared.scratch_encoders import (
    Shape,
    build_encoder,
    encode,
    layers_of,
    word_logits,
)
from longarc.studies.shared.word_windows import Corpus, mask_tokens

WARM_UP = 0.1  # of the steps, as in BERT's training


@dataclass(frozen=True)
class Cell:
    """One training: which encoder, its largest learning rate, with or without warm-up, its seed."""

    architecture: str
    rate: float
    warm_up: bool
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """Shares of each held-out text's masked tokens restored, (texts,), after so many steps."""

    cell: Cell
    model: PreTrainedModel
    shares: dict[int, Tensor]

    @property
    def final(self) -> Tensor:
        """Shares (texts,) after the last step."""
        return self.shares[max(self.shares)]


def train_cell(
    cell: Cell,
    shape: Shape,
    corpus: Corpus,
    *,
    steps: int,
    batch: int,
    points: int,
    advance: Callable[[], object] = lambda: None,
) -> Outcome:
    """Train from nothing and measure ``points`` times on the way.

    AdamW (β₂ = 0.98: a few hundred steps are too few for 0.999), gradients clipped at 1, a linear
    decay after the warm-up. Order and masks follow from the seed alone, so every encoder sees the
    same.
    """
    model = build_encoder(cell.architecture, shape, cell.seed, corpus.vectors)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        weights, lr=cell.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    rising = WARM_UP * steps if cell.warm_up else 1.0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / steps)
    )
    measured = {math.ceil(steps * (i + 1) / points) for i in range(points)}
    shares: dict[int, Tensor] = {}
    for step in range(1, steps + 1):
        loss = _loss(model, *draw_batch(corpus, batch, step, cell.seed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        advance()
        if step in measured:
            shares[step] = restored(model, corpus.held_out)
    return Outcome(cell, model.eval(), shares)


def draw_batch(corpus: Corpus, batch: int, step: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (b, n), which are masked (b, n), and the masked tokens (k,) of a step, from 1."""
    count = len(corpus.train)
    epoch, place = divmod((step - 1) * batch, count - count % batch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    tokens = corpus.train[order[place : place + batch]]
    ids, masked = mask_tokens(tokens, 100_000 * (seed + 1) + step)
    return ids, masked, tokens[masked[:, 1:-1]]


@torch.inference_mode()
def restored(model: PreTrainedModel, windows: Tensor, batch: int = 64) -> Tensor:
    """Share (N,) of each window's masked tokens that the model restores; always the same masks."""
    ids, masked = mask_tokens(windows, 0)
    number = int(masked[0].sum())
    shares = []
    for start in range(0, len(windows), batch):
        rows = slice(start, start + batch)
        states = encode(model, ids[rows])[masked[rows]]
        right = word_logits(model, states).argmax(1) == windows[rows][masked[rows, 1:-1]]
        shares.append(right.view(-1, number).float().mean(1))
    return torch.cat(shares)


def gradient_norms(model: PreTrainedModel, corpus: Corpus, batch: int, seed: int) -> list[float]:
    """Norm of the first batch's gradient in each layer's weights, first to last."""
    model.zero_grad()
    _loss(model, *draw_batch(corpus, batch, 1, seed)).backward()
    norms = [
        float(sum(w.grad.square().sum() for w in layer.parameters() if w.grad is not None)) ** 0.5
        for layer in layers_of(model)
    ]
    model.zero_grad()
    return norms


def _loss(model: PreTrainedModel, ids: Tensor, masked: Tensor, truth: Tensor) -> Tensor:
    return functional.cross_entropy(word_logits(model, encode(model, ids)[masked]), truth)
