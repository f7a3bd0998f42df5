"""The states of torch's random generators: the CPU's, and those of a kind of device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def random_state(kind: str) -> list[Tensor]:
    """The states of the CPU's generator and of all devices' of this kind, such as ``"cuda"``.

    >>> state = random_state("cpu")
    >>> first = torch.rand(3)
    >>> set_random_state("cpu", state)
    >>> torch.equal(first, torch.rand(3))
    True
    """
    return [get() for get, _ in _generators(kind)]


def set_random_state(kind: str, states: Sequence[Tensor]) -> None:
    """Set what :func:`random_state` told."""
    for (_, put), state in zip(_generators(kind), states, strict=True):
        put(state)


@contextmanager
def drawing_from(kind: str, states: Sequence[Tensor]) -> Iterator[None]:
    """Draw inside the block from these states; the generators come out as they were.

    >>> state = random_state("cpu")
    >>> with drawing_from("cpu", state):
    ...     first = torch.rand(3)
    >>> torch.equal(first, torch.rand(3))
    True
    """
    before = random_state(kind)
    set_random_state(kind, states)
    try:
        yield
    finally:
        set_random_state(kind, before)


def _generators(kind: str) -> Iterator[tuple[Callable[[], Tensor], Callable[[Tensor], Any]]]:
    """How to get and to set the state of each."""
    yield torch.get_rng_state, torch.set_rng_state
    if kind in ("cpu", "meta"):
        return
    device: Any = torch.get_device_module(kind)
    if kind == "mps":  # has one, and takes no number
        yield device.get_rng_state, device.set_rng_state
        return
    for i in range(device.device_count()):
        yield (
            lambda i=i: device.get_rng_state(i),
            lambda state, i=i: device.set_rng_state(state, i),
        )
