"""Attention to clusters against a reference in loops that is given the same assignments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longarc.models.attention.clustered import Clustered, variance_correction
from longarc.models.attention.clustering import assign_clusters, sum_by_cluster
from longarc.models.attention.softmax import softmax_attention


def random_qkv(n: int, *, b: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    qkv = torch.randn(3, b, 2, n, 8, generator=generator, dtype=torch.float64)
    return [x.requires_grad_() for x in qkv]


def slow(kernel: Clustered, q: Tensor, k: Tensor, v: Tensor, label: Tensor) -> Tensor:
    """One head's output, (n, dv), cluster by cluster: Var over keys, its mean over queries."""
    keys, values, biases = [], [], []
    for cluster in label.unique().tolist():
        members = label == cluster
        scores = q @ k[members].T * 8**-0.5
        variance = scores.var(dim=1, correction=0).mean()
        biases.append(members.sum().double().log() + variance_correction(variance, kernel.spread))
        keys.append(k[members].mean(dim=0))
        values.append(v[members].mean(dim=0))
    score = q @ torch.stack(keys).T * 8**-0.5 + torch.stack(biases)
    return score.softmax(dim=-1) @ torch.stack(values)


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 257])
def test_outputs_and_gradients(tokens: int) -> None:
    qkv = random_qkv(tokens)
    lengths = [tokens, (tokens + 1) // 2]
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    kernel = Clustered(2, 8, num_clusters=16, iterations=2)
    fast = kernel(*qkv, mask=mask)
    zeroed = [x.detach().masked_fill(~mask[:, None, :, None], 0) for x in qkv[:2]]
    label = kernel.assign(*zeroed, mask=mask)
    pairs = [
        (fast[b, h, :n], slow(kernel, *(x[b, h, :n] for x in qkv), label[b, h, :n]))
        for b, n in enumerate(lengths)
        for h in range(2)
    ]
    weights = [torch.randn(a.shape, dtype=a.dtype) for a, _ in pairs]
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    sums = [sum((p[i] * w).sum() for p, w in zip(pairs, weights, strict=True)) for i in (0, 1)]
    for a, b in zip(*(torch.autograd.grad(s, qkv) for s in sums), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_as_many_clusters_as_keys_are_exact(tokens: int) -> None:
    qkv = random_qkv(tokens)
    out = Clustered(2, 8, num_clusters=64)(*qkv)
    torch.testing.assert_close(out, softmax_attention(*qkv))


def test_equal_keys_are_one_cluster_and_exact() -> None:
    q, _, v = random_qkv(60)
    k = torch.randn(2, 2, 5, 8, dtype=torch.float64).repeat_interleave(12, dim=2)
    out = Clustered(2, 8, num_clusters=12)(q, k, v)
    torch.testing.assert_close(out, softmax_attention(q, k, v))


def test_assignments_separate_what_queries_tell_apart() -> None:
    """Keys differ much in a direction no query has, and little in the one they all have."""
    generator = torch.Generator().manual_seed(0)
    q = torch.zeros(1, 1, 50, 8)
    q[..., 0] = torch.randn(50, generator=generator)
    side = torch.arange(50) % 2
    k = torch.zeros(1, 1, 50, 8)
    k[..., 0] = side.float()
    k[..., 1] = 10 * torch.randn(50, generator=generator)
    label = assign_clusters(
        q, k, num_clusters=2, iterations=4, importance=0.0, scale=1.0
    )[0, 0]  # fmt: skip
    assert label[side == 0].unique().numel() == label[side == 1].unique().numel() == 1
    assert label[0] != label[1]


def test_important_keys_get_clusters_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 1, 400, 8, generator=generator)
    q[..., 0] += 3
    k = torch.randn(1, 1, 400, 8, generator=generator)
    k[:, :, 100:104, 0] += 6  # what nearly all attention goes to
    sizes = []
    for importance in (0.0, 2.0):
        label = assign_clusters(
            q, k, num_clusters=8, iterations=4, importance=importance, scale=0.35
        )[0, 0]  # fmt: skip
        sizes.append(torch.bincount(label, minlength=8)[label[100:104]].float().mean())
    assert sizes[1] < sizes[0]


def test_sums_by_cluster() -> None:
    x = torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True)
    label = torch.randint(-1, 5, (2, 3, 7))
    slow_sums = torch.stack([((label == c)[..., None] * x).sum(dim=-2) for c in range(5)], dim=-2)
    torch.testing.assert_close(sum_by_cluster(x, label, 5), slow_sums)
    assert torch.autograd.gradcheck(lambda x: sum_by_cluster(x, label, 5), x)
    assert torch.autograd.gradgradcheck(lambda x: sum_by_cluster(x, label, 5), x)


def test_large_batches_go_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, 3000, 8, generator=generator)
    together = assign_clusters(q, k, num_clusters=64, iterations=2, importance=1.0, scale=0.3)
    alone = [
        assign_clusters(q[:1, h:h + 1], k[:1, h:h + 1], num_clusters=64, iterations=2,
                        importance=1.0, scale=0.3)[0, 0]
        for h in range(3)
    ]  # fmt: skip
    assert (together[0] == torch.stack(alone)).double().mean() > 0.999
