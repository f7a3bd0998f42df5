"""LocalPerformer against a reference with (n, n, m) in memory, and its estimate as m grows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longarc.models.attention.local_performer import LocalPerformer
from longarc.models.attention.softmax import softmax_attention
from longarc.models.attention.window import window_pattern


def slow(kernel: LocalPerformer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One document, (h, n, d): near weights e^{q·k}, far ones their estimates, then normalised."""
    n, scale = q.shape[1], q.shape[-1] ** -0.5
    near = window_pattern(n, kernel.window, kernel.num_global)
    query_mean, key_mean = q.mean(dim=1, keepdim=True), k.mean(dim=1, keepdim=True)
    x, y = q - query_mean, k - key_mean
    ratio = y.square().sum((1, 2), keepdim=True) / x.square().sum((1, 2), keepdim=True)
    x, y = x * ratio**0.25 * scale**0.5, y / ratio**0.25 * scale**0.5
    omega = kernel.projections.double().mT
    phi_x, phi_y = ((z @ omega - z.square().sum(-1, keepdim=True) / 2).exp() for z in (x, y))
    estimate = phi_x @ phi_y.mT / kernel.num_features
    shift = scale * ((k - key_mean) @ query_mean.mT).mT + scale * q @ key_mean.mT
    weights = torch.where(near, (scale * q @ k.mT).exp(), estimate * shift.exp())
    return weights @ v / weights.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("tokens", [2, 63, 64, 65, 257])
def test_outputs_and_gradients(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(3, 2, 3, tokens, 8, generator=generator, dtype=torch.float64)
    qkv = [x.requires_grad_() for x in qkv]
    lengths = [tokens, (tokens + 1) // 2]
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    kernel = LocalPerformer(3, 8, window=16, num_global=2, num_features=32)
    fast = kernel(*qkv, mask=mask)
    pairs = [
        (fast[b, :, :n], slow(kernel, *(x[b, :, :n] for x in qkv))) for b, n in enumerate(lengths)
    ]
    weights = [torch.randn(a.shape, dtype=a.dtype) for a, _ in pairs]
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    sums = [sum((p[i] * w).sum() for p, w in zip(pairs, weights, strict=True)) for i in (0, 1)]
    if tokens <= 32:
        return  # exact: the projections have no part in it
    for a, b in zip(*(torch.autograd.grad(s, qkv) for s in sums), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


def test_more_features_are_closer() -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = 0.5 * torch.randn(3, 1, 4, 200, 16, generator=generator, dtype=torch.float64)
    exact = softmax_attention(*qkv)
    errors = [
        (LocalPerformer(4, 16, window=16, num_features=m)(*qkv) - exact).norm() / exact.norm()
        for m in (16, 256, 4096)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.05
