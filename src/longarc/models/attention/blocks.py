"""Blocks of tokens that fit the cache, cut from (b, h, n, d) tensors with padding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LOWEST = -1e30
"""The logarithm of a weight of nothing; finite, so that no ∞ − ∞ can arise."""

LOG2E = math.log2(math.e)
"""PyTorch's exp2 takes a third of its exp's time on a CPU, so exponents here are of base 2."""

_CACHED = 393_216  # elements of a block for each core: 1.5 MiB of float32, near an L2 cache's size
_ON_DEVICE = 2**24  # elements of a block where the device is not a CPU
_SHORTEST, _LONGEST = 32, 1024  # tokens of a block: products are slow below, no faster above


@dataclass(frozen=True)
class Documents:
    """Documents that are worked on at once, their heads as rows of one batch."""

    start: int
    stop: int

    def of(self, x: Tensor) -> Tensor:
        """Return (b, h, …) or (1, h, …) as (documents · h, …)."""
        if x.shape[0] == 1:
            x = x.expand(self.stop - self.start, *x.shape[1:])
        else:
            x = x[self.start : self.stop]
        return x.reshape(-1, *x.shape[2:])

    def put(self, whole: Tensor, rows: Tensor) -> None:
        """Write what ``of`` would return."""
        whole[self.start : self.stop] = rows.view(-1, *whole.shape[1:])


@dataclass(frozen=True)
class Block:
    """Tokens of documents, those of ``seen`` (documents, 1, tokens, 1), or all if that is None."""

    docs: Documents
    start: int
    stop: int
    seen: Tensor | None

    def _part(self, x: Tensor) -> Tensor:
        return x[self.docs.start : self.docs.stop, :, self.start : self.stop]

    def rows(self, x: Tensor, kind: torch.dtype, *, padding: float = 0) -> Tensor:
        """Return (b, h, n, d) here as (documents · h, tokens, d), ``padding`` at padding."""
        part = self._part(x)
        if self.seen is not None:
            part = torch.where(self.seen, part, padding)
        return part.to(kind).reshape(-1, *part.shape[2:])

    def lowest_at_padding(self, rows: Tensor) -> Tensor:
        """Return rows as from ``rows`` with ``LOWEST`` at padding."""
        if self.seen is None:
            return rows
        parts = rows.view(self.docs.stop - self.docs.start, -1, *rows.shape[1:])
        return torch.where(self.seen, parts, LOWEST).view(rows.shape)

    def put(self, whole: Tensor, rows: Tensor) -> None:
        """Write what ``rows`` would return."""
        part = self._part(whole)
        rows = rows.view(part.shape)
        if self.seen is not None:
            rows = torch.where(self.seen, rows, 0)
        part.copy_(rows)


class Blocks:
    """Groups of documents with their blocks of tokens, none with padding only.

    Args:
        like: (b, h, n, …).
        features: m; a block is of documents · h · tokens · m elements, ``elements`` at most.
        mask: (b, n), true at tokens.
    """

    def __init__(self, like: Tensor, features: int, mask: Tensor | None) -> None:
        batch, heads, tokens = like.shape[:3]
        on_cpu = like.device.type == "cpu"
        budget = _CACHED * torch.get_num_threads() if on_cpu else _ON_DEVICE
        longest = _LONGEST if on_cpu else tokens
        fits = min(longest, max(_SHORTEST, budget // max(1, heads * features)))
        parts = max(1, -(-tokens // fits))
        self._tokens, self._step = tokens, max(1, -(-tokens // parts))
        self._docs = max(1, budget // max(1, heads * features * self._step))
        self._batch, self._on_cpu = batch, on_cpu
        self._mask = None if mask is None else mask.bool()
        self.elements = min(self._docs, batch) * heads * self._step * features

    def __iter__(self) -> Iterator[tuple[Documents, list[Block]]]:
        """Yield documents and their blocks in order."""
        for start in range(0, self._batch, self._docs):
            docs = Documents(start, min(start + self._docs, self._batch))
            yield docs, list(self._blocks(docs))

    def _blocks(self, docs: Documents) -> Iterator[Block]:
        mask = None if self._mask is None else self._mask[docs.start : docs.stop, None, :, None]
        first, last = 0, self._tokens
        if mask is not None and self._on_cpu:
            # Padding before and after is cut off, and most blocks are then without any. Only here:
            # on other devices the look at the mask would have to wait.
            real = mask.any(dim=0).flatten().nonzero()
            first, last = (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
        for start in range(first, last, self._step):
            stop = min(start + self._step, last)
            seen = None if mask is None else mask[:, :, start:stop]
            if seen is not None and self._on_cpu:
                seen = None if seen.all() else seen
            yield Block(docs, start, stop, seen)
