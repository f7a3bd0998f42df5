"""LocalClustered against a reference in loops; on the pretrained encoder, its faithfulness."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longarc.models.attention.clustered import variance_correction
from longarc.models.attention.interface import set_attention
from longarc.models.attention.local_clustered import LocalClustered
from longarc.models.attention.softmax import softmax_attention
from longarc.models.attention.window import window_pattern


def slow(
    kernel: LocalClustered, q: Tensor, k: Tensor, v: Tensor, label: Tensor, chosen: Tensor
) -> Tensor:
    """One head's output, (n, dv), query by block of queries."""
    n = len(q)
    pattern = window_pattern(n, kernel.window, kernel.num_global)
    rows = []
    for i in range(n):
        near = pattern[i].clone()
        for block in chosen[i // kernel.window].tolist() if i >= kernel.num_global else []:
            near[block * kernel.window : (block + 1) * kernel.window] = True
        keys, values = [k[near]], [v[near]]
        biases = [torch.zeros(int(near.sum()), dtype=q.dtype)]
        for cluster in label[~near].unique().tolist():
            members = (label == cluster) & ~near
            variance = (q @ k[members].T * 8**-0.5).var(dim=1, correction=0).mean()
            count = members.sum().double()
            biases.append((count.log() + variance_correction(variance, kernel.spread))[None])
            keys.append(k[members].mean(dim=0, keepdim=True))
            values.append(v[members].mean(dim=0, keepdim=True))
        score = torch.cat(keys) @ q[i] * 8**-0.5 + torch.cat(biases)
        rows.append(score.softmax(dim=-1) @ torch.cat(values))
    return torch.stack(rows)


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 257])
def test_outputs_and_gradients(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    qkv = list(torch.randn(3, 2, 1, tokens, 8, generator=generator, dtype=torch.float64))
    qkv = [x.requires_grad_() for x in qkv]
    lengths = [tokens, (tokens + 1) // 2]
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    kernel = LocalClustered(1, 8, window=16, num_global=2, num_clusters=8)
    fast = kernel(*qkv, mask=mask)
    zeroed = [x.detach().masked_fill(~mask[:, None, :, None], 0) for x in qkv[:2]]
    label = kernel.assign(*zeroed, mask=mask)
    blocks, is_chosen = kernel.choose(*zeroed, mask=mask)
    blocks = blocks.masked_fill(~is_chosen, tokens)[:, :, 0]  # a block that is not there
    pairs = [
        (fast[b, 0, :n], slow(kernel, *(x[b, 0, :n] for x in qkv), label[b, 0, :n], blocks[b]))
        for b, n in enumerate(lengths)
    ]
    weights = [torch.randn(a.shape, dtype=a.dtype) for a, _ in pairs]
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    sums = [sum((p[i] * w).sum() for p, w in zip(pairs, weights, strict=True)) for i in (0, 1)]
    for a, b in zip(*(torch.autograd.grad(s, qkv) for s in sums), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_the_blocks_chosen_are_those_attended_to_most() -> None:
    """Queries of block 1 look for the keys of block 7, those of block 4 for block 0."""
    generator = torch.Generator().manual_seed(0)
    q, k = 0.1 * torch.randn(2, 1, 1, 160, 8, generator=generator)
    q[:, :, 16:32, 0] += 4
    k[:, :, 112:128, 0] += 4
    q[:, :, 64:80, 1] += 4
    k[:, :, 3, 1] += 30  # a single key is enough
    kernel = LocalClustered(1, 8, window=16, num_selected=1)
    chosen, is_chosen = kernel.choose(q, k)
    assert is_chosen.all()
    assert chosen[0, 1, 0].item() == 7
    assert chosen[0, 4, 0].item() == 0


def test_all_blocks_chosen_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 2, 3, 100, 8, generator=generator, dtype=torch.float64)
    kernel = LocalClustered(3, 8, window=8, num_selected=20, num_clusters=4)
    torch.testing.assert_close(kernel(*qkv), softmax_attention(*qkv))


def test_single_precision_has_the_gradients_of_double() -> None:
    generator = torch.Generator().manual_seed(0)
    double = list(torch.randn(3, 1, 2, 129, 8, generator=generator, dtype=torch.float64))
    kernel = LocalClustered(2, 8, window=16, num_clusters=8)
    kernel.assign = lambda *_, **__: torch.arange(129).expand(1, 2, 129) % 8  # type: ignore[method-assign]
    found = []
    for dtype in (torch.float32, torch.float64):
        qkv = [x.to(dtype).requires_grad_() for x in double]
        out = kernel(*qkv)
        found.append([out.double(), *torch.autograd.grad(out.square().sum(), qkv)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=2e-5, rtol=2e-5)


@pytest.mark.real
def test_it_is_faithful_to_the_pretrained_encoder(licence_batch: dict[str, Tensor], minilm) -> None:
    def embed() -> Tensor:
        with torch.inference_mode():
            return minilm(**licence_batch).last_hidden_state.mean(dim=1)

    exact = embed()
    set_attention(minilm, "local-clustered")
    cosine = torch.cosine_similarity(embed(), exact)
    assert cosine.min() > 0.997
    set_attention(minilm, "exact")
    torch.testing.assert_close(embed(), exact)
