"""Integrals along a step of the training, and inner products that lose no digits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Gauss–Legendre rules to try on a segment, in this order."""

BLOCK = 4096
"""Numbers in a block of an inner product."""


def gauss(nodes: int) -> list[tuple[float, float]]:
    """Gauss–Legendre nodes and weights on [0, 1].

    >>> gauss(1)
    [(0.5, 1.0)]
    """
    x, w = np.polynomial.legendre.leggauss(nodes)
    return [((1 + a) / 2, b / 2) for a, b in zip(x.tolist(), w.tolist(), strict=True)]


def dots(rows: Tensor, b: Tensor) -> Tensor:
    """⟨rows_q, b⟩ for each row (Q, …), float64 (Q,).

    In blocks whose sums are added in float64: one long sum would lose digits.

    >>> dots(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 1.0]))
    tensor([3., 7.], dtype=torch.float64)
    """
    rows, b = rows.flatten(1), b.reshape(-1)
    whole = b.numel() // BLOCK * BLOCK
    rest = (rows[:, whole:] @ b[whole:]).double()
    if not whole:
        return rest
    blocks = rows[:, :whole].view(len(rows), -1, BLOCK).transpose(0, 1)
    sums = torch.bmm(blocks, b[:whole].view(-1, BLOCK, 1))  # (blocks, Q, 1)
    return sums.sum(dim=(0, 2), dtype=torch.float64) + rest


def dot(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩, as :func:`dots`."""
    return float(dots(a[None], b))
