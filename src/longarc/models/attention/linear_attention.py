"""Attention through m positive features, linear in n: the core under the kernels that have them.

With φ_m(q) = exp(q·a_m + o_m) and φ_m(k) = exp(k·b_m + w(k)), w(k) = Σ_d p_d k_d²,

    out_i = Σ_m φ_m(q_i) Σ_j φ_m(k_j) v_j / Σ_m φ_m(q_i) Σ_j φ_m(k_j).

The same written as two softmaxes, which is how it is computed here:

    U_m   = Σ_j softmax_j(k_j·b_m + w(k_j)) v_j      each feature's mean value, over the tokens
    L_m   = log Σ_j exp(k_j·b_m + w(k_j)) + o_m      and its logarithmic mass
    out_i = Σ_m softmax_m(q_i·a_m + L_m) U_m         a query's mean, over the features

Nothing can overflow and no sum is below 1, whatever the logits: there is no ε in a denominator, and
a feature whose keys are all small is not lost beside one whose keys are large.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longarc.models.attention.blocks import LOG2E, LOWEST, Blocks
from longarc.models.attention.causal import causal_feature_attention


def feature_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    *,
    offset: Tensor | None = None,
    key_square: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return Σ_m φ_m(q) Σ_j φ_m(k_j) v_j / Σ_m φ_m(q) Σ_j φ_m(k_j), never holding an (n, m) whole.

    Blocks of tokens pass through the cache twice, for the keys and for the queries, and again for
    the gradients, which come from the features computed anew. The values are those of
    ``feature_attention_reference`` to rounding, alone or among other documents.

    Args:
        query, key, value: (b, h, n, d), (b, h, n, d), (b, h, n, dv). What they hold at tokens of
            padding does not matter, be it NaN.
        query_map, key_map: a and b above, (b or 1, h, d, m). They get no gradient.
        offset: o, (b or 1, h, m); 0 by default. No gradient.
        key_square: p, (b or 1, h, d); 0 by default. No gradient.
        mask: (b, n), true at tokens. A document without any gives zeros.
        causal: whether a token sees itself and earlier ones only. A query all of whose keys are
            e⁻⁸⁰ of a later key of its 64 tokens, in every feature, sees itself alone.

    Returns:
        (b, h, n, dv) in the type of ``value``, zeros at padding. Sums are float32, or float64 for
        float64 inputs, under autocast too. A gradient of the gradient is had from the reference,
        at its price in memory.

    >>> q, k, v = torch.zeros(3, 1, 1, 2, 4).unbind()
    >>> features = torch.zeros(1, 1, 4, 8)
    >>> feature_attention(q, k, v + torch.tensor([[1.0], [3.0]]), features, features)[0, 0, :, 0]
    tensor([2., 2.])
    """
    kind = torch.float64 if torch.float64 in (query.dtype, key.dtype, value.dtype) else torch.float
    if offset is None:
        offset = query_map.new_zeros(1, key.shape[1], query_map.shape[-1])
    if key_square is None:
        key_square = key_map.new_zeros(1, *key_map.shape[1:3])
    a, b, o, p = (x.detach().to(kind) for x in (query_map, key_map, offset, key_square))
    if causal:
        return causal_feature_attention(query, key, value, a, b, o, p, mask)
    return _FeatureAttention.apply(query, key, value, a, b, o, p, mask)  # pyright: ignore[reportReturnType]


