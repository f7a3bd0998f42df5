"""Licence texts in the most frequent tokens of MiniLM: windows to learn masked tokens from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from longarc.data.licenses import read_licenses
from longarc.errors import DataError
from longarc.models.loading import load_tokenizer, resolve_model

PAD, UNKNOWN, FIRST, LAST, MASK = range(5)
SPECIAL = 5

SHARE = 0.3
"""Of the tokens, masked. BERT's 0.15 gives a short training half as much to learn from; twice that
does no harm (Wettig et al. 2023, arXiv 2202.08005)."""


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

    def vectors(self) -> Tensor:
        """MiniLM's vectors (count, 384) of the words, the special ones first."""
        t = self.tokenizer
        named: list[Any] = [
            t.pad_token_id, t.unk_token_id, t.cls_token_id, t.sep_token_id, t.mask_token_id
        ]  # fmt: skip
        model: Any = AutoModel.from_pretrained(resolve_model("minilm"), dtype=torch.float32)
        return model.get_input_embeddings().weight.detach()[torch.tensor([*named, *self.places])]

    def _tokens(self, texts: Sequence[str], length: int | None) -> list[list[int]]:
        how: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        if length is not None:
            how |= {"truncation": True, "max_length": length}
        found: Any = self.tokenizer(list(texts), **how)
        return found["input_ids"]


@dataclass(frozen=True)
class Corpus:
    """Windows of licence texts, (N, length − 2) without the tokens at both ends.

    ``held_out`` has one window each of texts that ``train`` has none of; ``vectors`` are what
    MiniLM knows of each word.
    """

    words: Words
    train: Tensor
    held_out: Tensor
    vectors: Tensor


def read_corpus(length: int, words: int, held_out: int, texts: int | None = None) -> Corpus:
    """Read the licences' own texts in random order, the first ``held_out`` long ones set aside.

    Args:
        length: tokens of a window with [CLS] and [SEP].
        words: of the vocabulary, which is that of the texts to train on.
        held_out: texts to measure with, one window each; those of other letters fall away, since
            all their words are unknown.
        texts: read so many only.

    Raises:
        DataError: too few texts are as long as a window, or the texts are not installed.
    """
    found = read_licenses("category", include_rules=False).texts
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()[:texts]
    # Words of licences have some five letters: eight a token are enough for a window.
    long = [found[i] for i in order if len(found[i]) > 8 * length]
    aside, rest = long[:held_out], long[held_out:]
    if len(aside) < held_out or not rest:
        raise DataError(f"{len(long)} licence texts are long enough; expected over {held_out}.")
    chosen = Words(rest, words)
    windows = [_windows(ids, length - 2) for ids in chosen.ids(rest)]
    measured = [_windows(ids, length - 2)[:1] for ids in chosen.ids(aside)]
    return Corpus(chosen, torch.cat(windows), torch.cat(measured), chosen.vectors())


def mask_tokens(tokens: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Ids (N, n) with 30 % of the known tokens masked, and which (N, n): as many in each window.

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
