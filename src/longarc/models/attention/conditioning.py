"""Where to measure queries and keys from, and by, so that random features estimate them well."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longarc.models.attention.blocks import LOWEST, Blocks
from longarc.models.attention.random_features import optimal_tilt


class Frame(NamedTuple):
    """Shifts a and c and scales ψ, (b or 1, h, 1, d), and the tilt A, (b or 1, h, 1, 1)."""

    a: Tensor
    c: Tensor
    psi: Tensor
    tilt: Tensor


def condition(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
    *,
    centre: bool,
    balance: bool,
    optimal: bool,
) -> Frame:
    """Return a, c, ψ and A of ``performer_attention``, for each document and head.

    Args:
        query, key: (b, h, n, d).
        mask: (b, n), true at the tokens that count.
        scale: s.
        centre, balance, optimal: what is asked for; the rest is 0, 0, 1 and 0. Without any, the
            first axis is 1.

    Returns:
        float32, or float64 for float64 inputs. They carry no gradient.

    >>> q = torch.tensor([[[[1.0], [3.0]]]])
    >>> frame = condition(q, 10 * q, None, 1.0, centre=False, balance=True, optimal=False)
    >>> round(frame.psi.item() ** 2, 3)
    10.0
    """
    kind = torch.float64 if torch.float64 in (query.dtype, key.dtype) else torch.float32
    heads, width = query.shape[1], query.shape[-1]
    a = c = torch.zeros(1, heads, 1, width, dtype=kind, device=query.device)
    psi, tilt = torch.ones_like(a), torch.zeros_like(a[..., :1])
    if not (centre or balance or optimal):
        return Frame(a, c, psi, tilt)
    run = torch.ops.longarc.moments if torch.compiler.is_compiling() else moments
    found = run(query.detach(), key.detach(), mask, scale, centre, kind == torch.float64)
    q_mean, q_square, k_mean, k_square, k_seen = found
    if centre:
        a, c = q_mean, k_seen
    # The mean of (q − a)² from the moments: no shifted copy of the tokens is made.
    q_spread = (q_square - 2 * a * q_mean + a.square()).clamp(min=torch.finfo(kind).tiny)
    k_spread = (k_square - 2 * c * k_mean + c.square()).clamp(min=torch.finfo(kind).tiny)
    if balance:
        # Within bounds: where one of the two hardly varies, rounding would be blown up.
        psi = (k_spread / q_spread).pow(0.25).clamp(0.125, 8)
    if optimal:
        square = q_spread * psi.square() + k_spread / psi.square()
        square = square + 2 * (q_mean - a) * (k_mean - c)
        tilt = optimal_tilt(scale * square.sum(dim=-1, keepdim=True).clamp(min=0), width)
    return Frame(a, c, psi, tilt)


def moments(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, seen: bool, double: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the means of q, q², k and k² over a document's tokens, and the key that is seen.

    That is Σ_j softmax_j(s q̄·k_j) k_j, of the mean query q̄; zeros unless ``seen``. All are
    (b, h, 1, d), summed block by block in the cache: whole copies of q and k would cost more.

    >>> q = torch.tensor([[[[1.0], [3.0]]]])
    >>> [x.item() for x in moments(q, -q, None, 100.0, True, False)]
    [2.0, 5.0, -2.0, 5.0, -1.0]
    """
    (batch, heads, _, width), kind = key.shape, torch.float64 if double else torch.float32
    like = key.new_zeros(batch, heads, 1, width, dtype=kind)
    results = [torch.zeros_like(like) for _ in range(5)]
    count: Tensor | int = key.shape[2]
    if mask is not None:
        count = mask.sum(dim=1).clamp(min=1)[:, None, None, None]
    for docs, blocks in Blocks(key, width, mask):
        sums = [torch.zeros_like(docs.of(like)) for _ in range(4)]
        for block in blocks:
            q, k = block.rows(query, kind), block.rows(key, kind)
            for total, part in zip(sums, (q, q.square(), k, k.square()), strict=True):
                total += part.sum(dim=1, keepdim=True)
        for whole, total in zip(results, sums, strict=False):
            docs.put(whole, total)
    for whole in results:
        whole /= count
    if seen:
        _seen_keys(results[4], results[0], key, mask, scale)
    return results[0], results[1], results[2], results[3], results[4]


_moments_op = torch.library.custom_op("longarc::moments", mutates_args=())(moments)


@_moments_op.register_fake
def _(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, seen: bool, double: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    kind = torch.float64 if double else torch.float32
    like = key.new_empty(*key.shape[:2], 1, key.shape[3], dtype=kind)
    results = [torch.empty_like(like) for _ in range(5)]
    return results[0], results[1], results[2], results[3], results[4]


def _seen_keys(
    into: Tensor, mean_query: Tensor, key: Tensor, mask: Tensor | None, scale: float
) -> None:
    """Write Σ_j softmax_j(s q̄·k_j) k_j, the largest exponent so far being subtracted from all."""
    for docs, blocks in Blocks(key, key.shape[-1], mask):
        at = docs.of(mean_query) * scale
        top = torch.full_like(at[..., :1], LOWEST)
        total, summed = torch.zeros_like(top), torch.zeros_like(at)
        for block in blocks:
            k = block.rows(key, at.dtype)
            # Products with one column are slower as matrix products.
            score = block.lowest_at_padding((k * at).sum(dim=2, keepdim=True))
            higher = torch.maximum(top, score.amax(dim=1, keepdim=True))
            weight, shrink = (score - higher).exp(), (top - higher).exp()
            total = total * shrink + weight.sum(dim=1, keepdim=True)
            summed = summed * shrink + (weight * k).sum(dim=1, keepdim=True)
            top = higher
        docs.put(into, summed / total.clamp(min=1))
