"""Random states that come back: the same dropout in every forward pass of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from longarc.random_state import drawing_from, random_state


class Randomness:
    """Named random states: a name's first block draws as ever, each later one draws the same again.

    A later block leaves the generators as it found them: the CPU's, and those of all devices of the
    given one's kind.

    >>> randomness = Randomness(torch.device("cpu"))
    >>> with randomness("dropout"):
    ...     first = torch.rand(3)
    >>> with randomness("dropout"):
    ...     again = torch.rand(3)
    >>> torch.equal(first, again)
    True
    """

    def __init__(self, device: torch.device):
        self.kind = device.type
        self.states: dict[str, list[Tensor]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Draw inside the block what its namesakes drew."""
        if name not in self.states:
            self.states[name] = random_state(self.kind)
            yield
            return
        with drawing_from(self.kind, self.states[name]):
            yield