def feature_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    *,
    offset: Tensor | None = None,
    key_square: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return what ``feature_attention`` does, by the definition, with all features in memory.

    It computes in the type of the maps, under autocast too, and returns the type of ``value``.

    >>> x = torch.randn(4, 1, 2, 5, 3)
    >>> fast = feature_attention(*x[:3], x[3, :, :, :3], x[3, :, :, :3])
    >>> slow = feature_attention_reference(*x[:3], x[3, :, :, :3], x[3, :, :, :3])
    >>> torch.allclose(fast, slow, atol=1e-6)
    True
    """
    kind = value.dtype
    seen = None if mask is None else mask.bool()[:, None, :, None]
    if seen is not None:
        query, key, value = (torch.where(seen, x, 0) for x in (query, key, value))
    query, key, value = (x.to(query_map.dtype) for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        log_q, log_k = query @ query_map, key @ key_map
        if offset is not None:
            log_q = log_q + offset[:, :, None]
        if key_square is not None:
            log_k = log_k + key.square() @ key_square[..., None]
        if seen is not None:
            log_k = torch.where(seen, log_k, LOWEST)
        # A factor of a feature moves from the keys to the queries; one of a query falls out.
        top = log_k.detach().amax(dim=-2, keepdim=True)
        phi_k, log_q = (log_k - top).exp(), log_q + top
        phi_q = (log_q - log_q.detach().amax(dim=-1, keepdim=True)).exp()
        if seen is not None:
            phi_q, phi_k = (torch.where(seen, x, 0) for x in (phi_q, phi_k))
        if causal:
            weights = (phi_q @ phi_k.mT).tril()
            total = weights.sum(dim=-1, keepdim=True)
            return (weights @ value / torch.where(total > 0, total, 1)).to(kind)
        total = phi_q @ phi_k.sum(dim=-2, keepdim=True).mT
        return (phi_q @ (phi_k.mT @ value) / torch.where(total > 0, total, 1)).to(kind)


class _FeatureAttention(torch.autograd.Function):
    """The two passes, and the two of their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_map: Tensor,
        key_map: Tensor,
        offset: Tensor,
        key_square: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        inputs = (query, key, value, query_map, key_map, offset, key_square, mask)
        run = torch.ops.longarc.attend if torch.compiler.is_compiling() else _attend
        out, means, mass, row = run(*inputs)
        ctx.save_for_backward(*inputs, out, means, mass, row)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # what _attend takes, and then what it returns
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return *_differentiable_backward(saved[:8], gradients[0]), *(None,) * 5
        run = torch.ops.longarc.attend_backward if torch.compiler.is_compiling() else _backward
        return *run(gradients[0], *saved), *(None,) * 5


