"""How long a training step of each cell takes, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from longarc.studies.rnn.readers import CELLS, started


def speeds(
    rounds: int,
    *,
    batch: int = 32,
    length: int = 128,
    hidden: int = 64,
    device: str = "cpu",
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Milliseconds of forward and backward, by cell, one of each a round.

    The cells take turns, so that what else the machine does falls on all alike; a first round warms
    up and is not counted.
    """
    cells = {kind: started(kind, hidden, hidden, 0).to(device) for kind in CELLS}
    x = torch.randn(batch, length, hidden, generator=torch.Generator().manual_seed(0)).to(device)
    found: dict[str, list[float]] = {kind: [] for kind in CELLS}
    for turn in range(rounds + 1):
        for kind, cell in cells.items():
            _wait(device)
            before = time.perf_counter()
            cell(x)[0].square().mean().backward()
            _wait(device)
            if turn:
                found[kind].append(1000 * (time.perf_counter() - before))
        advance()
    return found


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
