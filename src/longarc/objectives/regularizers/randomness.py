"""Random states that come back: the same dropout in every forward pass of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch


class _State(NamedTuple):
    cpu: torch.Tensor
    cuda: torch.Tensor | None


class Randomness:
    """Named random states: a name's first block draws as ever, each later one draws the same again.

    A later block leaves the generators as it found them.

    >>> randomness = Randomness(torch.device("cpu"))
    >>> with randomness("dropout"):
    ...     first = torch.rand(3)
    >>> with randomness("dropout"):
    ...     again = torch.rand(3)
    >>> torch.equal(first, again)
    True
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.states: dict[str, _State] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Draw inside the block what its namesakes drew."""
        if name not in self.states:
            self.states[name] = self._now()
            yield
            return
        before = self._now()
        self._set(self.states[name])
        try:
            yield
        finally:
            self._set(before)

    def _now(self) -> _State:
        on_cuda = self.device.type == "cuda"
        return _State(
            torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if on_cuda else None
        )

    def _set(self, state: _State) -> None:
        torch.set_rng_state(state.cpu)
        if state.cuda is not None:
            torch.cuda.set_rng_state(state.cuda, self.device)
