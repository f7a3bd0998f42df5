"""Encoders of transformers that a comparison can train from scratch, by name. Free of torch."""

from __future__ import annotations

SCRATCH: dict[str, str] = {
    "scratch-bert": "BERT: exact attention, what the others are to be measured by",
    "scratch-longformer": "transformers' Longformer: a window around each token",
    "scratch-big-bird": "transformers' BigBird: a window, global and random blocks",
}
"""Values of ``model`` that only a candidate can have, with what they are."""
