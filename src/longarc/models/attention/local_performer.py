"""Exact attention nearby, positive random features for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from longarc.models.attention.clustering import precise, query_moments
from longarc.models.attention.outside import sum_outside
from longarc.models.attention.random_features import PROJECTIONS, draw_projections
from longarc.models.attention.window import (
    Far,
    attend_near,
    lowest,
    to_blocks,
)
from longarc.models.attention.windowed import WindowedKernel
from longarc.options import check_choice, check_whole

_NOTHING = 1e-20
"""A normaliser, where the largest features are 1, below which the estimate means nothing."""


class LocalPerformer(WindowedKernel):
    """Exact over a window and global tokens; an estimate of everything else, in the same softmax.

    As in :class:`~longarc.models.attention.local_clustered.LocalClustered`, but what lies outside
    of a block's window enters as numerator and normaliser of positive random features,

        Z = Σ_j φ(q)·φ(k_j),  far = Σ_j φ(q)·φ(k_j) v_j / Z,  φ(x) = m^−½ e^{ω·x − ‖x‖²/2},

    summed over the tokens outside, and takes part in the softmax as one key with score log Z and
    value ``far``. Z is unbiased; where scores are large its variance is too, and clusters are far
    more faithful. Of queries and keys the document's means are taken off before the features and
    put back exactly, and their norms are made equal: both lower the variance.

    The cost is O(n · (3 window + num_features)). A text of up to two blocks is exact.

    Args:
        window: tokens of a block, ≥ 1.
        num_global: g ≥ 0; 1 by default, the [CLS] of BERT's relatives.
        num_features: m ≥ 1.
        projection: how ω is drawn, one of ``iid``, ``orthogonal``, ``stratified``, ``simplex``.

    Raises:
        OptionError: a value out of range.

    Source: Choromanski et al. 2021, "Rethinking Attention with Performers" (arXiv 2009.14794), for
    the features.

    >>> import torch
    >>> from longarc.models.attention.softmax import softmax_attention
    >>> q, k, v = torch.randn(3, 1, 2, 100, 8, generator=torch.Generator().manual_seed(0))
    >>> q = q / 2
    >>> estimate = LocalPerformer(2, 8, window=16, num_features=256)(q, k, v)
    >>> bool((estimate - softmax_attention(q, k, v)).norm() < 0.4 * estimate.norm())
    True
    """

    projections: Tensor

    def __init__(
        self,
        heads: int,
        width: int,
        *,
        seed: int = 0,
        window: int = 64,
        num_global: int = 1,
        num_features: int = 128,
        projection: str = "stratified",
    ) -> None:
        super().__init__(heads, width, seed=seed, window=window, num_global=num_global)
        self.num_features = check_whole("num_features", num_features, at_least=1)
        self.projection = check_choice("projection", projection, PROJECTIONS)
        drawn = draw_projections(num_features, width, heads=heads, method=projection, seed=seed)
        self.register_buffer("projections", drawn, persistent=False)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """Attend, as in :class:`~longarc.models.attention.windowed.WindowedKernel`."""
        with torch.autocast(query.device.type, enabled=False):
            mass, mean = self._far(precise(query), precise(key), precise(value), mask, scale)
        # A coordinate of its own carries log Z to the one far key, another its weight back.
        one = torch.zeros_like(key[:1, :1, :1, :1])
        low = lowest(query.dtype) / 32  # times 1/scale it must be finite in half precision too
        carried = torch.cat([query, mass.clamp(min=low).to(query.dtype)], dim=-1)
        key = torch.cat([key, torch.zeros_like(key[..., :1])], dim=-1)
        value_and_weight = torch.cat([value, torch.zeros_like(value[..., :1])], dim=-1)
        far_key, far_value = (
            torch.zeros_like(key[:1, :1, :1]),
            torch.zeros_like(value_and_weight[:1, :1, :1]),
        )
        far_key[..., -1], far_value[..., -1] = 1 / scale, 1
        b, h, n, _ = query.shape
        shape = (b, -(-n // self.window), h, 1, -1)
        far = Far(
            far_key[:, None].expand(shape), far_value[:, None].expand(shape), one.to(query.dtype)
        )
        out = attend_near(
            carried, key, value_and_weight,
            window=self.window, num_global=self.num_global, mask=mask, scale=scale,
            dropout=dropout, far=far,
        )  # fmt: skip
        return out[..., :-1] + out[..., -1:] * mean.to(out.dtype)

    def _far(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return log Z, (b, h, n, 1), and the mean value outside, (b, h, n, dv)."""
        # q·k = (q − q̄)·(k − k̄) + q̄·(k − k̄) + q·k̄: of the first, features; the others, exactly.
        low = lowest(query.dtype)
        query_mean, query_square = query_moments(query, mask)
        key_mean, key_square = query_moments(key, mask)
        q, k = query - query_mean, key - key_mean
        size_q, size_k = (
            (square.diagonal(dim1=-2, dim2=-1).sum(-1) - mean.square().sum((-2, -1))).clamp(
                min=1e-6
            )
            for square, mean in ((query_square, query_mean), (key_square, key_mean))
        )
        balance = (size_k / size_q).pow(0.25)[..., None, None]
        omega = self.projections.to(query.dtype).mT
        log_q = self._log_features(q * balance * scale**0.5, omega)
        log_k = self._log_features(k / balance * scale**0.5, omega)
        log_k = log_k + scale * (k * query_mean).sum(-1, keepdim=True)
        outside = torch.arange(key.shape[2], device=key.device) >= self.num_global
        seen = outside if mask is None else outside & mask[:, None, :].bool()
        log_k = log_k.masked_fill(~seen[..., None], low)
        top_q = log_q.detach().amax(dim=-1, keepdim=True)
        top_k = log_k.detach().amax(dim=(-2, -1), keepdim=True)
        phi_q, phi_k = (log_q - top_q).exp(), (log_k - top_k.clamp(min=low / 2)).exp()
        rows = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
        sums = sum_outside(to_blocks(phi_k, self.window).mT @ to_blocks(rows, self.window))
        total = (to_blocks(phi_q, self.window) @ sums).transpose(1, 2).flatten(2, 3)
        total = total[:, :, : key.shape[2]]
        mass = total[..., -1:]
        some = mass > _NOTHING
        mass = mass.masked_fill(~some, 1)
        log_mass = mass.log() + top_q + top_k + scale * (query * key_mean).sum(-1, keepdim=True)
        return log_mass.masked_fill(~some, low), (total[..., :-1] / mass).masked_fill(~some, 0)

    def _log_features(self, x: Tensor, omega: Tensor) -> Tensor:
        log_many = torch.log(x.new_tensor(float(self.num_features))) / 2
        return x @ omega - x.square().sum(-1, keepdim=True) / 2 - log_many
