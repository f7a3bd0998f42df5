"""Residual attention as the paper has it, with every matrix of scores in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def residual_attention_reference(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    gates: Tensor | None = None,
    mean: bool = False,
    last: int | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> list[Tensor]:
    """Return softmax(A_n) V_n of every layer n, A_n = s Q_n K_nᵀ + g_n A_{n−1}.

    Args:
        queries, keys, values: of every layer in order, (b, h, n, d), (b, h, n, d), (b, h, n, dv).
        gates: g of every layer but the first, (layers − 1,); 1 by default.
        mean: whether A_n is divided by the number of layers in it.
        last: the number of layers in A_n, the own one among them; all by default.
        mask: (b, n), true at the tokens that can be attended to.
        scale: s; d^−½ by default.

    Source: He et al. 2021, "RealFormer: Transformer Likes Residual Attention" (arXiv 2012.11747).

    >>> q, k, v = torch.randn(3, 2, 1, 2, 5, 4).unbind()
    >>> from longarc.models.attention.residual import residual_attention
    >>> slow = residual_attention_reference(list(q), list(k), list(v))
    >>> torch.allclose(residual_attention(list(q), list(k), v[1]), slow[1], atol=1e-6)
    True
    """
    s = queries[0].shape[-1] ** -0.5 if scale is None else scale
    scores = [s * q @ k.mT for q, k in zip(queries, keys, strict=True)]
    outs = []
    for n, value in enumerate(values):
        first = 0 if last is None else max(0, n + 1 - last)
        total = scores[first]
        for layer in range(first + 1, n + 1):
            carried = total if gates is None else gates[layer - 1] * total
            total = scores[layer] + carried
        if mean:
            total = total / (n + 1 - first)
        if mask is not None:
            total = total.masked_fill(~mask.bool()[:, None, None, :], float("-inf"))
        outs.append(torch.softmax(total, dim=-1) @ value)
    return outs
