"""The suite every registered attention kernel passes: what holds whatever it computes.

That a kernel computes what it should is tested against its readable reference in
``tests/models/attention``. Shapes: b documents, h heads, n tokens, d and dv widths.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.errors import OptionError
from longarc.models.attention.kernel import AttentionKernel
from longarc.models.attention.registry import (
    ATTENTIONS,
    attention_options,
    build_kernel,
    check_attention_options,
)

HEADS, WIDTH = 2, 8
every_kernel = pytest.mark.parametrize("name", ATTENTIONS)


def build(name: str, **more) -> AttentionKernel:
    torch.manual_seed(0)
    return build_kernel(name, heads=HEADS, width=WIDTH, **more).eval()


def document(n: int, *, b: int = 2, seed: int = 0, dtype=torch.float64, dv: int = WIDTH):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, HEADS, n, WIDTH), (b, HEADS, n, WIDTH), (b, HEADS, n, dv)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def gradients(kernel, tensors, mask, weight):
    """The result, and the gradients of Σ weight · result in queries, keys and values."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = kernel(*leaves, mask=mask)
    return out.detach(), torch.autograd.grad((out * weight).sum(), leaves)


@every_kernel
@settings(max_examples=8, deadline=None)
@given(b=st.integers(1, 3), n=st.integers(1, 70), dv=st.sampled_from([1, 8, 12]))
def test_shapes_and_types(name, b, n, dv):
    kernel = build(name)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = document(n, b=b, dv=dv, dtype=dtype)
        out = kernel(q, k, v)
        assert out.shape == (b, HEADS, n, dv)
        assert out.dtype == dtype
        assert out.isfinite().all()


@every_kernel
@pytest.mark.parametrize("where", ["behind", "before", "among"])
def test_a_document_depends_on_neither_padding_nor_company(name, where):
    kernel, n = build(name), 75
    alone = document(n, b=1)
    weight = torch.randn(alone[2].shape, dtype=torch.float64)
    want, want_gradients = gradients(kernel, alone, None, weight)
    for extra in (1, 70):
        other = document(n + extra, b=1, seed=1)
        order = torch.randperm(n + extra, generator=torch.Generator().manual_seed(extra))
        at = {
            "behind": torch.arange(n),
            "before": torch.arange(extra, n + extra),
            "among": order[:n].sort().values,
        }[where]
        tensors, mask = [], torch.ones(2, n + extra, dtype=torch.bool)
        mask[0] = False
        mask[0, at] = True
        for mine, theirs in zip(alone, other, strict=True):
            padded = torch.full_like(theirs, 1e4)
            padded[:, :, at] = mine
            tensors.append(torch.cat([padded, theirs]))
        padded_weight = torch.zeros_like(tensors[2])
        padded_weight[:1, :, at] = weight
        got, got_gradients = gradients(kernel, tensors, mask, padded_weight)
        torch.testing.assert_close(got[:1, :, at], want, rtol=1e-5, atol=1e-5)
        for one, two in zip(got_gradients, want_gradients, strict=True):
            torch.testing.assert_close(one[:1, :, at], two, rtol=1e-5, atol=1e-5)
            assert (one[:1, :, ~mask[0]] == 0).all()


@every_kernel
def test_what_stands_in_padding_never_matters(name):
    kernel = build(name)
    tensors = document(40)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[:, 31:] = False
    want = kernel(*tensors, mask=mask)[:, :, :31]
    for tensor in tensors:
        tensor[:, :, 31:] = float("nan")
    got = kernel(*tensors, mask=mask)
    assert torch.equal(got[:, :, :31], want)


@every_kernel
def test_a_document_without_tokens_gives_zeros(name):
    tensors = document(20)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0] = False
    out, found = gradients(build(name), tensors, mask, torch.ones_like(tensors[2]))
    assert (out[0] == 0).all()
    assert out[1].abs().sum() > 0
    for gradient in found:
        assert gradient.isfinite().all()
        assert (gradient[0] == 0).all()


@every_kernel
def test_the_order_of_documents_does_not_matter(name):
    tensors, kernel = document(33, b=3), build(name)
    order = torch.tensor([2, 0, 1])
    got = kernel(*[t[order] for t in tensors])
    torch.testing.assert_close(got, kernel(*tensors)[order], rtol=1e-9, atol=1e-9)


@every_kernel
def test_a_constant_value_comes_back(name):
    """The weights of a query sum to 1."""
    q, k, v = document(50)
    torch.testing.assert_close(build(name)(q, k, torch.ones_like(v)), torch.ones_like(v))


@every_kernel
@pytest.mark.parametrize("size", [0.0, 30.0])
def test_large_and_vanishing_products_are_finite(name, size):
    q, k, v = document(60, dtype=torch.float32)
    out, found = gradients(build(name), [size * q, size * k, v], None, torch.ones_like(v))
    assert out.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in found)
    assert out.abs().max() <= v.abs().max() * 1.01 or name in _NOT_CONVEX


