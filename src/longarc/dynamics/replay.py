"""The same random numbers in every evaluation, so that two losses differ by the weights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from longarc.random_state import drawing_from, random_state

T = TypeVar("T")


def replayed(call: Callable[[], T], tensors: Iterable[Tensor]) -> Callable[[], T]:
    """``call``, with the random state of this moment each time: dropout repeats its masks.

    Each call leaves the generators as it found them, so whoever draws next draws what it would have
    drawn. ``tensors`` name the kind of device whose generators matter, besides the CPU's.

    >>> import torch
    >>> draw = replayed(lambda: torch.rand(1).item(), [])
    >>> draw() == draw(), draw() == torch.rand(1).item() == draw()
    (True, True)
    """
    kind = next((t.device.type for t in tensors if t.device.type != "cpu"), "cpu")
    state = random_state(kind)

    def again() -> T:
        with drawing_from(kind, state):
            return call()

    return again


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards the model's buffers are as before, such as the statistics of batch norm.

    >>> norm = nn.BatchNorm1d(1)
    >>> with buffers_kept(norm):
    ...     _ = norm(torch.randn(8, 1))
    >>> norm.num_batches_tracked.item()
    0
    """
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
