"""Residual attention as one wide product: the textbook's sums of matrices, gradients and all."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from longarc.models.attention import residual_blocked
from longarc.models.attention.registry import build_kernel
from longarc.models.attention.residual import concatenate, residual_attention, wide_attention
from longarc.models.attention.residual_blocked import blocked_attention
from longarc.models.attention.residual_reference import residual_attention_reference
from longarc.models.attention.residual_state import ResidualAttention

LAYERS, HEADS, WIDTH = 4, 2, 8
OPTIONS = [
    {},
    {"gate": True},
    {"mean": True},
    {"last": 2},
    {"gate": True, "last": 3},
    {"mean": True, "last": 2},
]


def wide(queries, keys, value, *, factors, mask, scale):
    return wide_attention(*concatenate(queries, keys, factors), value, mask=mask, scale=scale)


def stack(n, dtype, *, b=3, seed=0):
    """Queries, keys and values of every layer, as views of (b, n, h, d), as models have them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, LAYERS, b, n, HEADS, WIDTH)
    whole = torch.randn(shape, generator=generator, dtype=dtype).transpose(3, 4)
    return [[x.clone().requires_grad_() for x in kind] for kind in whole]


def masks(n):
    """Padding after, in between and before the tokens."""
    mask = torch.ones(3, n, dtype=torch.bool)
    mask[0, n - n // 3 :] = False
    mask[1, 2:5] = mask[1, n // 2] = False
    mask[2, :3] = False
    return mask


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(residual_blocked, "_CACHED", 7 * 5)
    monkeypatch.setattr(residual_blocked, "_KEYS", 7)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("form", [wide, blocked_attention])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_outputs_and_all_gradients_are_the_textbooks(
    small_tiles, options, padded, form, dtype, tolerance
):
    n = 23
    queries, keys, values = stack(n, dtype)
    mask = masks(n) if padded else None
    shape = ResidualAttention(
        LAYERS, **{"gate": False, "mean": False, "last": None} | options
    ).to(dtype)  # fmt: skip
    leaves = [*queries, *keys, *values]
    if shape.gates is not None:
        torch.nn.init.normal_(shape.gates, generator=torch.Generator().manual_seed(5))
        leaves.append(shape.gates)
    scale = 0.4
    got = []
    for layer, value in enumerate(values):
        summed = list(shape.summed_layers(layer))
        s = scale / len(summed) if shape.mean else scale
        got.append(
            form(
                [queries[i] for i in summed],
                [keys[i] for i in summed],
                value,
                factors=shape.factors(layer),
                mask=mask,
                scale=s,
            )
        )
    want = residual_attention_reference(
        queries, keys, values, gates=shape.gates, mean=shape.mean, last=shape.last, mask=mask,
        scale=scale,
    )  # fmt: skip
    seen = 1 if mask is None else mask[:, None, :, None]
    pull = torch.randn(LAYERS, *values[0].shape, dtype=dtype) * seen
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine * seen, theirs * seen, rtol=0, atol=tolerance)
    mine = torch.autograd.grad(got, leaves, list(pull))
    theirs = torch.autograd.grad(want, leaves, list(pull))
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_plain_kernels_can_be_differentiated_twice_and_forward(dropout):
    found = [[x[..., :3] for x in kind[:2]] for kind in stack(6, torch.float64, b=1)]
    q, k, (v, _) = [[x.detach().clone().requires_grad_() for x in kind] for kind in found]
    factors = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, True, True, False]])

    def attend(*tensors):
        torch.manual_seed(0)
        return residual_attention(
            tensors[:2], tensors[2:4], tensors[4], factors=tensors[5], mask=mask, dropout=dropout
        )[:, :, mask[0]]

    inputs = (*q, *k, v, factors)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(attend, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(attend, inputs)
    with pytest.raises(NotImplementedError, match="no gradient of the gradient"):
        torch.autograd.grad(attend(*inputs).square().sum(), inputs, create_graph=True)


def test_the_usual_tiles_and_types():
    queries, keys, values = stack(450, torch.float32, b=1)
    want = residual_attention_reference(queries, keys, values)[-1]
    torch.testing.assert_close(residual_attention(queries, keys, values[-1]), want)
    half = [[x.detach().bfloat16() for x in kind] for kind in (queries, keys, values)]
    for form in (residual_attention, blocked_attention):
        out = form(half[0], half[1], half[2][-1], scale=WIDTH**-0.5)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), want, atol=0.05, rtol=0.05)


