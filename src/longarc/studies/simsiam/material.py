"""What the study of SimSiam learns from: digits that are moved, documents of several passages.

Both have views whose mean is known exactly, so that f(x̄) can be a target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel

from longarc.data.licenses import read_licenses
from longarc.errors import DataError
from longarc.models.loading import load_tokenizer, resolve_model
from longarc.models.pooling import mean_pool
from longarc.training.prediction import bfloat16_is_fast

WIDTH = 64  # of the codes, and of all heads
NOISE = 0.2  # standard deviation, of pixels between 0 and 1


@dataclass(frozen=True)
class Material:
    """Examples with labels, what is a random view of them, the mean of all views, and a network.

    ``train`` and ``test`` are (N, …), the labels (N,). ``draw`` takes examples and a generator,
    ``mean`` examples; both give what the encoder takes, one row each. ``batch`` is how many
    examples a step has.
    """

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor
    draw: Callable[[Tensor, torch.Generator], Tensor]
    mean: Callable[[Tensor], Tensor]
    make_encoder: Callable[[], nn.Module]
    batch: int


def digits(count: int = 1797) -> Material:
    """Handwritten digits of scikit-learn's 1,797, moved by up to a pixel each way, with noise.

    A third is for testing.
    """
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)
    images = functional.pad(images, (2, 2, 2, 2))[:, None]  # room to move
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order[:count]], torch.tensor(data.target)[order[:count]]
    train = count - count // 3
    return Material(
        "digits", images[:train], images[train:], labels[:train], labels[train:],
        draw=_moved, mean=_mean_of_moves, make_encoder=_convolutions, batch=64,
    )  # fmt: skip


def licences(documents: int, passages: int = 4, length: int = 64) -> Material:
    """Long licence texts as passages, each a vector of the frozen MiniLM; a view is a passage.

    A quarter of the documents is for testing. Labels are the licences' categories.

    Raises:
        DataError: there are fewer long texts, or the package with the texts is not installed.
    """
    tokenizer: Any = load_tokenizer("minilm")
    examples = read_licenses("category", include_rules=False)
    generator = torch.Generator().manual_seed(0)
    inside = length - 2
    rows, labels = [], []
    for place in torch.randperm(len(examples), generator=generator).tolist():
        text = examples.texts[place]
        if len(labels) == documents or len(text) < 3 * inside * passages:
            continue
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= inside * passages:
            starts = torch.randperm(len(ids) // inside, generator=generator)[:passages] * inside
            rows += [ids[start : start + inside] for start in starts.tolist()]
            labels.append((examples.labels or [])[place])
    if len(labels) < documents:
        raise DataError(f"only {len(labels)} licence texts are that long; expected {documents}.")
    ids = torch.tensor(rows)
    frame = [torch.full((len(ids), 1), t) for t in (tokenizer.cls_token_id, tokenizer.sep_token_id)]
    vectors = _embedded(torch.cat([frame[0], ids, frame[1]], dim=1))
    vectors = vectors.view(documents, passages, -1)
    names = sorted(set(labels))
    numbers = torch.tensor([names.index(label) for label in labels])
    split = documents - documents // 4
    return Material(
        "licences", vectors[:split], vectors[split:], numbers[:split], numbers[split:],
        draw=_one_passage, mean=lambda rows: rows.mean(1), make_encoder=_layers, batch=128,
    )  # fmt: skip


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    b, _, height, width = images.shape
    down, right = (torch.randint(-1, 2, (b, 1), generator=generator) for _ in range(2))
    i = (torch.arange(height) - down).remainder(height)[:, :, None]
    j = (torch.arange(width) - right).remainder(width)[:, None, :]
    moved = images[torch.arange(b)[:, None, None], 0, i, j]
    return (moved + NOISE * torch.randn(moved.shape, generator=generator))[:, None]


def _mean_of_moves(images: Tensor) -> Tensor:
    return functional.avg_pool2d(images, 3, stride=1, padding=1)


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 9, WIDTH),
    )  # fmt: skip


def _one_passage(documents: Tensor, generator: torch.Generator) -> Tensor:
    b, passages, _ = documents.shape
    return documents[torch.arange(b), torch.randint(passages, (b,), generator=generator)]


def _layers() -> nn.Module:
    return nn.Sequential(nn.Linear(384, 256), nn.ReLU(), nn.Linear(256, WIDTH))


@torch.no_grad()
def _embedded(ids: Tensor) -> Tensor:
    """Vectors (N, 384) of variance 1/6 a number or so, which suits a layer's start."""
    model: Any = AutoModel.from_pretrained(resolve_model("minilm"), dtype=torch.float32).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast(torch.device("cpu"))):
        pooled = [mean_pool(model(part).last_hidden_state).float() for part in ids.split(64)]
    return 8 * functional.normalize(torch.cat(pooled))
