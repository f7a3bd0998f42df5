"""Examples that are carried along a recorded path, to see what they would have done on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Passengers:
    """Examples that push a model along its recorded path, which they leave as it is.

    Args:
        batches: what the model takes; b examples in all.
        pushes: from a batch's logits (b', C) before a step, without dropout, the step's clip factor
            the number of the step and that of the batch's first example, to (K, b', C): K gradients
            with respect to the logits, as a loss would have sent them back. The model descends
            them.
    """

    batches: Sequence[Mapping[str, Any]]
    pushes: Callable[[Tensor, float, int, int], Tensor]
