"""Blockwise exact attention against the textbook's with the pattern written out."""

from __future__ import annotations

import pytest
import torch

from longarc.models.attention.outside import sum_outside
from longarc.models.attention.softmax import softmax_attention
from longarc.models.attention.window import (
    Far,
    attend_biased,
    attend_near,
    num_blocks,
    window_pattern,
    zero_padding,
)


def random_qkv(n: int, *, b: int = 2, d: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    qkv = torch.randn(3, b, 3, n, d, generator=generator, dtype=torch.float64)
    return [x.requires_grad_() for x in qkv]


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 257])
@pytest.mark.parametrize(("window", "num_global"), [(1, 0), (16, 0), (16, 3), (64, 1)])
def test_outputs_and_gradients(tokens: int, window: int, num_global: int) -> None:
    qkv = random_qkv(tokens)
    mask = torch.ones(2, tokens, dtype=torch.bool)
    mask[1, (tokens + 1) // 2 :] = False
    clean = zero_padding(mask, *qkv)
    fast = attend_near(*clean, window=window, num_global=num_global, mask=mask)
    allowed = window_pattern(tokens, window, num_global)
    if tokens <= 2 * window:
        assert allowed.all()
    slow = softmax_attention(*clean, mask=mask, allowed=allowed)
    real = mask[:, None, :, None]
    torch.testing.assert_close(fast * real, slow * real, atol=1e-12, rtol=1e-12)
    weight = torch.randn(fast.shape, dtype=fast.dtype) * real
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), qkv, retain_graph=True),
        torch.autograd.grad((slow * weight).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_the_pattern_query_by_query() -> None:
    for n, window, g in ((11, 2, 1), (9, 4, 2), (5, 1, 0)):
        pattern = window_pattern(n, window, g)
        for i in range(n):
            start = i // window * window
            near = set(range(max(0, start - window), min(n, start + 2 * window)))
            seen = set(range(n)) if i < g else near | set(range(g))
            assert set(pattern[i].nonzero().flatten().tolist()) == seen


def test_far_keys_share_the_softmax_and_have_gradients() -> None:
    q, k, v = random_qkv(50, b=1)
    blocks = num_blocks(50, 8)
    generator = torch.Generator().manual_seed(0)
    far = [
        torch.randn(
            1, blocks, 3, 4, *end, generator=generator, dtype=torch.float64
        ).requires_grad_()
        for end in ((8,), (8,), ())
    ]
    fast = attend_near(q, k, v, window=8, num_global=0, scale=0.3, far=Far(*far))
    rows = []
    for i in range(50):
        at = i // 8
        near = window_pattern(50, 8, 0)[i]
        keys = torch.cat([k[0, :, near], far[0][0, at]], dim=1)
        values = torch.cat([v[0, :, near], far[1][0, at]], dim=1)
        score = 0.3 * (keys @ q[0, :, i, :, None])[..., 0]
        score = torch.cat([score[:, :-4], score[:, -4:] + far[2][0, at]], dim=1)
        rows.append((score.softmax(dim=-1)[:, None] @ values)[:, 0])
    slow = torch.stack(rows, dim=1)[None]
    torch.testing.assert_close(fast, slow)
    with torch.no_grad():
        torch.testing.assert_close(
            attend_near(q, k, v, window=8, num_global=0, scale=0.3, far=Far(*far)), slow
        )
    weight = torch.randn(slow.shape, dtype=slow.dtype)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), [q, k, v, *far]),
        torch.autograd.grad((slow * weight).sum(), [q, k, v, *far]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_bias_with_and_without_a_gradient_is_the_same() -> None:
    q, k, v = (x.detach() for x in random_qkv(9))
    bias = torch.randn(2, 3, 9, dtype=torch.float64)
    expected = ((0.5 * q @ k.mT + bias[..., None, :]).softmax(-1)) @ v
    torch.testing.assert_close(attend_biased(q, k, v, bias, scale=0.5), expected)
    carried = attend_biased(q, k, v, bias.requires_grad_(), scale=0.5)
    torch.testing.assert_close(carried, expected)


@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
def test_sums_outside(blocks: int) -> None:
    x = torch.randn(2, blocks, 3, dtype=torch.float64, requires_grad=True)
    index = torch.arange(blocks)
    outside = ((index[:, None] - index).abs() > 1).double()
    torch.testing.assert_close(sum_outside(x), outside @ x)
    assert torch.autograd.gradcheck(sum_outside, x)
    assert torch.autograd.gradgradcheck(sum_outside, x)


def test_sums_outside_keep_their_digits_beside_something_huge() -> None:
    x = torch.tensor([[1.0, 2.0, 1e30, 3.0, 4.0, 5.0]])
    assert sum_outside(x)[0, 2].item() == 1 + 4 + 5
