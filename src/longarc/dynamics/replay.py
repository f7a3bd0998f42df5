"""The same random numbers in every evaluation, so that two losses differ by the weights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def replayed(call: Callable[[], T], tensors: Iterable[Tensor]) -> Callable[[], T]:
    """``call``, with the random state of this moment each time: dropout repeats its masks.

    Each call leaves the generators as it found them, so whoever draws next draws what it would have
    drawn. ``tensors`` name the devices whose generators matter, besides the CPU's.

    >>> draw = replayed(lambda: torch.rand(1).item(), [])
    >>> draw() == draw(), draw() == torch.rand(1).item() == draw()
    (True, True)
    """
    devices = {tensor.device for tensor in tensors} - {torch.device("cpu")}
    kind = next((device.type for device in devices), "cuda")
    indices = sorted(device.index or 0 for device in devices)
    generators: Any = getattr(torch, kind)
    state = torch.get_rng_state()
    states = [generators.get_rng_state(index) for index in indices]

    def again() -> T:
        with torch.random.fork_rng(devices=indices, device_type=kind):
            torch.set_rng_state(state)
            for index, kept in zip(indices, states, strict=True):
                generators.set_rng_state(kept, index)
            return call()

    return again