_NOT_CONVEX = {"clustered", "local-clustered", "learned"}
"""Kernels whose corrections may leave the values' range."""


@every_kernel
def test_gradients_are_those_of_the_result(name):
    kernel = build(name, options=_SMOOTH.get(name))
    tensors = [t[:1].clone().requires_grad_() for t in document(19)]
    mask = torch.ones(1, 19, dtype=torch.bool)
    mask[:, 16:] = False

    def real_rows(*tensors):
        return kernel(*tensors, mask=mask)[:, :, :16]

    assert torch.autograd.gradcheck(real_rows, tensors, atol=1e-4, rtol=1e-3, fast_mode=True)


_SMOOTH = {"performer": {"centre": False, "balance": False, "optimal": False}}
"""Options without the statistics of a document that count as constants in the gradient."""


@every_kernel
def test_inputs_are_left_as_they_are(name):
    tensors = document(40)
    before = [t.clone() for t in tensors]
    gradients(build(name), tensors, None, torch.ones_like(tensors[2]))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@every_kernel
def test_views_as_models_hand_them_over(name):
    """Models have (b, n, h, d) in memory and hand a transposed view over."""
    q, k, v = document(40)
    views = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    kernel = build(name)
    torch.testing.assert_close(kernel(*views), kernel(q, k, v))


@every_kernel
def test_half_precision_is_close(name):
    kernel = build(name)
    tensors = document(64, dtype=torch.float32)
    want = kernel(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = kernel(*tensors)
    torch.testing.assert_close(under_autocast.float(), want, rtol=0.1, atol=0.1)
    half = [t.bfloat16() for t in tensors]
    exact = kernel(*[t.float() for t in half])
    torch.testing.assert_close(kernel(*half).float(), exact, rtol=0.1, atol=0.1)


@every_kernel
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_when_little_or_nothing_is_far(name, kind):
    kernel = build(name)
    for n in (150, 200):  # blocks of 64 tokens: nothing is outside three of them
        tensors = [10 * t for t in document(n, dtype=kind)]
        mask = torch.ones(2, n, dtype=torch.bool)
        mask[1, 70:] = False
        out, found = gradients(kernel, tensors, mask, torch.ones_like(tensors[2]))
        for tensor in (out, *found):
            assert tensor.isfinite().all()


@every_kernel
def test_the_seed_decides(name):
    tensors = document(200)
    one, two = (build(name, seed=5)(*tensors) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(copy.deepcopy(build(name, seed=5))(*tensors), one)


@every_kernel
def test_a_scale_of_zero_gives_the_mean_value(name):
    q, k, v = document(30)
    if name in ("linear", "learned"):
        pytest.skip("its feature map has no uniform attention at zero")
    out = build(name)(q, k, v, scale=0.0)
    if name == "block-sparse":  # the mean over what is seen; here that is everything
        kernel = build(name, options={"window": 64})
        out = kernel(q, k, v, scale=0.0)
    torch.testing.assert_close(out, v.mean(dim=2, keepdim=True).expand_as(v), rtol=1e-6, atol=1e-6)


@every_kernel
def test_causal_where_it_says_so(name):
    kernel = build(name)
    tensors = document(90)
    if not kernel.causal:
        with pytest.raises(OptionError, match="causal"):
            kernel(*tensors, causal=True)
        return
    want = kernel(*tensors, causal=True)
    later = [t.clone() for t in tensors]
    for t in later:
        t[:, :, 50:] += 1
    got = kernel(*later, causal=True)
    torch.testing.assert_close(got[:, :, :50], want[:, :, :50])
    assert not torch.allclose(got[:, :, 50:], want[:, :, 50:])


@every_kernel
def test_compiles(name):
    tensors = document(40, dtype=torch.float32)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, 30:] = False
    kernel = build(name)
    torch._dynamo.reset()
    compiled = torch.compile(kernel, backend="aot_eager")
    got, got_gradients = gradients(compiled, tensors, mask, torch.ones_like(tensors[2]))
    want, want_gradients = gradients(kernel, tensors, mask, torch.ones_like(tensors[2]))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for one, two in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@every_kernel
def test_every_option_is_documented_and_checked(name):
    path = ATTENTIONS[name].path
    kernel = getattr(importlib.import_module(path.partition(":")[0]), path.partition(":")[2])
    told = inspect.getdoc(kernel)
    for option in attention_options(name):
        assert re.search(rf"\b{option}\b[\w,\s]*: ", told), f"{name}: what is {option}?"
        with pytest.raises(OptionError, match=option):
            check_attention_options(name, {option: object()})
