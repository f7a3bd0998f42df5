"""Random states that come back: the same dropout in every forward pass of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


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
            self.states[name] = self._now()
            yield
            return
        before = self._now()
        self._set(self.states[name])
        try:
            yield
        finally:
            self._set(before)

    def _now(self) -> list[Tensor]:
        return [get() for get, _ in self._generators()]

    def _set(self, states: list[Tensor]) -> None:
        for (_, put), state in zip(self._generators(), states, strict=True):
            put(state)

    def _generators(self) -> Iterator[tuple[Any, Any]]:
        """How to get and to set the state of each."""
        yield torch.get_rng_state, torch.set_rng_state
        if self.kind in ("cpu", "meta"):
            return
        device: Any = torch.get_device_module(self.kind)
        if self.kind == "mps":  # has one, and takes no number
            yield device.get_rng_state, device.set_rng_state
            return
        for i in range(device.device_count()):
            yield (
                lambda i=i: device.get_rng_state(i),
                lambda state, i=i: device.set_rng_state(state, i),
            )
