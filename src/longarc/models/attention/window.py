"""Exact attention near each token and at a few global ones, and room for a summary of the rest.

The sequence is cut into blocks of ``window`` tokens. A query sees its own block and the two beside
it, so ``window`` tokens or more on either side, and the first ``num_global`` tokens, which see
everything themselves: the cost is O(n · (3 window + num_global)) products.

What lies outside can take part as keys made up for each block of queries (:class:`Far`): they enter
the same softmax, so that near and far share one normaliser, and the whole stays one fused call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


@dataclass(frozen=True)
class Far:
    """Keys in place of the tokens that a block of B queries does not see itself.

    ``key`` is (b, nb, h, c, d), nb blocks, ``value`` (b, nb, h, c, dv), and ``bias``, added to
    scale · q·k, broadcasts to (b, nb, h, c): for one key that stands for 10 it is log 10. Where
    there is nothing to see, ``bias`` is ``lowest(dtype)`` and the value 0.
    """

    key: Tensor
    value: Tensor
    bias: Tensor


def lowest(dtype: torch.dtype) -> float:
    """A score so low that its weight is 0, and finite, so that no ∞ − ∞ can arise.

    >>> lowest(torch.float32)
    -1e+30
    """
    return max(-1e30, torch.finfo(dtype).min / 2)


def zero_padding(mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return (b, h, n, ·) with zeros where the mask (b, n) is false, whatever was there."""
    if mask is None:
        return tensors
    hidden = ~mask.bool()[:, None, :, None]
    return tuple(x.masked_fill(hidden, 0) for x in tensors)


def or_default(scale: float | None, width: int) -> float:
    """The scale of the products, d^−½ where none is given."""
    return width**-0.5 if scale is None else scale


