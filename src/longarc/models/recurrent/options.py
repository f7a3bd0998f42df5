"""Names and options of recurrent encoders; free of torch, so that a wrong one costs nothing."""

from __future__ import annotations

from typing import Literal, get_args

Cell = Literal["rnn", "relu-rnn", "lstm", "gru", "output-gated-gru"]
Pooling = Literal["last", "mean", "max", "attention"]

CELLS: tuple[str, ...] = get_args(Cell)
"""What ``--model`` takes for an encoder trained from scratch."""
