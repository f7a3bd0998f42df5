"""Licence texts: which of the training texts a network's path calls alike, and other measures.

A network on vectors of the frozen MiniLM learns the category of a text. Judge is which licence it
is of, which the network is not told.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.data.licenses import read_licenses
from longarc.errors import DataError
from longarc.models.loading import load_tokenizer, resolve_model
from longarc.models.pooling import mean_pool
from longarc.studies.kernel_machine.trainings import Network, Points, items, train

TOP = 5
MEASURES = ("contribution", "path kernel", "embedding", "TF-IDF")
TOKENS = 128
HIDDEN = 32


@dataclass(frozen=True)
class NeighbourSize:
    """Categories at most, licences of each, texts of each to train on and to ask about, passes."""

    categories: int
    licences: int
    known: int
    asked: int
    epochs: int


@dataclass(frozen=True)
class Texts:
    """Texts with their vectors (N, 384), licences (N,) and categories (N,), as numbers."""

    texts: list[str]
    vectors: Tensor
    licence: np.ndarray
    category: np.ndarray


@dataclass(frozen=True)
class Found:
    """One seed: by measure the share of the nearest texts of the same licence and category.

    ``accuracy`` of the network; ``chance`` what texts drawn at random would have.
    """

    licence: dict[str, float]
    category: dict[str, float]
    chance: tuple[float, float]
    accuracy: float


@cache
def texts_of(size: NeighbourSize) -> Texts:
    """So many texts of each of the licences that have most, of every category with enough.

    Raises DataError where no two categories have enough, or the texts are not installed.
    """
    keyed = read_licenses("key")
    categories = dict(zip(*_columns(read_licenses("category")), strict=True))
    texts, keys = _columns(keyed)
    category = {
        key: categories[text] for text, key in zip(texts, keys, strict=True) if text in categories
    }
    by_key: dict[str, list[str]] = defaultdict(list)
    for text, key in dict(zip(texts, keys, strict=True)).items():
        by_key[key].append(text)
    needed = size.known + size.asked
    many = Counter({k: len(t) for k, t in by_key.items() if len(t) >= needed and k in category})
    chosen: dict[str, list[str]] = defaultdict(list)
    for key, _ in many.most_common():
        if len(chosen[category[key]]) < size.licences:
            chosen[category[key]].append(key)
    groups = [keys for keys in chosen.values() if len(keys) == size.licences][: size.categories]
    if len(groups) < 2:
        raise DataError(f"only {len(groups)} categories have {size.licences} licences of so many.")
    generator = torch.Generator().manual_seed(0)
    rows: list[tuple[str, int, int]] = []
    for number, group in enumerate(groups):
        for key in group:
            order = torch.randperm(len(by_key[key]), generator=generator)[:needed].tolist()
            licence = len(rows) // needed
            rows += [(by_key[key][i], licence, number) for i in order]
    told = [text for text, _, _ in rows]
    licence, categories_of = (np.array([row[i] for row in rows]) for i in (1, 2))
    return Texts(told, _vectors(told), licence, categories_of)


def try_seed(size: NeighbourSize, seed: int, advance: Callable[[], object] = lambda: None) -> Found:
    """Train on a part of the texts, look up the nearest ones of the others, and judge."""
    data = texts_of(size)
    known, asked = _split(data.licence, size, seed)
    classes = int(data.category.max()) + 1
    y = torch.from_numpy(data.category[known])
    network = Network((data.vectors.shape[1], HIDDEN, classes), seed)
    batch = 16
    with tempfile.TemporaryDirectory() as folder:
        machine = train(
            Path(folder), network, Points(data.vectors[known], y), optim="adamw_torch",
            learning_rate=3e-3, per_device_train_batch_size=batch, num_train_epochs=size.epochs,
            train_sampling_strategy="random", weight_decay=0.01, max_grad_norm=1.0,
            lr_scheduler_type="linear", seed=seed,
        )  # fmt: skip
        advance()
        with torch.no_grad():
            predicted = machine.model(data.vectors[asked])["logits"].argmax(1).numpy()
        explained = explain(
            machine.path, machine.model, machine.dataset, machine.collate,
            [
                Query({"x": vector[None]}, measure("logit", int(label)))
                for vector, label in zip(data.vectors[asked], predicted, strict=True)
            ],
        )  # fmt: skip
        advance()
        kernel = machine.kernel(items(data.vectors[asked]))
        advance()
    scores = {
        "contribution": np.stack([e.contributions for e in explained]),
        "path kernel": kernel,
        "embedding": (data.vectors[asked] @ data.vectors[known].T).numpy(),
        "TF-IDF": _tfidf([data.texts[i] for i in known], [data.texts[i] for i in asked]),
    }
    judged = {}
    for name, numbers in (("licence", data.licence), ("category", data.category)):
        judged[name] = {
            who: _precision(each, numbers[asked], numbers[known]) for who, each in scores.items()
        }
    chance = tuple(
        float((numbers[asked][:, None] == numbers[known]).mean())
        for numbers in (data.licence, data.category)
    )
    accuracy = float((predicted == data.category[asked]).mean())
    return Found(judged["licence"], judged["category"], chance, accuracy)  # pyright: ignore[reportArgumentType]


def _precision(scores: np.ndarray, mine: np.ndarray, theirs: np.ndarray) -> float:
    """Share of the TOP texts with the highest scores (A, N) whose number is the asker's."""
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return float((theirs[nearest] == mine[:, None]).mean())


def _split(licence: np.ndarray, size: NeighbourSize, seed: int) -> tuple[list[int], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    known: list[int] = []
    asked: list[int] = []
    for number in range(int(licence.max()) + 1):
        rows = np.flatnonzero(licence == number)
        order = [int(rows[i]) for i in torch.randperm(len(rows), generator=generator)]
        known += order[: size.known]
        asked += order[size.known :]
    return known, asked


def _tfidf(known: list[str], asked: list[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    there: Any = vectorizer.fit_transform(known)
    here: Any = vectorizer.transform(asked)
    return (here @ there.T).toarray()


@torch.no_grad()
def _vectors(texts: list[str]) -> Tensor:
    """Means of MiniLM's tokens, of length 8: numbers of a variance of 1/6, which suits a layer."""
    from transformers import AutoModel

    tokenizer: Any = load_tokenizer("minilm")
    model: Any = AutoModel.from_pretrained(resolve_model("minilm"), dtype=torch.float32).eval()
    rows = []
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in range(0, len(texts), 32):
        batch = tokenizer(
            [texts[i] for i in order[first : first + 32]],
            truncation=True, max_length=TOKENS, padding=True, return_tensors="pt",
        )  # fmt: skip
        rows.append(mean_pool(model(**batch).last_hidden_state, batch["attention_mask"]))
    vectors = torch.nn.functional.normalize(torch.cat(rows).double())
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return 8 * vectors[back]


def _columns(examples: Any) -> tuple[list[str], list[str]]:
    return examples.texts, examples.labels
