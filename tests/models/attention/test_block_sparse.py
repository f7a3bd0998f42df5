"""BlockSparse against the textbook's softmax with its pattern, and what the pattern is."""

from __future__ import annotations

import pytest
import torch

from longarc.models.attention.block_sparse import BlockSparse
from longarc.models.attention.softmax import softmax_attention
from longarc.models.attention.window import window_pattern


def slow(kernel: BlockSparse, qkv: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Each document without its padding, by its own pattern; zeros at padding."""
    out = torch.zeros_like(qkv[2])
    for i, seen in enumerate(mask):
        pattern = kernel.pattern(int(seen.sum()))
        alone = [x[i : i + 1, :, seen] for x in qkv]
        heads = [
            softmax_attention(*(x[:, h : h + 1] for x in alone), allowed=allowed)
            for h, allowed in enumerate(pattern)
        ]
        out[i, :, seen] = torch.cat(heads, dim=1)[0]
    return out


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 257])
@pytest.mark.parametrize("num_random", [0, 1, 3])
def test_outputs_and_gradients(tokens: int, num_random: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    qkv = list(torch.randn(3, 2, 3, tokens, 8, generator=generator, dtype=torch.float64))
    qkv = [x.requires_grad_() for x in qkv]
    mask = torch.ones(2, tokens, dtype=torch.bool)
    mask[1, ::5] = False  # gaps, one of them before the first token
    mask[1, -1] = True
    kernel = BlockSparse(3, 8, window=16, num_global=2, num_random=num_random, seed=3)
    fast, expected = kernel(*qkv, mask=mask), slow(kernel, qkv, mask)
    real = mask[:, None, :, None]
    torch.testing.assert_close(fast * real, expected * real, atol=1e-12, rtol=1e-12)
    weight = torch.randn(fast.shape, dtype=fast.dtype) * real
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), qkv),
        torch.autograd.grad((expected * weight).sum(), qkv),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_as_many_different_random_blocks_as_there_are() -> None:
    window, tokens = 4, 16 * 4
    for num_random in (1, 3, 13, 20):
        kernel = BlockSparse(2, 8, window=window, num_global=0, num_random=num_random)
        more = kernel.pattern(tokens) & ~window_pattern(tokens, window, 0)
        drawn = more.view(2, 16, window, 16, window)[:, :, 0, :, 0].sum(dim=-1)
        inner = drawn[:, 1:-1]
        assert (inner == min(num_random, 13)).all()
        assert (drawn[:, 0] == min(num_random, 14)).all()


def test_the_draw_follows_from_the_seed_and_differs_between_heads_and_rows() -> None:
    one, same, other = (BlockSparse(2, 8, window=2, seed=s).pattern(80) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_every_block_is_drawn_about_as_often() -> None:
    kernel = BlockSparse(200, 8, window=1, num_global=0, num_random=2)
    far = kernel.pattern(12)[:, 6] & ~window_pattern(12, 1, 0)[6]
    share = far.double().mean(dim=0)[[0, 1, 2, 3, 4, 8, 9, 10, 11]]
    assert (share - 2 / 9).abs().max() < 0.1
