"""Residual attention on a CPU, in tiles of the score matrix that fit the cache.

PyTorch's fused kernel wants values as wide as the concatenated queries, padded with zeros, and half
of its work for six layers is on those. Here values keep their width, only the rows in work are
concatenated, and for the gradients the scores are computed again, tile by tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longarc.models.attention.blocks import LOG2E, LOWEST

_CACHED = (
    98_304  # elements of a tile for each core: two of 384 KiB, and what they are made of, in 1 MiB
)
_KEYS = 384  # of a tile. Products with a transposed tile are slow where rows are 2ᵏ long


def blocked_attention(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    value: Tensor,
    *,
    factors: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Return what ``residual_attention`` does, zeros at padding; memory is linear in the tokens.

    Arguments and result are those of ``residual_attention``. Sums are float32, or float64 for
    float64 inputs. What the tensors hold at padding does not matter. There is no gradient of the
    gradient, as with PyTorch's fused kernel: asking for one raises NotImplementedError.

    >>> q, k, v = torch.randn(3, 2, 1, 2, 5, 4).unbind()
    >>> out = blocked_attention([q[0], q[1]], [k[0], k[1]], v[1], scale=0.5)
    >>> scores = (q @ k.mT / 2).cumsum(dim=0)
    >>> torch.allclose(out, scores[1].softmax(dim=-1) @ v[1], atol=1e-6)
    True
    """
    # Drawn from the global generator, so that an activation checkpoint draws the same again.
    seed = int(torch.randint(2**62, (1,))) if dropout else 0
    # Kept for the gradients, which would drop other weights if more threads made larger tiles.
    elements = _CACHED * torch.get_num_threads()
    settings = _Settings(len(queries), scale, dropout, seed, elements)
    return _Blocked.apply(settings, mask, factors, value, *queries, *keys)  # pyright: ignore[reportReturnType]


class _Settings(NamedTuple):
    """What is the same in a pass and in that of its gradients."""

    layers: int
    scale: float
    dropout: float
    seed: int
    elements: int
    """Of a tile, at most."""


class _Blocked(torch.autograd.Function):
    """out = P V, P = softmax(A); of its gradient G, V gets Pᵀ G and A P ∘ (G Vᵀ − G·out)."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        mask: Tensor | None,
        factors: Tensor | None,
        value: Tensor,
        *queries_keys: Tensor,
    ) -> Tensor:
        call = _Call(settings, mask, factors, value, queries_keys)
        out = torch.zeros_like(value)
        log_sums = value.new_zeros(*value.shape[:3], 1, dtype=call.kind)
        with torch.autocast(value.device.type, enabled=False):
            for part in call.parts():
                _attend(call, part, out, log_sums)
        ctx.settings = settings
        ctx.save_for_backward(mask, factors, value, out, log_sums, *queries_keys)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # PyTorch's once_differentiable would cut the graph in silence
            raise NotImplementedError(
                "residual attention in tiles has no gradient of the gradient. Call the model under "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), which takes another way."
            )
        mask, factors, value, out, log_sums, *queries_keys = ctx.saved_tensors
        call = _Call(ctx.settings, mask, factors, value, queries_keys)
        grads = [torch.zeros_like(x) for x in (value, *queries_keys)]
        factor_grads = log_sums.new_zeros(ctx.settings.layers)
        with torch.autocast(value.device.type, enabled=False):
            for part in call.parts():
                _attend_backward(call, part, gradients[0], out, log_sums, grads, factor_grads)
        return None, None, None if factors is None else factor_grads.to(factors.dtype), *grads


class _Call:
    """What is attended to, and how."""

    def __init__(
        self,
        settings: _Settings,
        mask: Tensor | None,
        factors: Tensor | None,
        value: Tensor,
        queries_keys: Sequence[Tensor],
    ) -> None:
        self.settings = settings
        layers = settings.layers
        self.queries, self.keys, self.value = queries_keys[:layers], queries_keys[layers:], value
        counted = [1.0] * layers if factors is None else factors.tolist()
        self.weights = [settings.scale * LOG2E * c for c in counted]
        types = {x.dtype for x in (value, *queries_keys)}
        self.kind = torch.float64 if torch.float64 in types else torch.float32
        self._mask = mask
        self._draws = torch.Generator().manual_seed(settings.seed)

    def keep(self, like: Tensor) -> Tensor | None:
        """1/(1 − p) at the weights that are kept and 0 elsewhere; None where all are."""
        share = 1 - self.settings.dropout
        if share == 1:
            return None
        return torch.empty_like(like).bernoulli_(share, generator=self._draws).div_(share)

    def parts(self) -> Iterator[_Part]:
        """Everything there is to attend to, in parts whose tiles fit the cache."""
        batch, heads, tokens = self.value.shape[:3]
        elements = self.settings.elements
        for document in range(batch):
            first, last, hidden = 0, tokens, None
            if self._mask is not None:
                seen = self._mask[document].bool()
                real = seen.nonzero()
                first, last = (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
                if len(real) < last - first:
                    hidden = ~seen[None, first:last, None]
            if first == last:
                continue
            keys = min(last - first, _KEYS)
            queries = min(last - first, max(1, elements // keys))
            group = max(1, elements // (queries * keys))
            for start in range(0, heads, group):
                chosen = slice(start, min(start + group, heads))
                where = (document, chosen, slice(first, last))
                yield _Part(where, hidden, self.kind, (queries, keys))


@dataclass(frozen=True)
class _Part:
    """Heads of one document, and its tokens from the first that counts to the last."""

    where: tuple[int, slice, slice]
    hidden: Tensor | None
    """(1, tokens, 1), true at padding between the tokens; None without any."""
    kind: torch.dtype
    tile_sizes: tuple[int, int]
    """Queries and keys of a tile."""

    def of(self, x: Tensor) -> Tensor:
        """A view of (b, h, n, d) as (heads, tokens, d)."""
        return x[self.where]

    def rows(self, x: Tensor, tile: slice = slice(None)) -> Tensor:
        """A copy of a tile's rows, zeros at padding."""
        found = self.of(x)[:, tile].to(self.kind)
        return found if self.hidden is None else found.masked_fill(self.hidden[:, tile], 0)

    def wide(
        self, parts: Sequence[Tensor], tile: slice = slice(None), weights: Sequence[float] = ()
    ) -> Tensor:
        """Layers' rows side by side, (heads, rows, layers · d), each times its weight."""
        found = [self.rows(x, tile) for x in parts]
        if weights:
            found = [x * w for x, w in zip(found, weights, strict=True)]
        return torch.cat(found, dim=-1)

    def query_tiles(self) -> Iterator[slice]:
        """Ranges of the tokens."""
        return _tiles(self.where[2].stop - self.where[2].start, self.tile_sizes[0])

    def key_tiles(self) -> Iterator[slice]:
        """Ranges of the tokens."""
        return _tiles(self.where[2].stop - self.where[2].start, self.tile_sizes[1])


