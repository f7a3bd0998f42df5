"""Attention to clusters of keys in place of the keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longarc.models.attention.clustering import (
    assign_clusters,
    precise,
    query_moments,
    sum_by_cluster,
)
from longarc.models.attention.kernel import AttentionKernel
from longarc.models.attention.window import (
    Far,
    attend_biased,
    lowest,
    or_default,
    zero_padding,
)
from longarc.options import check_number, check_whole

BEND = 0.01
"""Where the correction for the variance of a cluster's scores turns: at σ = 10."""


class Clustered(AttentionKernel):
    """Each query attends to c clusters of keys, a cluster weighing as much as its keys together.

    softmax_c( scale · q·k̄_c + log n_c + ½ spread · σ_c² ) v̄_c, with n_c keys in cluster c, their
    mean k̄_c and mean value v̄_c. For Gaussian keys Σ_j e^{s_j} = n e^{s̄ + Var(s)/2}: σ_c² is the
    variance of the scores within the cluster, averaged over the document's queries.

    The clusters of a document's head are :func:`~longarc.models.attention.clustering.\
assign_clusters`'; none depends on padding or on other documents. Exact where there are as many
    clusters as tokens. The cost is O(n · c · d · (iterations + 2)).

    In the gradient the assignments are constants: k̄, v̄ and σ² are functions of keys and values
    (σ² of the queries also).

    Args:
        num_clusters: c ≥ 1, of a document's head. 128 by default: half the error of 32.
        iterations: of k-means, ≥ 0. 4 by default; more changes little.
        importance: ≥ 0; how much more a key that much attention goes to draws the centroids. 1 by
            default and not LocalClustered's 2: here the near keys too are in clusters.
        spread: in [0, 2), the share of the correction for the variance within a cluster; .4 by
            default. It and ``importance`` are the best of a few tried on eight texts of 512
            tokens, by less than .01 in the cosine of the embeddings.

    Raises:
        OptionError: a value out of range.

    Source: clusters of keys are this library's; of queries: Vyas et al. 2020, "Fast Transformers
    with Clustered Attention" (arXiv 2007.04825).

    >>> import torch
    >>> q = k = torch.eye(4).repeat_interleave(2, dim=0)[None, None]  # eight keys, four distinct
    >>> v = torch.arange(8.0).view(1, 1, 8, 1)
    >>> from longarc.models.attention.softmax import softmax_attention
    >>> out = Clustered(1, 4, num_clusters=4)(q, k, v)
    >>> torch.allclose(out, softmax_attention(q, k, v), atol=1e-5)
    True
    """

    def __init__(
        self,
        heads: int,
        width: int,
        *,
        seed: int = 0,
        num_clusters: int = 128,
        iterations: int = 4,
        importance: float = 1.0,
        spread: float = 0.4,
    ) -> None:
        super().__init__(heads, width, seed=seed)
        self.num_clusters = check_whole("num_clusters", num_clusters, at_least=1)
        self.iterations = check_whole("iterations", iterations)
        self.importance = check_number("importance", importance)
        self.spread = check_number("spread", spread, below=2.0)

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
        """Attend to clusters; shapes as in :class:`AttentionKernel`."""
        self.refuse_causal(causal)
        scale = or_default(scale, self.width)
        query, key, value = zero_padding(mask, query, key, value)
        label = self.assign(query, key, mask=mask, scale=scale)
        if mask is not None:
            label = label.masked_fill(~mask.bool()[:, None], -1)
        with torch.autocast(query.device.type, enabled=False):
            rows, centre, second = cluster_rows(query, key, value, mask=mask, scale=scale)
            sums = sum_by_cluster(rows, label, self.num_clusters)[:, None]
            far = summarise(sums, centre, second, self.width, self.correct)
        key, mean, bias = (x[:, 0].to(query.dtype) for x in (far.key, far.value, far.bias))
        out = attend_biased(query, key, mean, bias, scale=scale, dropout=dropout)
        return out.to(value.dtype)

    def correct(self, variance: Tensor) -> Tensor:
        """What the variance of a cluster's scores adds to its bias."""
        return variance_correction(variance, self.spread)

    def assign(
        self, query: Tensor, key: Tensor, *, mask: Tensor | None = None, scale: float | None = None
    ) -> Tensor:
        """The cluster of each key, (b, h, n), numbers below c; of no meaning at padding."""
        return assign_clusters(
            query,
            key,
            num_clusters=self.num_clusters,
            iterations=self.iterations,
            importance=self.importance,
            scale=or_default(scale, self.width),
            mask=mask,
        )


def variance_correction(
    variance: Tensor, spread: float | Tensor, bend: float | Tensor = BEND
) -> Tensor:
    """½ spread · σ² / √(1 + bend · σ²): grows like σ² where that is small and like σ where not.

    The second is what holds for a few keys far apart, and keeps huge scores finite.
    """
    return spread / 2 * variance * (1 + bend * variance).rsqrt()


def cluster_rows(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is to be summed, (b, h, n, d + dv + 2), and the centre of the keys.

    Its columns: k, v, 1, and y = (k − centre)ᵀ S (k − centre) with S = scale² E[q qᵀ], of which
    the variance of the scores within a cluster is made. Also S. All float32 at least.
    """
    query, key, value = precise(query), precise(key), precise(value)
    second = query_moments(query * scale, mask)[1]
    centre = query_moments(key, mask)[0].detach()  # any constant will do: it cancels
    away = key - centre
    square = ((away @ second) * away).sum(-1, keepdim=True)
    return torch.cat([key, value, torch.ones_like(square), square], dim=-1), centre, second


def summarise(
    sums: Tensor,
    centre: Tensor,
    second: Tensor,
    width: int,
    correction: Callable[[Tensor], Tensor],
) -> Far:
    """The key, value and bias that stand for each cluster.

    Args:
        sums: (b, nb, h, c, d + dv + 2), of :func:`cluster_rows` over a cluster's tokens.
        centre, second: (b, h, 1, d) and (b, h, d, d), as that function returned them.
        width: d.
        correction: what the variance within a cluster, (b, nb, h, c), adds to the bias.
    """
    count = sums[..., -2:-1]
    mean = sums / count.clamp(min=1)
    key, value, square = mean[..., :width], mean[..., width:-2], mean[..., -1]
    away = key - centre[:, None]
    variance = (square - ((away @ second[:, None]) * away).sum(-1)).clamp(min=0)
    count = count[..., 0].detach()
    bias = count.clamp(min=1).log() + correction(variance)
    return Far(key, value, bias.masked_fill(count < 0.5, lowest(bias.dtype)))
