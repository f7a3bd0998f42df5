"""Whole blocks of tokens, chosen for each block of queries, that are seen exactly."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from longarc.models.attention.clustering import precise, query_moments
from longarc.models.attention.window import Far, lowest, num_blocks, to_blocks


def choose_blocks(
    query: Tensor,
    key: Tensor,
    *,
    many: int,
    window: int,
    num_global: int,
    scale: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose, for each block of queries, the blocks outside its window that it attends to most.

    What a block of queries gives to a block of keys, log E[e^s] over their pairs, is estimated as
    E[s] + Var[s]/2, which means and second moments give: E[s²] = scale² tr(E[q qᵀ] E[k kᵀ]). The
    mean of all keys is taken off first, since no weight depends on it. That is (n/B)² estimates of
    d² products for each head.

    Args:
        query, key: (b, h, n, d), zeros at padding.
        many: r, blocks to choose.
        window: B.
        num_global: the first so many tokens count for nothing: they are seen anyway.
        scale: of the products.
        mask: (b, n).

    Returns:
        Their numbers, (b, nb, h, r), and whether there was one to choose. No gradients.
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        b, _, n, _ = query.shape
        everything = torch.ones(b, n, device=query.device, dtype=torch.bool)
        seen = everything if mask is None else mask.bool()
        later = seen & (torch.arange(n, device=query.device) >= num_global)
        q, _ = _moments(precise(query), seen, window)
        key = precise(key)
        centre = query_moments(key, mask)[0]
        k, there = _moments(key - centre, later, window)
        mean = scale * q[0] @ k[0].mT
        square = scale**2 * q[1].flatten(3) @ k[1].flatten(3).mT
        estimate = mean + (square - mean.square()).clamp(min=0) / 2
        index = torch.arange(num_blocks(n, window), device=query.device)
        outside = (index[:, None] - index).abs() > 1
        able = (outside & there[:, None, :])[:, None].expand_as(estimate)
        top = estimate.masked_fill(~able, float("-inf")).topk(many, dim=-1).indices
        return top.transpose(1, 2), able.gather(-1, top).transpose(1, 2)


def far_blocks(
    key: Tensor,
    value: Tensor,
    chosen: Tensor,
    is_chosen: Tensor,
    *,
    window: int,
    num_global: int,
    mask: Tensor | None,
) -> Far:
    """The tokens of chosen blocks (b, nb, h, r) as keys of :func:`attend_near`."""
    b, h, n, _ = key.shape
    seen = (torch.arange(n, device=key.device) >= num_global).expand(b, n)
    if mask is not None:
        seen = seen & mask.bool()
    visible = take_blocks(to_blocks(seen[:, None, :, None].expand(b, h, n, 1), window), chosen)
    visible = (visible[..., 0] & is_chosen[..., None]).flatten(3)
    bias = torch.zeros(visible.shape, dtype=key.dtype, device=key.device)
    return Far(
        take_blocks(to_blocks(key, window), chosen).flatten(3, 4),
        take_blocks(to_blocks(value, window), chosen).flatten(3, 4),
        bias.masked_fill(~visible, lowest(key.dtype)),
    )


def take_blocks(blocks: Tensor, chosen: Tensor) -> Tensor:
    """Return of (b, nb, h, B, e) what is chosen for each block, (b, nb, h, r, B, e)."""
    rows = blocks.flatten(0, 2).index_select(0, _row(chosen).flatten())
    return rows.view(*chosen.shape, *blocks.shape[3:])


def sum_chosen(sums: Tensor, chosen: Tensor, is_chosen: Tensor) -> Tensor:
    """Add up, of sums (b, nb, h, c, e) over blocks, those chosen for each block; the same shape."""
    rows, weight = _row(chosen).flatten(0, 2), is_chosen.to(sums.dtype).flatten(0, 2)
    total = embedding_bag(
        rows, sums.flatten(3).flatten(0, 2), per_sample_weights=weight, mode="sum"
    )
    return total.view(sums.shape)


def _row(chosen: Tensor) -> Tensor:
    """The row of a chosen block where (b, nb, h) are one dimension: an index picks it whole."""
    b, nb, h, _ = chosen.shape
    document = torch.arange(b, device=chosen.device)[:, None, None, None]
    return (document * nb + chosen) * h + torch.arange(h, device=chosen.device)[:, None]


def _moments(x: Tensor, seen: Tensor, window: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """E[x], (b, h, nb, d), and E[x xᵀ], (b, h, nb, d, d), of blocks, and which have a token."""
    x = to_blocks(x.masked_fill(~seen[:, None, :, None], 0), window).transpose(1, 2)
    count = to_blocks(seen[:, None, :, None], window).sum(dim=(2, 3, 4))  # (b, nb)
    many = count.clamp(min=1).to(x.dtype)[:, None, :, None]
    return (x.sum(dim=3) / many, x.mT @ x / many[..., None]), count > 0
