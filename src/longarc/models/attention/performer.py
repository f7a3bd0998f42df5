"""Performer: softmax attention through positive random features, linear in n."""

from __future__ import annotations

import torch
from torch import Tensor

from longarc.models.attention.blocks import LOWEST
from longarc.models.attention.conditioning import condition
from longarc.models.attention.kernel import AttentionKernel
from longarc.models.attention.linear_attention import feature_attention
from longarc.models.attention.random_features import PROJECTIONS, draw_projections
from longarc.options import check_choice, check_flag, check_whole


class Performer(AttentionKernel):
    """Performer: e^{s q·k} ≈ (1/m) Σ_m e^{ω_m·x − ‖x‖²/2} e^{ω_m·y − ‖y‖²/2}, x = √s q, y = √s k.

    Linear in n, in time and in memory. It is an estimate: how close depends on the draw, on m, and
    most on ‖x + y‖, which pretrained models make long. With their weights untouched expect a
    resemblance and not the model's own answers: train, or take ``local-clustered``. Shifting and
    scaling queries and keys, as ``performer_attention`` says, brings the estimate nearer and leaves
    what it estimates as it is.

    Args:
        num_features: m, 256 by default. The error falls no faster than 1/√m; the cost grows like m.
        projection: how ω is drawn, as in ``draw_projections``: "stratified" by default, or
            "orthogonal", "simplex", "iid". On MiniLM they are within 3 % of each other.
        centre: shift queries and keys, True by default.
        balance: scale the queries' dimensions against the keys', True by default.
        optimal: tilt the features by e^{A‖ω‖²}, True by default. Untrained, on 8 licences of 512
            tokens, the cosine of MiniLM's mean-pooled embedding to the exact one is .74 with none
            of the three, .82 with ``centre`` and ``balance``, and .87 with all; with 64 features
            .62, .77 and .81.
        redraw: whether every call in training draws its own ω, from PyTorch's global generator (so
            that activation checkpoints and resumed runs see the same ones). False by default: one
            draw is faster, and the model can adapt to it. Evaluation always uses the seed's draw.

    Raises:
        OptionError: an option out of range.

    Source: Choromanski et al. 2021, "Rethinking Attention with Performers" (arXiv 2009.14794).

    >>> kernel = Performer(heads=2, width=8, num_features=64)
    >>> q, k, v = torch.randn(3, 1, 2, 100, 8).unbind()
    >>> kernel(q, k, v).shape
    torch.Size([1, 2, 100, 8])
    """

    causal = True

    def __init__(
        self,
        heads: int,
        width: int,
        *,
        seed: int = 0,
        num_features: int = 256,
        projection: str = "stratified",
        centre: bool = True,
        balance: bool = True,
        optimal: bool = True,
        redraw: bool = False,
    ) -> None:
        super().__init__(heads, width, seed=seed)
        self.num_features = check_whole("num_features", num_features, at_least=1)
        self.method = check_choice("projection", projection, PROJECTIONS)
        self.centre = check_flag("centre", centre)
        self.balance = check_flag("balance", balance)
        self.optimal = check_flag("optimal", optimal)
        self.redraw = check_flag("redraw", redraw)
        self.projection: Tensor
        self.register_buffer("projection", self._draw(seed), persistent=False)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> Tensor:
        """Attend, as in ``AttentionKernel``; there is no matrix of weights, so nothing to drop."""
        projection = self.projection
        if self.redraw and self.training:
            seed = int(torch.randint(2**62, (1,)))
            projection = self._draw(seed).to(projection.device)
        return performer_attention(
            query,
            key,
            value,
            projection,
            mask=mask,
            scale=scale,
            causal=causal,
            centre=self.centre,
            balance=self.balance,
            optimal=self.optimal,
        )

    def _draw(self, seed: int) -> Tensor:
        return draw_projections(
            self.num_features, self.width, heads=self.heads, method=self.method, seed=seed
        )