def num_blocks(tokens: int, window: int) -> int:
    """nb, the blocks that hold ``tokens``."""
    return -(-tokens // window)


def to_blocks(x: Tensor, window: int) -> Tensor:
    """Return (b, h, n, d) as (b, nb, h, B, d), zeros after the last token.

    The heads stay inside, so that a model's (b, n, h, d) in memory need not be copied.
    """
    b, h, n, d = x.shape
    blocks = num_blocks(n, window)
    if blocks * window > n:
        x = pad(x, (0, 0, 0, blocks * window - n))
    return x.reshape(b, h, blocks, window, d).transpose(1, 2)


def window_pattern(tokens: int, window: int, num_global: int) -> Tensor:
    """Which key each query sees, (n, n): the readable form of what :func:`attend_near` does.

    >>> window_pattern(5, 1, 0).int()
    tensor([[1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [0, 1, 1, 1, 0],
            [0, 0, 1, 1, 1],
            [0, 0, 0, 1, 1]], dtype=torch.int32)
    """
    position = torch.arange(tokens)
    block = position // window
    near = (block[:, None] - block).abs() <= 1
    is_global = position < num_global
    return near | is_global | is_global[:, None]


def attend_all(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of queries (b, h, n', d) to all keys, fused; padding must be zeros."""
    bias = None if mask is None else _hide(mask.bool(), query.dtype)[:, None, None, :]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale
    )


def attend_biased(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, scale: float, dropout: float = 0.0
) -> Tensor:
    """softmax(scale · q kᵀ + bias) v, fused: queries (…, n', d), keys (…, L, d), a bias (…, L).

    PyTorch's fused kernels have no gradient for a bias. One that needs it enters as one more
    coordinate, bias/scale in the keys and 1 in the queries.
    """
    if not (bias.requires_grad and torch.is_grad_enabled()):
        return scaled_dot_product_attention(
            query, key, value, attn_mask=bias[..., None, :], dropout_p=dropout, scale=scale
        )
    carried = bias.expand(key.shape[:-1])[..., None].to(key.dtype) / scale
    query = torch.cat([query, torch.ones_like(query[..., :1])], dim=-1)
    key = torch.cat([key, carried], dim=-1)
    # They want one width for all three, and on a GPU a multiple of 8.
    width = -(-max(key.shape[-1], value.shape[-1]) // 8) * 8
    out = scaled_dot_product_attention(
        *(pad(x, (0, width - x.shape[-1])) for x in (query, key, value)),
        dropout_p=dropout,
        scale=scale,
    )
    return out[..., : value.shape[-1]]


def attend_near(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    num_global: int,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    far: Far | None = None,
) -> Tensor:
    """Attend to near and global tokens exactly, and to ``far`` keys in the same softmax.

    Without ``far`` this is ``softmax_attention(…, allowed=window_pattern(…))``, with
    O(n · window) numbers in memory.

    Args:
        query, key, value: (b, h, n, d); padding must be zeros (:func:`zero_padding`).
        window: B.
        num_global: g; the first g tokens see everything and are seen by every query.
        mask: (b, n), true at the tokens that count.
        scale: of the products; d^−½ by default.
        dropout: probability that a weight is dropped.
        far: keys for each block of queries. The g tokens do not see them.

    Returns:
        (b, h, n, dv); zeros for a document without tokens.
    """
    b, h, n, d = query.shape
    scale = or_default(scale, d)
    whole = {"mask": mask, "scale": scale, "dropout": dropout}
    if n <= 2 * window:
        return attend_all(query, key, value, **whole)
    g = min(num_global, n)
    q, k, v = (to_blocks(x, window) for x in (query, key, value))
    blocks = q.shape[1]
    bias = _near_bias(mask, n, window, g, query)
    keys, values = _with_neighbours(k), _with_neighbours(v)
    if g:
        keys = [_for_each_block(key, g, blocks), *keys]
        values = [_for_each_block(value, g, blocks), *values]
    if far is not None:
        keys, values = [*keys, far.key], [*values, far.value]
        beyond = far.bias.expand(b, blocks, h, far.key.shape[3])
        bias = torch.cat([bias.expand(b, blocks, h, -1), beyond.to(bias.dtype)], dim=-1)
    out = attend_biased(
        q.flatten(0, 1),
        torch.cat([x.to(q.dtype) for x in keys], dim=3).flatten(0, 1),
        torch.cat([x.to(v.dtype) for x in values], dim=3).flatten(0, 1),
        bias.expand(b, blocks, -1, -1).flatten(0, 1),
        scale=scale,
        dropout=dropout,
    )
    out = out.unflatten(0, (b, blocks)).transpose(1, 2).flatten(2, 3)
    if not g:
        return out[:, :, :n]
    return torch.cat([attend_all(query[:, :, :g], key, value, **whole), out[:, :, g:n]], dim=2)


def _with_neighbours(x: Tensor) -> list[Tensor]:
    """The blocks before, at and after each block of (b, nb, h, B, d)."""
    x = pad(x, (0, 0, 0, 0, 0, 0, 1, 1))
    return [x[:, :-2], x[:, 1:-1], x[:, 2:]]


def _for_each_block(x: Tensor, g: int, blocks: int) -> Tensor:
    return x[:, None, :, :g].expand(-1, blocks, -1, -1, -1)


def _hide(seen: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return hidden.masked_fill(~seen, lowest(dtype))


def _near_bias(mask: Tensor | None, n: int, window: int, g: int, like: Tensor) -> Tensor:
    """0 at the tokens that a block sees and the lowest score elsewhere, (b or 1, nb, 1, g + 3B)."""
    seen = torch.ones(1, n, dtype=torch.bool, device=like.device) if mask is None else mask.bool()
    blocks = num_blocks(n, window)
    later = seen & (torch.arange(n, device=like.device) >= g)  # the first g come once
    later = pad(later, (window, (blocks + 1) * window - n)).view(-1, blocks + 2, window)
    near = torch.cat([later[:, :-2], later[:, 1:-1], later[:, 2:]], dim=-1)
    first = seen[:, None, :g].expand(-1, blocks, -1)
    return _hide(torch.cat([first, near], dim=-1), like.dtype)[:, :, None, :]
