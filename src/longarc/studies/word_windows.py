"""Licence texts in the most frequent tokens of MiniLM: windows to learn masked tokens from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longarc.data.licenses import read_licenses
from longarc.errors import DataError
from longarc.models.loading import load_tokenizer
from longarc.studies.masked_tokens import SHARE

PAD, UNKNOWN, FIRST, LAST, MASK = range(5)
SPECIAL = 5


class Words:
    """The tokens that are most frequent in ``texts``, ``count`` with the five special ones.

    Any other token is unknown. With few words the layer that names them is cheap.
    """

    def __init__(self, texts: Sequence[str], count: int):
        self.tokenizer = load_tokenizer("minilm")
        tally = Counter(token for text in self._tokens(texts, None) for token in text)
        # Sorted, since equal counts have no order of their own.
        ranked = sorted(tally, key=lambda token: (-tally[token], token))[: count - SPECIAL]
        self.places = {token: SPECIAL + i for i, token in enumerate(ranked)}

    def ids(self, texts: Sequence[str], length: int | None = None) -> list[list[int]]:
        """Ids of each text's first ``length`` tokens, without special ones."""
        return [
            [self.places.get(token, UNKNOWN) for token in text]
            for text in self._tokens(texts, length)
        ]

    def padded(self, texts: Sequence[str], length: int) -> Tensor:
        """Ids (N, length) of the texts' beginnings, between [CLS] and [SEP]."""
        rows = torch.full((len(texts), length), PAD)
        for row, ids in zip(rows, self.ids(texts, length - 2), strict=True):
            row[: len(ids) + 2] = torch.tensor([FIRST, *ids, LAST])
        return rows

    def _tokens(self, texts: Sequence[str], length: int | None) -> list[list[int]]:
        if length is None:  # characters enough: the tokenizer would warn of more than 512 tokens
            backend = self.tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
            backend.no_truncation()
            return [
                found.ids for found in backend.encode_batch(list(texts), add_special_tokens=False)
            ]
        return self.tokenizer(
            list(texts), add_special_tokens=False, truncation=True, max_length=length
        )["input_ids"]  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Corpus:
    """Windows of licence texts, (N, length − 2) without the tokens at both ends.

    ``held_out`` has one window of each text that ``train`` has none of.
    """

    words: Words
    train: Tensor
    held_out: Tensor


def read_corpus(length: int, words: int, held_out: int, texts: int | None = None) -> Corpus:
    """Read the licences' own texts in random order, the first ``held_out`` long ones set aside.

    Args:
        length: tokens of a window with [CLS] and [SEP].
        words: of the vocabulary, which is that of the texts to train on.
        held_out: texts, and so windows, to measure with.
        texts: read so many only.

    Raises:
        DataError: too few texts are as long as a window, or the texts are not installed.
    """
    found = read_licenses("category", include_rules=False).texts
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()[:texts]
    # A token is rarely shorter than two letters, and none longer than eight on average.
    long = [found[i] for i in order if len(found[i]) > 8 * length]
    aside, rest = long[:held_out], long[held_out:]
    if len(aside) < held_out or not rest:
        raise DataError(f"{len(long)} licence texts are long enough; expected over {held_out}.")
    chosen = Words(rest, words)
    windows = [_windows(ids, length - 2) for ids in chosen.ids(rest)]
    measured = [_windows(ids, length - 2)[:1] for ids in chosen.ids(aside)]
    return Corpus(chosen, torch.cat(windows), torch.cat(measured))


def mask_tokens(tokens: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Ids (N, n) with 15 % of the known tokens masked, and which (N, n): as many in each window.

    ``tokens`` (N, n − 2). Unknown tokens are not asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(tokens.shape, generator=generator)
    draw = draw.masked_fill(tokens == UNKNOWN, 2.0)
    number = max(1, math.floor(SHARE * tokens.shape[1]))
    masked = draw.argsort(1).argsort(1) < number
    ids = tokens.masked_fill(masked, MASK)
    ends = torch.nn.functional.pad
    ids = ends(ends(ids, (1, 0), value=FIRST), (0, 1), value=LAST)
    return ids, ends(masked, (1, 1), value=False)


def _windows(ids: Sequence[int], width: int) -> Tensor:
    """Windows (k, width), side by side, in which at most a fifth is unknown; the rest left out."""
    rows = torch.tensor(ids[: len(ids) // width * width], dtype=torch.long).view(-1, width)
    return rows[(rows == UNKNOWN).float().mean(1) <= 0.2]
