"""Which documents are trained on, in what order, and the batches they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from longarc.data.masked import IGNORED
from longarc.data.token_file import TokenFile
from longarc.errors import DataError
from longarc.training.batches import PaddedBatches, SeededSampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pair = tuple[list[int], list[int]]
SHARE = 5
"""A fifth of the documents at most is held out."""


@dataclass(frozen=True)
class Split:
    """Indices of documents: trained on, held out, and those of the first that teach a probe."""

    train: np.ndarray
    held_out: np.ndarray
    labelled: np.ndarray


def split_documents(
    file: TokenFile, *, held_out: int, labelled: int, batch: int, seed: int
) -> Split:
    """Draw the documents to evaluate on; no text that equals one of them is trained on.

    Where there are labels, documents that have one are held out.

    Raises:
        DataError: fewer documents are left than a batch has, or labels with a single class.
    """
    random = np.random.default_rng([seed, 0, 1])  # not the order's, which is [seed, epoch]
    keys = np.asarray(file.keys)
    _, first = np.unique(keys, return_index=True)
    most = len(first) // SHARE
    if file.names:
        first = first[np.asarray(file.labels)[first] >= 0]
    drawn = random.permutation(first)[: min(held_out, most)]
    train = np.flatnonzero(~np.isin(keys, keys[drawn]))
    if len(drawn) < 2 or len(train) < batch:
        raise DataError(
            f"there are {len(file):,} documents, {len(drawn)} of them to evaluate on, which leaves "
            f"{len(train)} to train on, and a batch has {batch}. Use a smaller --batch-size or "
            "more documents."
        )
    known = random.permutation(train[np.asarray(file.labels)[train] >= 0])[:labelled]
    if file.names and len(np.unique(np.asarray(file.labels)[known])) < 2:
        raise DataError(
            f"the training documents have {len(file.names)} class to tell apart: expected 2 or "
            "more. Leave out --label, or name another column."
        )
    return Split(train, np.sort(drawn), np.sort(known))


class Drawn(Dataset[Any]):
    """What the objective reads of each document; items are asked for as (epoch, place).

    ``make`` is called with a document's ids, its index and the epoch, so that what it draws is the
    same in a resumed run, whichever process asks.
    """

    def __init__(self, file: TokenFile, indices: np.ndarray, make: Callable[..., Pair]):
        self.file, self.indices, self.make = file, indices, make

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> Pair:
        epoch, place = item
        index = int(self.indices[place])
        return self.make(self.file[index], index=index, epoch=epoch)


class EpochSampler(SeededSampler):
    """The order fixed by (seed, epoch), and with each place the epoch, for its views.

    >>> sampler = EpochSampler(2, seed=0)
    >>> sampler.set_epoch(3)
    >>> sorted(sampler)
    [(3, 0), (3, 1)]
    """

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, place) for place in super().__iter__())


class TwoViews:
    """Collate pairs of views: ``first`` and ``second``, each padded by itself."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.pad = PaddedBatches(tokenizer, max_length)

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, dict[str, Tensor]]:
        """Each view's ``input_ids`` and ``attention_mask`` (b, n)."""
        views = zip(*pairs, strict=True)
        return {
            name: self.pad([{"input_ids": ids} for ids in view])
            for name, view in zip(("first", "second"), views, strict=True)
        }


class MaskedBatches:
    """Collate masked windows with their targets."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.pad = PaddedBatches(tokenizer, max_length)
        self.pad.padding["targets"] = IGNORED

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and ``targets`` (b, n)."""
        return self.pad([{"input_ids": ids, "targets": targets} for ids, targets in pairs])
