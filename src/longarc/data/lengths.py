"""How long documents are in tokens, and how much of them a maximum length cuts off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from longarc.data.scripts import count_letters

LONGEST_TEXT = 1_000_000
"""Characters of a text that are read, by whatever reads texts: some 150,000 words, further than any
model. A file that went into one cell by mistake would otherwise take all time and memory."""

_BATCH_CHARACTERS = 1_000_000
_BATCH_DOCUMENTS = 512
_JUDGED_TOKENS = 1_000  # of a text, for what is unknown: more say the same


def measure(texts: Sequence[str], tokenizer: Any) -> list[tuple[int, float]]:
    """For each text its tokens, special ones included, and the share of its letters unknown.

    Digits, punctuation and emoji are no letters; a letter is unknown when it lies in an unknown
    token. Of a long text the first 1,000 tokens are judged.
    Nothing is cut off. The count of a text beyond 1,000,000 characters is extrapolated from its
    first 1,000,000: the rest is like its beginning, near enough for a statistic.
    ``tokenizer`` is any of transformers' (a fast one, for speed).
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    measured = []
    for batch in _batches(texts):
        cut = [text[:LONGEST_TEXT] for text in batch]
        # verbose=False: the warning about texts beyond the model's length is what this is about.
        encoded = tokenizer(
            cut,
            add_special_tokens=True,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        places = encoded.encodings or [None] * len(batch)  # a slow tokenizer keeps none
        for text, part, ids, found in zip(batch, cut, encoded["input_ids"], places, strict=True):
            length = len(ids)
            share = _unknown_letters(part, ids[:_JUDGED_TOKENS], unknown, found)
            if len(text) > len(part):
                length = round(length * len(text) / len(part))
            measured.append((length, share))
    return measured


def summarise(lengths: Sequence[int], max_length: int | None) -> dict[str, Any]:
    """Lengths as ``check.json`` has them: quantiles, histogram, shares cut off by ``max_length``.

    >>> summary = summarise([10, 20, 40], max_length=20)
    >>> summary["quantiles"], summary["histogram"]
    ({'50': 20, '90': 36, '99': 40, '100': 40},
     [{'low': 0, 'high': 32, 'count': 2}, {'low': 32, 'high': 64, 'count': 1}])
    >>> round(summary["truncated_documents"], 3), round(summary["truncated_tokens"], 3)
    (0.333, 0.286)
    """
    found = np.asarray(lengths, dtype=np.int64)
    edges = _edges(int(found.max()))
    counts = np.histogram(found, bins=edges)[0].tolist()
    limit = int(found.max()) if max_length is None else max_length
    lost = np.maximum(found - limit, 0)
    return {
        "max_length": max_length,
        "quantiles": {
            str(q): round(value)
            for q, value in zip(
                (50, 90, 99, 100), np.percentile(found, (50, 90, 99, 100)).tolist(), strict=True
            )
        },
        "histogram": [
            {"low": low, "high": high, "count": count}
            for low, high, count in zip(edges, edges[1:], counts, strict=False)
        ],
        "truncated_documents": float((lost > 0).mean()),
        "truncated_tokens": float(lost.sum() / max(found.sum(), 1)),
    }


def _unknown_letters(text: str, ids: list[int], unknown: int | None, places: Any) -> float:
    """The share of the letters within unknown tokens; without places, of all tokens but two."""
    if unknown is None or unknown not in ids:
        return 0.0
    if places is None:
        return min(ids.count(unknown) / max(len(ids) - 2, 1), 1.0)
    spans = [places.token_to_chars(place) for place in range(len(ids))]
    end = max((span[1] for span in spans if span), default=0)
    letters = count_letters(text[:end])
    lost = sum(
        count_letters(text[slice(*span)])
        for span, token in zip(spans, ids, strict=True)
        if token == unknown and span
    )
    return lost / max(letters, 1)


def _edges(longest: int) -> list[int]:
    """Edges 0, 32, 64, 96, 128, 192, 256, 384, …: two bins a doubling, usual limits on an edge."""
    edges = [0, 32, 64]
    while edges[-1] <= longest:  # a bin holds low ≤ length < high, so the longest lies below
        edges.append(edges[-1] * 3 // 2 if len(edges) % 2 else edges[-1] * 4 // 3)
    return edges


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += min(len(text), LONGEST_TEXT)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
