"""Tokenised documents, the order they are visited in, and how a batch is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from longarc.data.lengths import LONGEST_TEXT
from longarc.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Documents(Dataset[dict[str, Any]]):
    """Documents as token ids, truncated to ``max_length``, with their targets.

    ``targets`` is an int64 array (N,), a float32 multi-hot array (N, C), or None.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        targets: np.ndarray | None = None,
    ):
        self.inputs: dict[str, list[list[int]]] = {"input_ids": []}
        if len(texts):  # a tokenizer takes no empty list
            encoded = tokenizer(
                [text[:LONGEST_TEXT] for text in texts],
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
            self.inputs = dict(encoded)
        self.lengths = np.array([len(ids) for ids in self.inputs["input_ids"]], dtype=np.int64)
        self.targets = targets

    def __len__(self) -> int:
        return len(self.lengths)

    def sorted_by_length(self) -> Documents:
        """The same documents, longest first: evaluation in this order pads least."""
        order = np.argsort(-self.lengths, kind="stable")
        other = object.__new__(Documents)
        other.inputs = {name: [column[i] for i in order] for name, column in self.inputs.items()}
        other.lengths = self.lengths[order]
        other.targets = None if self.targets is None else self.targets[order]
        return other

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {name: column[index] for name, column in self.inputs.items()}
        if self.targets is not None:
            item["labels"] = self.targets[index]
        return item


class PaddedBatches:
    """Collate documents into tensors, padded to the longest of the batch.

    Lengths are rounded up to a multiple of 8, which matrix units like and costs little, but not
    beyond ``max_length``: a model may have no positions there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None):
        self.max_length = max_length
        self.padding = {
            "input_ids": tokenizer.pad_token_id or 0,
            "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0),
        }

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Inputs and ``attention_mask`` as tensors (b, n); ``labels`` (b,) or (b, C)."""
        longest = max(len(item["input_ids"]) for item in items)
        length = -(-longest // 8) * 8
        if self.max_length is not None:
            length = max(longest, min(length, self.max_length))
        batch = {
            name: torch.full((len(items), length), self.padding.get(name, 0), dtype=torch.long)
            for name in items[0]
            if name != "labels"
        }
        batch["attention_mask"] = torch.zeros(len(items), length, dtype=torch.long)
        for row, item in enumerate(items):
            n = len(item["input_ids"])
            batch["attention_mask"][row, :n] = 1
            for name in batch:
                if name != "attention_mask":
                    batch[name][row, :n] = torch.tensor(item[name])
        if "labels" in items[0]:
            batch["labels"] = torch.from_numpy(np.stack([item["labels"] for item in items]))
        return batch


class SeededSampler(Sampler[int]):
    """An order of the documents that is fixed by (seed, epoch) alone.

    It depends on nothing else: not on global random state, the number of processes or an
    interruption.

    Args:
        number: of documents, N; an epoch visits as many.
        seed: of the run.
        weights: (N,) the probability of each, for drawing with replacement; None visits each once.

    >>> sorted(SeededSampler(3, seed=0))
    [0, 1, 2]
    >>> list(SeededSampler(3, seed=0, weights=np.array([0.0, 1.0, 0.0])))
    [1, 1, 1]
    """

    def __init__(self, number: int, seed: int, weights: np.ndarray | None = None):
        if weights is not None and weights.shape != (number,):
            raise DataError(
                f"There are sampling weights of shape {weights.shape} for {number} documents. "
                f"Expected ({number},): one for each."
            )
        self.number = number
        self.seed = seed
        self.weights = weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(np.random.default_rng([self.seed, self.epoch])).tolist())

    def order(self, random: np.random.Generator) -> np.ndarray:
        """Indices (N,) in the order of the epoch."""
        if self.weights is None:
            return random.permutation(self.number)
        return random.choice(self.number, self.number, p=self.weights)


class LengthGroupedSampler(SeededSampler):
    """A random order in which neighbours have similar lengths, fixed by (seed, epoch) alone.

    Indices are shuffled or drawn, cut into pools of 50 batches, sorted by length inside a pool, and
    the batches are shuffled again; the longest document comes first, so that a lack of memory shows
    in the first step and not after an hour.

    Args:
        lengths: tokens of each document.
        batch: documents in one update, over all processes and accumulated batches.
        seed: of the run.
        weights: (N,) the probability of each, for drawing with replacement; None visits each once.

    >>> sampler = LengthGroupedSampler([5, 1, 9, 2, 8, 1], batch=2, seed=0)
    >>> sorted(sampler)
    [0, 1, 2, 3, 4, 5]
    >>> next(iter(sampler))
    2
    """

    POOL = 50

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch: int,
        seed: int,
        weights: np.ndarray | None = None,
    ):
        super().__init__(len(lengths), seed, weights)
        self.lengths = np.asarray(lengths)
        self.batch = batch

    def order(self, random: np.random.Generator) -> np.ndarray:
        """Indices (N,) in the order of the epoch."""
        order = super().order(random)
        longest = self.lengths[order].argmax()
        order[[0, longest]] = order[[longest, 0]]  # in the first pool, so in its first batch
        pool = self.batch * self.POOL
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        grouped = np.concatenate([p[np.argsort(-self.lengths[p], kind="stable")] for p in pools])
        # A short last batch stays last, or every batch after it would be cut differently.
        full = len(grouped) // self.batch
        batches = grouped[: full * self.batch].reshape(full, self.batch)
        random.shuffle(batches[1:])
        return np.concatenate([batches.flatten(), grouped[full * self.batch :]])
