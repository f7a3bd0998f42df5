"""Sums over what lies outside of each block's window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sum_outside(sums: Tensor) -> Tensor:
    """Sum over the blocks that a block does not see: (b, nb, …) in and out, a sum for each block.

    A block sees itself and the two beside it. What comes before and what comes after is added up,
    and nothing is subtracted, which would lose digits where nearly all of a sum is nearby.

    >>> sum_outside(torch.tensor([[1, 10, 100, 1000, 10000]]))
    tensor([[11100, 11000, 10001,    11,   111]])
    """
    return _SumOutside.apply(sums)  # pyright: ignore[reportReturnType]


class _SumOutside(torch.autograd.Function):
    """Running sums over whole blocks: PyTorch's cumsum over a dimension far outside is slow.

    A block is outside of another as that one is outside of it, so the map is its own transpose.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        out = torch.empty_like(sums)
        blocks = sums.shape[1]
        before = torch.zeros_like(sums[:, 0])
        for i in range(blocks):
            if i >= 2:
                before += sums[:, i - 2]
            out[:, i] = before
        after = torch.zeros_like(before)
        for i in reversed(range(blocks - 2)):
            after += sums[:, i + 2]
            out[:, i] += after
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_outside(grads[0])
