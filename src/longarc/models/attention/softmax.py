"""Softmax attention as the textbook has it: the reference of all kernels, quadratic in n."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return softmax(scale · q kᵀ) v with the whole (n, n) matrix in memory.

    Args:
        query, key, value: (b, h, n, d), (b, h, n, d), (b, h, n, dv).
        mask: (b, n), true at the keys that count. A query without any gives zeros.
        scale: d^−½ by default.
        causal: whether a query sees its own and earlier keys only.
        allowed: (n, n), true where a query may see a key; for sparse patterns.

    Source: Vaswani et al. 2017, "Attention Is All You Need" (arXiv 1706.03762), eq. 1.

    >>> q = torch.zeros(1, 1, 2, 4)
    >>> v = torch.tensor([[[[1.0], [3.0]]]])
    >>> softmax_attention(q, q, v).flatten()
    tensor([2., 2.])
    >>> softmax_attention(q, q, v, mask=torch.tensor([[True, False]])).flatten()
    tensor([1., 1.])
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = factor * query @ key.transpose(-1, -2)
    rows, columns = scores.shape[-2:]
    seen = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
    if causal:
        seen = seen.tril(columns - rows)
    if allowed is not None:
        seen = seen & allowed
    seen = seen.expand(scores.shape)
    if mask is not None:
        seen = seen & mask.bool()[:, None, None, :]
    scores = scores.masked_fill(~seen, float("-inf"))
    top = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - top).exp()
    return weights @ value / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)