def _differentiable_backward(
    inputs: tuple[Any, ...], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients as a graph of their own, for a gradient of the gradient."""
    query, key, value, query_map, key_map, offset, key_square, mask = inputs
    leaves = [x if x.requires_grad else None for x in (query, key, value)]
    out = feature_attention_reference(
        query,
        key,
        value,
        query_map,
        key_map,
        offset=offset,
        key_square=key_square,
        mask=mask,
    )
    wanted = [x for x in leaves if x is not None]
    with torch.autocast(key.device.type, enabled=False):
        found = iter(torch.autograd.grad(out, wanted, gradient.to(out.dtype), create_graph=True))
    return tuple(None if x is None else next(found) for x in leaves)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    offset: Tensor,
    key_square: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return out, U (b, h, m, dv), and in base 2 L − o (b, h, 1, m) and rows' sums (b, h, n, 1)."""
    (batch, heads, tokens, _), features, width = key.shape, key_map.shape[-1], value.shape[-1]
    out = torch.zeros_like(value)
    means = key_map.new_zeros(batch, heads, features, width)
    mass = key_map.new_zeros(batch, heads, 1, features)
    row = key_map.new_zeros(batch, heads, tokens, 1)
    plan = Blocks(key, features, mask)
    a2, b2, o2 = query_map * LOG2E, key_map * LOG2E, offset[:, :, None] * LOG2E
    p2 = key_square[:, :, None] * LOG2E
    work = key_map.new_empty(plan.elements)
    with torch.autocast(key.device.type, enabled=False):
        for docs, blocks in plan:
            a, b, o, p = docs.of(a2), docs.of(b2), docs.of(o2), docs.of(p2)
            top = torch.full_like(b[:, :1], LOWEST)
            total, mean = torch.zeros_like(top), b.new_zeros(b.shape[0], features, width)
            for block in blocks:
                k = block.rows(key, b.dtype)
                w = block.lowest_at_padding((k.square() * p).sum(dim=2, keepdim=True))
                e = torch.baddbmm(w, k, b, out=_view(work, k, features))
                higher = torch.maximum(top, e.amax(dim=1, keepdim=True))
                shrink = (top - higher).exp2_()
                e.sub_(higher).exp2_()
                total = total.mul_(shrink).add_(e.sum(dim=1, keepdim=True))
                mean.mul_(shrink.mT).baddbmm_(e.mT, block.rows(value, b.dtype))
                top = higher
            mean.div_(total.mT)
            log_mass = top.add_(total.log2_())
            docs.put(means, mean)
            docs.put(mass, log_mass)
            log_mass = log_mass + o
            for block in blocks:
                q = block.rows(query, b.dtype)
                e = torch.baddbmm(log_mass, q, a, out=_view(work, q, features))
                best = e.amax(dim=2, keepdim=True)
                total = e.sub_(best).exp2_().sum(dim=2, keepdim=True)
                block.put(out, torch.bmm(e, mean).div_(total))
                block.put(row, best.add_(total.log2_()))
    return out, means, mass, row


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_map: Tensor,
    key_map: Tensor,
    offset: Tensor,
    key_square: Tensor,
    mask: Tensor | None,
    out: Tensor,
    means: Tensor,
    mass: Tensor,
    row: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value.

    With P the weights of the features in a query and A those of the tokens in a feature, G the
    gradient of out = P U and U = Aᵀ V: the queries' logits get S = P ∘ (G Uᵀ − G·out), hence
    dL = Σ_i S_i and dU = Pᵀ G; the keys' get A ∘ (V dUᵀ − U·dU + dL), and dV = A dU.
    """
    features = key_map.shape[-1]
    grads = [torch.zeros_like(x) for x in (query, key, value)]
    plan = Blocks(key, features, mask)
    a2, b2, o2 = query_map * LOG2E, key_map * LOG2E, offset[:, :, None] * LOG2E
    p2 = key_square[:, :, None] * LOG2E
    work, more = key_map.new_empty(2, plan.elements).unbind()
    with torch.autocast(key.device.type, enabled=False):
        for docs, blocks in plan:
            mean, log_mass = docs.of(means), docs.of(mass)
            a, a_back, kind = docs.of(a2), docs.of(query_map).mT, mean.dtype
            mean_grad, mass_grad, with_offset = 0 * mean, 0 * log_mass, log_mass + docs.of(o2)
            for block in blocks:
                q, g = block.rows(query, kind), block.rows(gradient, kind)
                p = torch.baddbmm(with_offset, q, a, out=_view(work, q, features))
                # At padding p is 0 as well: its logits are of nothing and could be any size.
                p.sub_(block.rows(row, kind, padding=-LOWEST)).exp2_()
                mean_grad.baddbmm_(p.mT, g)
                # Rounded to half precision, out would cost the queries' gradient another digit.
                o = block.rows(out, kind) if out.dtype == kind else torch.bmm(p, mean)
                along = (g * o).sum(dim=2, keepdim=True)
                s = torch.baddbmm(along, g, mean.mT, beta=-1, out=_view(more, q, features)).mul_(p)
                mass_grad += s.sum(dim=1, keepdim=True)
                block.put(grads[0], torch.bmm(s, a_back))
            shift = mass_grad - (mean * mean_grad).sum(dim=2)[:, None]
            b, b_back, square = docs.of(b2), docs.of(key_map).mT, docs.of(p2)
            slope = square * (2 / LOG2E)
            for block in blocks:
                k = block.rows(key, kind)
                w = block.lowest_at_padding((k.square() * square).sum(dim=2, keepdim=True))
                p = torch.baddbmm(w, k, b, out=_view(work, k, features)).sub_(log_mass).exp2_()
                block.put(grads[2], torch.bmm(p, mean_grad))
                v = block.rows(value, kind)
                s = torch.baddbmm(shift, v, mean_grad.mT, out=_view(more, k, features)).mul_(p)
                own = (k * slope).mul_(s.sum(dim=2, keepdim=True))
                block.put(grads[1], own.baddbmm_(s, b_back))
    return grads[0], grads[1], grads[2]


def _view(work: Tensor, rows: Tensor, features: int) -> Tensor:
    """The beginning of the buffer as (rows, tokens, features)."""
    many, tokens, _ = rows.shape
    return work[: many * tokens * features].view(many, tokens, features)


_attend_op = torch.library.custom_op("longarc::attend", mutates_args=())(_attend)
_backward_op = torch.library.custom_op("longarc::attend_backward", mutates_args=())(_backward)


@_attend_op.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, query_map: Tensor, key_map: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, heads, tokens, _), features = key.shape, key_map.shape[-1]
    return (
        torch.empty_like(value),
        key_map.new_empty(batch, heads, features, value.shape[-1]),
        key_map.new_empty(batch, heads, 1, features),
        key_map.new_empty(batch, heads, tokens, 1),
    )


@_backward_op.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
