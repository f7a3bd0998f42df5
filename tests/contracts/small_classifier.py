"""A BERT of two layers in float64, and documents of different lengths for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

CLASSES = 3
FIRST, LAST, PADDING = 1, 2, 0
SPECIAL = [FIRST, LAST]


def make_model(*, dropout: float = 0.0, seed: int = 0, positions: int = 24, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=positions, num_labels=CLASSES,
        initializer_range=0.4, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, classifier_dropout=dropout, pad_token_id=PADDING,
        **options,
    )  # fmt: skip
    return BertForSequenceClassification(config).double().train()


def make_batch(rows: int = 6, *, seed: int = 0, width: int | None = None) -> dict[str, Tensor]:
    """Ids (b, n), mask (b, n) and labels (b,); ``width`` pads further than the longest needs."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (rows,), generator=generator)
    n = width or int(lengths.max())
    ids = torch.full((rows, n), PADDING)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(3, 40, (int(length),), generator=generator)
        row[0], row[length - 1] = FIRST, LAST
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != PADDING).long(), "labels": labels}


def rows_of(batch: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in batch.items()}


def cut(batch: dict[str, Tensor], *sizes: int) -> list[dict[str, Tensor]]:
    """The same documents in several batches, each no wider than it needs."""
    parts, start = [], 0
    for size in sizes:
        part = rows_of(batch, slice(start, start + size))
        n = int(part["attention_mask"].sum(1).max())
        parts.append({k: v[:, :n] if v.ndim == 2 and k != "labels" else v for k, v in part.items()})
        start += size
    return parts


def gradients(model: Any) -> Tensor:
    """All of the gradient as one vector."""
    weights = [w for w in model.parameters() if w.requires_grad]
    return torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten()
                      for w in weights])  # fmt: skip