def performer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projection: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    centre: bool = True,
    balance: bool = True,
    optimal: bool = True,
) -> Tensor:
    """Estimate softmax(s q kᵀ) v from positive random features.

    With x = √s (q − a) ψ and y = √s (k − c) / ψ, elementwise,

        e^{s q·k} = e^{x·y} · e^{s a·k} · (a factor of the query's, which the softmax cancels),

    so that any a, c and ψ leave attention as it is, and only change how well x·y can be estimated.
    They follow from the document's own tokens: a is its mean query, c the mean key as a query at a
    sees it, Σ_j softmax_j(s a·k_j) k_j, so that the keys which matter are the short ones (at the
    plain mean key the error is a tenth larger), and ψ = (Σ(k − c)² / Σ(q − a)²)^¼ evens out the two
    in every dimension, which makes Σ‖x‖² + Σ‖y‖² least.

    Args:
        query, key, value: (b, h, n, d), (b, h, n, d), (b, h, n, dv).
        projection: ω, (h, m, d), as from ``draw_projections``.
        mask: (b, n), true at tokens. A document without any gives zeros.
        scale: s > 0; d^−½ by default.
        causal: whether a token sees itself and earlier ones only. There a, c and A are 0 and ψ is
            1: a statistic of all tokens would tell one of later ones.
        centre: whether a and c are as above, or 0.
        balance: whether ψ is as above, or 1.
        optimal: whether the features are e^{A‖ω‖² + √(1 − 4A) ω·x − ‖x‖²/2}, A by ``optimal_tilt``
            from the document's mean ‖x + y‖².

    Returns:
        (b, h, n, dv), in the type of ``value``. Gradients take a, c, ψ and A as constants: what is
        estimated does not depend on them, so through them only noise would flow.

    Source: Choromanski et al. 2021 (arXiv 2009.14794), Lemma 1; ψ, Likhosherstov et al. 2023,
    "FAVOR#: Sharp Attention Kernel Approximations via New Classes of Positive Random Features"
    (arXiv 2302.00787); A, Likhosherstov et al. 2022 (arXiv 2205.15317).

    >>> from longarc.models.attention.softmax import softmax_attention
    >>> q, k, v = torch.randn(3, 1, 1, 50, 8, generator=torch.Generator().manual_seed(0)).unbind()
    >>> def error(m):
    ...     estimate = performer_attention(q / 2, k / 2, v, draw_projections(m, 8))
    ...     return (estimate - softmax_attention(q / 2, k / 2, v)).square().mean()
    >>> bool(error(1024) < error(256) < error(16))
    True
    """
    s = query.shape[-1] ** -0.5 if scale is None else scale
    if causal:
        centre = balance = optimal = False
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        frame = condition(query, key, mask, s, centre=centre, balance=balance, optimal=optimal)
        a, c, psi, tilt = frame
        turn = (1 - 4 * tilt).sqrt() * s**0.5
        omega = projection.to(psi.dtype).mT[None]
        query_map, key_map = turn * psi.mT * omega, turn / psi.mT * omega
        offset = 2 * tilt * omega.square().sum(dim=2, keepdim=True)
        offset = offset - a @ query_map - c @ key_map
        # With all of the key's exponent that is linear in k, so that no shifted copy is needed.
        key_map = key_map + s * (a + c / psi.square()).mT
    return feature_attention(
        query,
        key,
        value,
        query_map,
        key_map,
        offset=offset.squeeze(2),
        key_square=(-s / 2 / psi.square()).squeeze(2),
        mask=mask,
        causal=causal,
    )


def performer_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projection: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
    centre: bool = True,
    balance: bool = True,
    optimal: bool = True,
) -> Tensor:
    """Return what ``performer_attention`` does, with all features and weights in memory.

    >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
    >>> omega = draw_projections(16, 8, heads=2)
    >>> slow = performer_attention_reference(q, k, v, omega)
    >>> torch.allclose(performer_attention(q, k, v, omega), slow, atol=1e-5)
    True
    """
    s = query.shape[-1] ** -0.5 if scale is None else scale
    if causal:
        centre = balance = optimal = False
    seen = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool) if mask is None else mask.bool()
    seen = seen.to(key.device)[:, None, :, None]
    q, k, v = (torch.where(seen, x, 0) for x in (query, key, value))
    with torch.no_grad():
        a, c, psi, tilt = condition(q, k, mask, s, centre=centre, balance=balance, optimal=optimal)
    x, y = s**0.5 * (q - a) * psi, s**0.5 * (k - c) / psi
    omega = projection.to(x.dtype)
    log_tilt, turn = tilt * omega.square().sum(dim=-1)[:, None], (1 - 4 * tilt).sqrt()
    log_phi_q = log_tilt + turn * x @ omega.mT - x.square().sum(dim=-1, keepdim=True) / 2
    log_phi_k = log_tilt + turn * y @ omega.mT - y.square().sum(dim=-1, keepdim=True) / 2
    log_phi_k = log_phi_k + s * (k * a).sum(dim=-1, keepdim=True)
    phi_q = (log_phi_q - log_phi_q.detach().amax(dim=-1, keepdim=True)).exp()
    top = log_phi_k.detach().masked_fill(~seen, LOWEST).amax(dim=(-2, -1), keepdim=True)
    phi_k = (log_phi_k - top).masked_fill(~seen, LOWEST).exp()
    weights = phi_q @ phi_k.mT
    weights = weights.tril() if causal else weights
    total = weights.sum(dim=-1, keepdim=True)
    return seen * (weights @ v / torch.where(total > 0, total, 1))
