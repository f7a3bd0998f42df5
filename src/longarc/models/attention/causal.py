"""The causal form of attention through m positive features: chunks of tokens, and running sums.

Each chunk's features are computed anew for the gradient, so that no (n, m) is ever held.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longarc.models.attention.blocks import LOWEST

_CHUNK = 64  # tokens taken at once


def causal_feature_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    offset: Tensor,
    key_square: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Return what ``feature_attention`` does for ``causal=True``.

    Args:
        query, key, value, query_map, key_map, mask: as there, the maps of the type of the sums.
        offset, key_square: (b or 1, h, m), (b or 1, h, d).

    >>> q, k, v = torch.zeros(3, 1, 1, 2, 1).unbind()
    >>> v = v + torch.tensor([[1.0], [3.0]])
    >>> maps, offset, square = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 4), torch.zeros(1, 1, 1)
    >>> causal_feature_attention(q, k, v, maps, maps, offset, square, None).flatten()
    tensor([1., 2.])
    """
    (batch, heads, tokens, _), features, width = key.shape, key_map.shape[-1], value.shape[-1]
    kind, seen = key_map.dtype, torch.ones(batch, tokens, dtype=torch.bool, device=key.device)
    seen = (seen if mask is None else mask.bool())[:, None, :, None]
    state = (
        key_map.new_full((batch, heads, 1, features), LOWEST),
        key_map.new_zeros(batch, heads, 1, features),
        key_map.new_zeros(batch, heads, features, width),
    )
    outs = []
    with torch.autocast(key.device.type, enabled=False):
        for start in range(0, tokens, _CHUNK):
            part = slice(start, start + _CHUNK)
            q, k, v, there = (x[:, :, part] for x in (query, key, value, seen))
            q, k, v = (torch.where(there, x, 0).to(kind) for x in (q, k, v))
            out, *state = checkpoint(
                _chunk,
                q,
                k,
                v,
                there,
                query_map,
                key_map,
                offset,
                key_square,
                *state,
                use_reentrant=False,
            )  # pyright: ignore[reportGeneralTypeIssues]
            outs.append(torch.where(there, out, 0).to(value.dtype))
    return torch.cat(outs, dim=2)


def _chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    offset: Tensor,
    key_square: Tensor,
    top: Tensor,
    total: Tensor,
    summed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the chunk's rows, and the sums over the features' keys so far with their scale."""
    log_k = k @ key_map + k.square() @ key_square[..., None]
    log_k = torch.where(seen, log_k, LOWEST)
    higher = torch.maximum(top, log_k.detach().amax(dim=2, keepdim=True))
    phi_k, shrink = (log_k - higher).exp(), (top - higher).exp()
    log_q = q @ query_map + (higher + offset[:, :, None])
    phi_q = (log_q - log_q.detach().amax(dim=3, keepdim=True)).exp()
    total, summed = total * shrink, summed * shrink.mT
    weights = (phi_q @ phi_k.mT).tril()
    mass = phi_q @ total.mT + weights.sum(dim=3, keepdim=True)
    found = mass > torch.finfo(mass.dtype).tiny
    out = torch.where(found, (phi_q @ summed + weights @ v) / torch.where(found, mass, 1), v)
    return out, higher, total + phi_k.sum(dim=2, keepdim=True), summed + phi_k.mT @ v
