"""Linear attention: a fixed feature map in place of the softmax of products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longarc.errors import OptionError
from longarc.models.attention.blocks import LOWEST
from longarc.models.attention.kernel import AttentionKernel
from longarc.options import check_choice

FEATURE_MAPS = ("elu", "softmax")
"""The feature maps of :func:`linear_attention`."""

_CHUNK = 64  # tokens that the causal form takes at once


class Linear(AttentionKernel):
    """Linear attention: out_i = φ(q_i) Σ_j φ(k_j) v_jᵀ / φ(q_i) Σ_j φ(k_j), d features a head.

    Not an estimate of softmax attention but another attention, and the fastest here: for encoders
    that train with it, and no use for pretrained weights left as they are.

    Args:
        feature_map: "elu" (the default, which has a causal form), φ(x) = elu(x) + 1; or "softmax",
            softmax(q) over the features and softmax(k) over the tokens, whose products sum to 1 by
            themselves.

    Raises:
        OptionError: an unknown feature map; ``causal=True`` with "softmax".

    Source: Katharopoulos et al. 2020, "Transformers are RNNs" (arXiv 2006.16236); softmax, Shen et
    al. 2021, "Efficient Attention: Attention with Linear Complexities" (arXiv 1812.01243).

    >>> kernel = Linear(heads=1, width=2)
    >>> q = torch.zeros(1, 1, 2, 2)
    >>> kernel(q, q, torch.tensor([[[[1.0], [3.0]]]])).flatten()
    tensor([2., 2.])
    """

    causal = True

    def __init__(self, heads: int, width: int, *, seed: int = 0, feature_map: str = "elu") -> None:
        super().__init__(heads, width, seed=seed)
        self.feature_map = check_choice("feature_map", feature_map, FEATURE_MAPS)

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
        """Attend, as in ``AttentionKernel``; neither map has a use for ``scale`` or ``dropout``."""
        return linear_attention(
            query, key, value, feature_map=self.feature_map, mask=mask, causal=causal
        )


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    feature_map: str = "elu",
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return φ(q) (φ(k)ᵀ v) / φ(q) (φ(k)ᵀ 1), in time and memory linear in n.

    Args:
        query, key, value: (b, h, n, d), (b, h, n, d), (b, h, n, dv).
        feature_map: "elu" or "softmax", as in ``Linear``.
        mask: (b, n), true at tokens. A document without any gives zeros.
        causal: whether a token sees itself and earlier ones only.

    Returns:
        (b, h, n, dv) in the type of ``value``; sums are float32, or float64 for float64 inputs.

    Raises:
        OptionError: as in ``Linear``.

    >>> x = torch.tensor([[[[0.0], [2.0]]]])
    >>> linear_attention(x, x, x).flatten()  # (1·0 + 3·2) / (1 + 3)
    tensor([1.5000, 1.5000])
    >>> linear_attention(x, x, x, causal=True).flatten()
    tensor([0.0000, 1.5000])
    """
    with torch.autocast(query.device.type, enabled=False):
        phi_q, phi_k, v = _features(query, key, value, feature_map, mask, causal)
        if causal:
            out, total = _causal_sums(phi_q, phi_k, v)
        else:
            out = phi_q @ (phi_k.mT @ v)
            total = phi_q @ phi_k.sum(dim=-2, keepdim=True).mT
        return (out / torch.where(total > 0, total, 1)).to(value.dtype)


def linear_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    feature_map: str = "elu",
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return what ``linear_attention`` does, with the (n, n) weights in memory.

    >>> q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
    >>> slow = linear_attention_reference(q, k, v)
    >>> torch.allclose(linear_attention(q, k, v), slow, atol=1e-6)
    True
    """
    phi_q, phi_k, v = _features(query, key, value, feature_map, mask, causal)
    weights = phi_q @ phi_k.mT
    weights = weights.tril() if causal else weights
    total = weights.sum(dim=-1, keepdim=True)
    return (weights @ v / torch.where(total > 0, total, 1)).to(value.dtype)


def _features(
    query: Tensor, key: Tensor, value: Tensor, name: str, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return φ(q), φ(k) and v in the type that sums are in, zeros at padding.

    Of a document without a token, the softmax map's φ(k) is not, but φ(q) and v are.
    """
    check_choice("feature_map", name, FEATURE_MAPS)
    if causal and name == "softmax":
        raise OptionError(
            "feature_map='softmax' has no causal form: its softmax over the tokens sees all of "
            "them. Use feature_map='elu' or the attention performer."
        )
    kind = (
        torch.float64 if torch.float64 in (query.dtype, key.dtype, value.dtype) else torch.float32
    )
    q, k, v = query.to(kind), key.to(kind), value.to(kind)
    seen = None if mask is None else mask.bool()[:, None, :, None]
    if seen is not None:
        # There elu + 1 is 0, and so is the softmax over the tokens.
        q, k = torch.where(seen, q, LOWEST), torch.where(seen, k, LOWEST)
        v = torch.where(seen, v, 0)
    if name == "elu":
        phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
    else:
        phi_q, phi_k = q.softmax(dim=-1), k.softmax(dim=-2)
        if seen is not None:
            phi_q = phi_q * seen
    return phi_q, phi_k, v


def _causal_sums(phi_q: Tensor, phi_k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ_{j ≤ i} φ(q_i)·φ(k_j) v_j, and the same without v_j, from sums over chunks."""
    tokens = v.shape[-2]
    ones = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    q, k, v = (
        F.pad(x, (0, 0, 0, -tokens % _CHUNK)).unflatten(-2, (-1, _CHUNK))
        for x in (phi_q, phi_k, ones)
    )
    sums = k.mT @ v  # (b, h, chunks, d, dv + 1)
    before = sums.cumsum(dim=2) - sums
    both = (q @ before + (q @ k.mT).tril() @ v).flatten(-3, -2)[..., :tokens, :]
    return both[..., :-1], both[..., -1:]