def test_what_stands_in_padding_does_not_matter(small_tiles):
    n = 23
    queries, keys, values = stack(n, torch.float64)
    mask = masks(n)
    mask[0] = False  # a document without tokens
    clean = residual_attention(queries, keys, values[-1], mask=mask)
    assert not clean.masked_fill(mask[:, None, :, None], 0).any()
    clean_gradients = torch.autograd.grad(clean.square().sum(), [*queries, *keys, values[-1]])
    hidden = ~mask[:, None, :, None]
    q, k, v = (
        [x.detach().masked_fill(hidden, float("nan")).requires_grad_() for x in kind]
        for kind in (queries, keys, values)
    )
    out = residual_attention(q, k, v[-1], mask=mask)
    assert torch.equal(out, clean)
    for one, two in zip(
        torch.autograd.grad(out.square().sum(), [*q, *k, v[-1]]), clean_gradients, strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_layers", [1, LAYERS])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_matrix_of_all_pairs_is_made(dtype, n_layers, dropout):
    n = 1024
    queries, keys, values = stack(n, dtype, b=1)
    queries, keys = queries[:n_layers], keys[:n_layers]

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor):
                    self.seen = max(self.seen, x.numel())
            return out

    with Largest() as largest:
        residual_attention(queries, keys, values[-1], dropout=dropout).sum().backward()
    assert 0 < largest.seen < n * n / 8
    with Largest() as largest:
        residual_attention_reference(queries[:1], keys[:1], values[:1])
    assert largest.seen == HEADS * n * n


def test_dropout_drops_weights_and_its_gradient_is_of_what_was_kept(small_tiles):
    n, p = 40, 0.3
    queries, keys, _ = stack(n, torch.float64, b=1)
    call = {"scale": 0.4, "dropout": p}
    torch.manual_seed(1)
    identity = torch.eye(n, dtype=torch.float64).expand(1, HEADS, n, n)
    dropped = blocked_attention(queries, keys, identity, **call).detach()
    total = sum(0.4 * q @ k.mT for q, k in zip(queries, keys, strict=True))
    weights = total.softmax(dim=-1)
    kept = dropped != 0
    torch.testing.assert_close(dropped, kept * weights / (1 - p))
    assert abs(kept.double().mean() - (1 - p)) < 0.03
    value = torch.randn(1, HEADS, n, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    out = blocked_attention(queries, keys, value, **call)
    want = (kept * weights / (1 - p)) @ value
    torch.testing.assert_close(out, want)
    leaves = [*queries, *keys, value]
    for one, two in zip(
        torch.autograd.grad(out.square().sum(), leaves),
        torch.autograd.grad(want.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_more_threads_for_the_gradients_drop_the_same_weights(small_tiles, monkeypatch):
    queries, keys, values = stack(23, torch.float64)
    leaves = [*queries, *keys, values[-1]]
    found = []
    for later in (1, 3):
        monkeypatch.setattr(residual_blocked, "_CACHED", 35)
        torch.manual_seed(1)
        out = blocked_attention(queries, keys, values[-1], scale=0.4, dropout=0.3)
        monkeypatch.setattr(residual_blocked, "_CACHED", 35 * later)  # as with so many threads
        found.append(torch.autograd.grad(out.square().sum(), leaves))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("n", [0, 1])
def test_documents_of_no_token_and_of_one(dtype, padded, n):
    queries, keys, values = stack(n, dtype)
    mask = torch.ones(3, n, dtype=torch.bool) if padded else None
    out = residual_attention(queries, keys, values[-1], mask=mask)
    assert torch.equal(out, values[-1])
    out.sum().backward()
    assert torch.equal(values[-1].grad, torch.ones_like(out))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_layers", [1, LAYERS])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_document_of_padding_gives_zeros_and_pulls_nothing(dtype, n_layers, dropout):
    queries, keys, values = stack(9, dtype)
    queries, keys = queries[:n_layers], keys[:n_layers]
    mask = masks(9)
    mask[1] = False
    out = residual_attention(queries, keys, values[0], mask=mask, dropout=dropout)
    assert not out[1].any()
    for gradient in torch.autograd.grad(out.sum(), [*queries, *keys, values[0]]):
        assert gradient.isfinite().all()
        assert not gradient[1].any()


def test_performer_estimates_the_sum():
    """Exponents add up: a kernel as wide as the layers together estimates e^{A_n}."""
    queries, keys, values = stack(12, torch.float64, b=1)
    q, k = concatenate([x.detach() / 4 for x in queries], [x.detach() / 4 for x in keys])
    exact = residual_attention(
        [x / 4 for x in queries], [x / 4 for x in keys], values[-1], scale=WIDTH**-0.5
    )

    def error(features):
        kernel = build_kernel(
            "performer", heads=HEADS, width=LAYERS * WIDTH, options={"num_features": features}
        )
        out = kernel(q, k, values[-1].detach(), scale=WIDTH**-0.5)
        return (out - exact).square().mean() / exact.square().mean()

    assert error(2048) < 0.02
    assert error(2048) < error(128)
