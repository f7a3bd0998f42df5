"""Keys in clusters: which key goes where, and the sums over a cluster that its centroid needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longarc.models.attention.blocks import LOWEST

_SAMPLE = 4
"""Keys for each cluster, those of most weight, on which the iterations run: as good as all."""

_CACHED = 2**18  # elements of a (…, n, c) matrix at once on a CPU: 1 MiB, an L2 cache


def assign_clusters(
    query: Tensor,
    key: Tensor,
    *,
    num_clusters: int,
    iterations: int,
    importance: float,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Put each key of a document's head into one of c clusters: weighted k-means, (b, h, n).

    - The distance is that of the scores: scale² E_q[(q·k − q·k')²] = Δkᵀ S Δk over the document's
      queries, with S = scale² E[q qᵀ]. Keys that no query can tell apart are close.
    - A key weighs w = a^importance in the means, a = exp(E_q[s] + Var_q[s] / 2) for its score s:
      what Σ_q e^{q·k} is for Gaussian queries. Keys that much attention goes to draw the centroids
      to themselves.
    - Iterations start from c keys at even distances along the text, so that nothing is random.

    Padding has no part in it and gets clusters of no meaning. No gradients: assignments are
    constants.

    Args:
        query, key: (b, h, n, d), zeros at padding.
        num_clusters: c.
        iterations: k-means steps, each O(n · c · d); 0 gives the keys to the first c.
        importance: the exponent, ≥ 0; 0 weighs all alike.
        scale: of the products.
        mask: (b, n).
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        query, key = precise(query), precise(key)
        x, log_weight = _score_space(query, key, scale, mask)
        centroids = _spread_out(x, num_clusters, mask)
        many = min(_SAMPLE * num_clusters, x.shape[2])
        log_weight, top = log_weight.topk(many, dim=-1)
        sample = x.gather(2, top[..., None].expand(-1, -1, -1, x.shape[-1]))
        # What is hidden has a weight of e^{−10³⁰} = 0, if importance is not 0.
        weight = (importance * log_weight).exp() * (log_weight > LOWEST / 2)
        weighted = torch.cat([sample, torch.ones_like(sample[..., :1])], -1) * weight[..., None]
        for _ in range(iterations):
            total = sum_by_cluster(weighted, _nearest(sample, centroids), num_clusters)
            mass = total[..., -1:]
            mean = total[..., :-1] / mass.clamp(min=torch.finfo(x.dtype).tiny)
            centroids = torch.where(mass > 0, mean, centroids)
        return _nearest(x, centroids)


def query_moments(query: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """E[q], (b, h, 1, d), and E[q qᵀ], (b, h, d, d), over a document's tokens."""
    if mask is None:
        count = query.new_tensor(float(query.shape[2]))
    else:
        count = mask.sum(dim=-1).clamp(min=1)[:, None, None, None].to(query.dtype)
    return query.sum(dim=2, keepdim=True) / count, query.mT @ query / count


def sum_by_cluster(x: Tensor, label: Tensor, num_clusters: int) -> Tensor:
    """Sum rows (…, n, e) by their label (…, n) below c, (…, c, e); a label of −1 is left out."""
    return _SumByCluster.apply(x, label, num_clusters)  # pyright: ignore[reportReturnType]


class _SumByCluster(torch.autograd.Function):
    """A product with the one-hot matrix, of which a part at a time exists.

    Several times faster on CPUs than scattering, which goes row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, label: Tensor, num_clusters: int) -> Tensor:
        ctx.save_for_backward(label)
        *outer, n, e = x.shape
        rows, labels = x.reshape(-1, n, e), label.reshape(-1, 1, n)
        clusters = torch.arange(num_clusters, device=x.device)[:, None]
        sums = x.new_empty(len(rows), num_clusters, e)
        for part in _parts(rows, num_clusters):
            torch.bmm((labels[part] == clusters).to(x.dtype), rows[part], out=sums[part])
        return sums.view(*outer, num_clusters, e)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (label,) = ctx.saved_tensors
        index = label.clamp(min=0)[..., None].expand(*label.shape, grads[0].shape[-1])
        rows = grads[0].gather(-2, index)
        return rows.masked_fill((label < 0)[..., None], 0), None, None


def _parts(rows: Tensor, columns: int) -> Iterator[slice]:
    """Parts of (batch, n, ·) for which a matrix (part, n, columns) stays in the cache."""
    step = len(rows)
    if rows.device.type == "cpu":
        step = max(1, _CACHED // max(1, rows.shape[1] * columns))
    for start in range(0, len(rows), max(1, step)):
        yield slice(start, start + step)


def precise(x: Tensor) -> Tensor:
    """Return float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def _score_space(
    query: Tensor, key: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Keys whose Euclidean distance is that of their scores, and log a, whose largest is 0."""
    mean, second = query_moments(query * scale, mask)
    log_weight = (key * mean).sum(-1)
    covariance = second - mean.mT @ mean
    log_weight = log_weight + ((key @ covariance) * key).sum(-1) / 2
    if mask is not None:
        log_weight = log_weight.masked_fill(~mask[:, None, :].bool(), LOWEST)
    log_weight = log_weight - log_weight.amax(dim=-1, keepdim=True)
    # S = L Lᵀ makes Δkᵀ S Δk = ‖Lᵀ Δk‖². A little of the identity keeps S from being singular.
    d = key.shape[-1]
    floor = second.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * 1e-3 + 1e-12
    root = torch.linalg.cholesky_ex(
        second + floor * torch.eye(d, device=key.device, dtype=key.dtype)
    )[0]
    centre = query_moments(key, mask)[0]
    return (key - centre) @ root, log_weight


def _spread_out(x: Tensor, count: int, mask: Tensor | None) -> Tensor:
    """Return ``count`` rows of (b, h, n, d) at even distances along the tokens that count."""
    b, h, n, d = x.shape
    part = 2 * torch.arange(count, device=x.device) + 1
    if mask is None:
        index = (part * n // (2 * count)).expand(b, count)
    else:
        tokens = mask.sum(dim=-1, keepdim=True)
        rank = (part * tokens // (2 * count)).long()
        index = (~mask.bool()).to(torch.uint8).argsort(dim=-1, stable=True).gather(-1, rank)
    return x.gather(2, index[:, None, :, None].expand(b, h, count, d))


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """The centroid (b, h, c, d) nearest to each row (b, h, n, d), (b, h, n)."""
    rows, centres = x.flatten(0, 1), centroids.flatten(0, 1)
    minus_half = centres.square().sum(-1)[:, None, :] / -2
    label = torch.empty(rows.shape[:2], dtype=torch.long, device=x.device)
    for part in _parts(rows, centres.shape[1]):
        score = torch.baddbmm(minus_half[part], rows[part], centres[part].mT)
        label[part] = score.argmax(dim=-1)
    return label.view(x.shape[:3])