def _tiles(count: int, size: int) -> Iterator[slice]:
    """Ranges of nearly the same size, ``size`` at most."""
    step = -(-count // -(-count // size))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _attend(call: _Call, part: _Part, out: Tensor, log_sums: Tensor) -> None:
    """Write the result, and the logarithms (base 2) of the rows' sums."""
    key, v = part.wide(call.keys), part.rows(call.value)
    for some in part.query_tiles():
        query = part.wide(call.queries, some, call.weights)
        total, mean = torch.zeros_like(query[..., :1]), v.new_zeros(*query.shape[:2], v.shape[2])
        top = torch.full_like(total, LOWEST)
        for tile in part.key_tiles():
            e = torch.bmm(query, key[:, tile].mT)
            if part.hidden is not None:
                e.masked_fill_(part.hidden[:, tile].mT, LOWEST)
            best = torch.maximum(top, e.amax(dim=2, keepdim=True))
            shrink = (top - best).exp2_()
            e.sub_(best).exp2_()
            total.mul_(shrink).add_(e.sum(dim=2, keepdim=True))
            if (keep := call.keep(e)) is not None:
                e *= keep
            mean.mul_(shrink).baddbmm_(e, v[:, tile])
            top = best
        mean.div_(total)
        if part.hidden is not None:
            mean.masked_fill_(part.hidden[:, some], 0)
        part.of(out)[:, some] = mean
        part.of(log_sums)[:, some] = top.add_(total.log2_())


def _attend_backward(
    call: _Call,
    part: _Part,
    gradient: Tensor,
    out: Tensor,
    log_sums: Tensor,
    grads: Sequence[Tensor],
    factor_grads: Tensor,
) -> None:
    """Write the gradients of the value, the queries and the keys, and add those of the factors.

    Parts and tiles come in the forward pass's order: so the same weights are dropped.
    """
    width = call.queries[0].shape[-1]
    key, v = part.wide(call.keys), part.rows(call.value)
    key_grad, value_grad = torch.zeros_like(key), torch.zeros_like(v)
    for some in part.query_tiles():
        query, g = part.wide(call.queries, some, call.weights), part.rows(gradient, some)
        along = (g * part.rows(out, some)).sum(dim=2, keepdim=True)
        query_grad, mass = torch.zeros_like(query), part.of(log_sums)[:, some]
        for tile in part.key_tiles():
            p = torch.bmm(query, key[:, tile].mT)
            if part.hidden is not None:
                p.masked_fill_(part.hidden[:, tile].mT, LOWEST)
            p.sub_(mass).exp2_()
            s = torch.bmm(g, v[:, tile].mT)
            if (keep := call.keep(p)) is None:
                value_grad[:, tile].baddbmm_(p.mT, g)
            else:
                value_grad[:, tile].baddbmm_((p * keep).mT, g)
                s *= keep
            s.sub_(along).mul_(p)
            query_grad.baddbmm_(s, key[:, tile])
            key_grad[:, tile].baddbmm_(s.mT, query)
        for i, layer in enumerate(query_grad.split(width, dim=-1)):
            own = part.rows(call.queries[i], some)
            factor_grads[i] += call.settings.scale * (layer * own).sum()
            part.of(grads[1 + i])[:, some] = layer.mul_(call.weights[i] / LOG2E)
    part.of(grads[0]).copy_(value_grad)
    for i, layer in enumerate(key_grad.split(width, dim=-1)):
        part.of(grads[1 + call.settings.layers + i]).copy_(layer.div_(LOG2E))
