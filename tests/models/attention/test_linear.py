from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.errors import OptionError
from longarc.models.attention.linear import (
    FEATURE_MAPS,
    Linear,
    linear_attention,
    linear_attention_reference,
)

FORMS = [("elu", False), ("elu", True), ("softmax", False)]
forms = pytest.mark.parametrize(("feature_map", "causal"), FORMS)


def _qkv(n, kind=torch.float64, b=3, h=2, d=5, dv=7, length=1.0):
    g = torch.Generator().manual_seed(n)
    leaves = [
        (length * torch.randn(b, n, h, w, generator=g, dtype=torch.float64))
        .transpose(1, 2)
        .to(kind)
        .requires_grad_()
        for w in (d, d, dv)
    ]
    mask = torch.rand(b, n, generator=g) > 0.3
    mask[:, 0], mask[-1] = True, b == 1
    return leaves, mask


def _all(function, leaves, **options):
    out = function(*leaves, **options)
    pull = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]


@forms
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 257, 1000])
@pytest.mark.parametrize(("kind", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_outputs_and_gradients_are_the_references(n, kind, close, feature_map, causal):
    leaves, mask = _qkv(n, kind)
    options = {"feature_map": feature_map, "mask": mask, "causal": causal}
    found = _all(linear_attention, leaves, **options)
    wanted = _all(linear_attention_reference, leaves, **options)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == kind
        assert torch.allclose(one, other, atol=close * max(1, other.abs().max().item()))


def test_elu_is_the_papers_sum_token_by_token():
    (q, k, v), _ = _qkv(9, b=1, h=1)

    def phi(x):
        return torch.where(x > 0, x + 1, x.exp())

    for i in range(9):
        weights = (phi(q[0, 0, i]) * phi(k[0, 0, : i + 1])).sum(dim=-1)
        row = (weights[:, None] * v[0, 0, : i + 1]).sum(dim=0) / weights.sum()
        assert torch.allclose(linear_attention(q, k, v, causal=True)[0, 0, i], row)


def test_softmax_is_the_papers_product():
    (q, k, v), _ = _qkv(9, b=1)
    wanted = q.softmax(dim=-1) @ (k.softmax(dim=-2).mT @ v)
    assert torch.allclose(linear_attention(q, k, v, feature_map="softmax"), wanted)


@forms
def test_gradients_are_those_of_finite_differences(feature_map, causal):
    leaves, mask = _qkv(3, b=2, h=1, d=2, dv=2)

    def function(q, k, v):
        return linear_attention(q, k, v, feature_map=feature_map, causal=causal, mask=mask)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@forms
def test_a_document_alone_is_as_among_others_whatever_padding_holds(feature_map, causal):
    (q, k, v), _ = _qkv(80, torch.float32)
    lengths = (80, 33, 1)
    mask = torch.arange(80) < torch.tensor(lengths)[:, None]
    hidden = ~mask[:, None, :, None]
    fillings = (float("inf"), float("nan"), 1e30)
    spoilt = [
        x.detach().masked_fill(hidden, f).requires_grad_()
        for x, f in zip((q, k, v), fillings, strict=True)
    ]
    options = {"feature_map": feature_map, "causal": causal}
    together = _all(linear_attention, spoilt, mask=mask, **options)
    pull = torch.linspace(-1, 1, together[0].numel()).view(together[0].shape)
    for i, length in enumerate(lengths):
        own = [x.detach()[i : i + 1, :, :length].requires_grad_() for x in (q, k, v)]
        out = linear_attention(*own, **options)
        alone = [out, *torch.autograd.grad(out, own, pull[i : i + 1, :, :length])]
        for one, other in zip(together, alone, strict=True):
            assert torch.allclose(one[i : i + 1, :, :length], other, atol=1e-5)
            assert one.isfinite().all()


@forms
@pytest.mark.parametrize("length", [1.0, 1000.0])
def test_large_inputs_and_empty_documents_stay_finite(feature_map, causal, length):
    leaves, mask = _qkv(70, torch.float32, length=length)
    for x in _all(linear_attention, leaves, feature_map=feature_map, causal=causal, mask=mask):
        assert x.isfinite().all()
        assert (x[-1] == 0).all()


@forms
def test_half_precision_has_float32_sums(feature_map, causal):
    leaves, _ = _qkv(2000, torch.bfloat16, b=1)
    kernel = Linear(2, 5, feature_map=feature_map)
    out = kernel(*leaves, causal=causal)
    assert out.dtype == torch.bfloat16
    wide = [x.float() for x in leaves]
    exact = kernel(*wide, causal=causal)
    assert torch.allclose(out.float(), exact, rtol=2**-7, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernel(*wide, causal=causal), exact)


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 3),
    h=st.integers(1, 3),
    n=st.integers(1, 140),
    d=st.integers(1, 6),
    dv=st.integers(1, 6),
    form=st.sampled_from(FORMS),
)
def test_any_shape(b, h, n, d, dv, form):
    leaves, mask = _qkv(n, b=b, h=h, d=d, dv=dv)
    options = {"feature_map": form[0], "causal": form[1], "mask": mask}
    wanted = _all(linear_attention_reference, leaves, **options)
    for one, other in zip(_all(linear_attention, leaves, **options), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@forms
def test_compiled_it_gives_the_same(feature_map, causal):
    leaves, mask = _qkv(70, torch.float32)
    options = {"feature_map": feature_map, "causal": causal, "mask": mask}
    compiled = torch.compile(linear_attention, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        _all(compiled, leaves, **options), _all(linear_attention, leaves, **options), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_errors_name_the_option():
    with pytest.raises(OptionError, match="Did you mean softmax"):
        Linear(2, 4, feature_map="sofmax")
    (q, k, v), _ = _qkv(3)
    with pytest.raises(OptionError, match="no causal form"):
        Linear(2, 5, feature_map="softmax")(q, k, v, causal=True)
    assert FEATURE_MAPS == ("elu", "softmax")
