"""Residual attention, A_n = s Q_n K_nᵀ + A_{n−1}, without ever holding a matrix of scores.

The sum of score matrices is one product of concatenated queries and keys,

    A_n = s (Q_1 K_1ᵀ + … + Q_n K_nᵀ) = s [Q_1 … Q_n] [K_1 … K_n]ᵀ,

so layer n attends as ever, with heads n times as wide: exactly, with memory linear in the tokens.
PyTorch's fused kernels do it as it stands, and ``residual_blocked`` does it faster on a CPU, where
they want values as wide as the queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from longarc.models.attention.residual_blocked import blocked_attention
from longarc.models.plain_kernels import plain_kernels_wanted


def residual_attention(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    value: Tensor,
    *,
    factors: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(s Σ_l c_l Q_l K_lᵀ) V: a layer's attention, its scores added to earlier ones.

    Exact, and so are its gradients in all queries, all keys, the values and c. Padding is masked
    after the sum, where it belongs: a masked score that is carried on would mask twice.

    Args:
        queries, keys: those of every layer that counts, each (b, h, n, d); the layer's own last.
        value: (b, h, n, dv), of this layer alone.
        factors: c, (layers,), what each layer's scores count; 1 by default.
        mask: (b, n), true at the tokens that can be attended to; None for all. A document without
            any gives zeros. Other rows of padding may hold anything in the result.
        scale: s; d^−½ by default, of one layer's width.
        dropout: probability that a weight is dropped, after the softmax.

    Returns:
        (b, h, n, dv) in the type of ``value``. Second derivatives and forward mode need
        ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around the call.

    Source: He et al. 2021, "RealFormer: Transformer Likes Residual Attention" (arXiv 2012.11747),
    which adds the matrices themselves.

    >>> q, k, v = torch.randn(3, 2, 1, 2, 5, 4).unbind()
    >>> out = residual_attention([q[0], q[1]], [k[0], k[1]], v[1])
    >>> scores = (q @ k.mT / 2).cumsum(dim=0)
    >>> torch.allclose(out, scores[1].softmax(dim=-1) @ v[1], atol=1e-6)
    True
    """
    s = queries[-1].shape[-1] ** -0.5 if scale is None else scale
    wide = len(queries) > 1 or factors is not None
    # The CPU's fused kernel takes half precision well, but for dropout would store the matrix.
    tiles = dropout > 0 or (wide and value.dtype in (torch.float32, torch.float64))
    tiles = tiles and value.device.type == "cpu" and not torch.compiler.is_compiling()
    if tiles and not plain_kernels_wanted():
        return blocked_attention(
            queries, keys, value, factors=factors, mask=mask, scale=s, dropout=dropout
        )
    query, key = concatenate(queries, keys, factors)
    return wide_attention(query, key, value, mask=mask, scale=s, dropout=dropout)


def concatenate(
    queries: Sequence[Tensor], keys: Sequence[Tensor], factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return [c_1 Q_1 … c_n Q_n] and [K_1 … K_n], (b, h, n, layers · d)."""
    if len(queries) == 1 and factors is None:
        return queries[0], keys[0]
    if factors is not None:
        queries = [q * c.to(q.dtype) for q, c in zip(queries, factors.unbind(), strict=True)]
    return torch.cat(list(queries), dim=-1), torch.cat(list(keys), dim=-1)


def wide_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """PyTorch's fused attention for queries and keys that are wider than the values."""
    width, more = value.shape[-1], query.shape[-1] - value.shape[-1]
    if more > 0 and query.device.type == "cpu":
        # The CPU's fused kernel wants one width: without it, the (n, n) matrix would be stored.
        value = F.pad(value, (0, more))
    seen = None if mask is None else mask.bool()[:, None, None, :]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout, scale=scale
    )
    return out[..., :width]
