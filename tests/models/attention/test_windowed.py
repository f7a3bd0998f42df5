"""Kernels with a window: the document counts, wherever its padding stands."""

from __future__ import annotations

import pytest
import torch

from longarc.models.attention.registry import build_kernel
from longarc.models.attention.windowed import take_tokens, tokens_first

OPTIONS = {
    "block-sparse": {"window": 4, "num_random": 2},
    "local-performer": {"window": 4, "num_features": 16},
    "local-clustered": {"window": 4, "num_clusters": 4},
    "learned": {"window": 4, "num_clusters": 4},
}


def padded(rows: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Three documents of 30 tokens among ``rows``: behind, before and between padding."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(3, rows, dtype=torch.bool)
    mask[0, -30:] = mask[1, :30] = True
    mask[2, torch.randperm(rows, generator=generator)[:30]] = True
    tensors = [
        torch.randn(3, 2, rows, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(3)
    ]
    return tensors, mask


@pytest.mark.parametrize("name", OPTIONS)
def test_the_document_alone_wherever_its_padding_stands(name: str) -> None:
    kernel = build_kernel(name, heads=2, width=8, options=OPTIONS[name])
    tensors, mask = padded(41)
    out = kernel(*tensors, mask=mask)
    for i, seen in enumerate(mask):
        alone = kernel(*(x[i : i + 1, :, seen] for x in tensors))[0]
        torch.testing.assert_close(out[i, :, seen], alone, rtol=1e-9, atol=1e-9)
        weight = torch.randn(alone.shape, dtype=alone.dtype)
        found = torch.autograd.grad((out[i, :, seen] * weight).sum(), tensors, retain_graph=True)
        expected = torch.autograd.grad((alone * weight).sum(), tensors)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def test_compiled_masks_are_not_looked_at() -> None:
    mask = torch.arange(8) < torch.tensor([[3], [8]])
    torch._dynamo.reset()
    order = torch.compile(tokens_first, backend="eager", fullgraph=True)(mask)
    assert order is not None
    assert torch.equal(order[0], torch.arange(8).expand(2, 8))


def test_there_and_back() -> None:
    tensors, mask = padded(41)
    order = tokens_first(mask)
    assert order is not None
    front, back = order
    assert mask.gather(1, front)[:, :30].all()
    moved = take_tokens(tensors[0], front)
    assert torch.equal(moved[2, :, :30], tensors[0][2, :, mask[2]])
    assert torch.equal(take_tokens(moved, back), tensors[0])


def test_nothing_moves_where_tokens_come_first() -> None:
    lengths = torch.tensor([[0], [1], [7], [8]])
    assert tokens_first(torch.arange(8) < lengths) is None
