from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.models.attention import blocks
from longarc.models.attention.linear_attention import (
    feature_attention,
    feature_attention_reference,
)

LENGTHS = [1, 2, 63, 64, 65, 257, 1000]


def _inputs(n, kind=torch.float64, *, b=3, h=2, d=5, dv=7, m=17, spread=1.0, seed=0):
    """Heads laid out as models have them, maps of each document's own, and one empty document."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return spread * torch.randn(*shape, generator=g, dtype=torch.float64).to(kind)

    q, k, v = (normal(b, n, h, w).transpose(1, 2).requires_grad_() for w in (d, d, dv))
    maps = {"query_map": normal(b, h, d, m), "key_map": normal(1, h, d, m)}
    mask = torch.rand(b, n, generator=g) > 0.3
    mask[:, 0], mask[-1] = True, b == 1
    maps |= {"offset": normal(1, h, m), "key_square": -normal(1, h, d).square()}
    return (q, k, v), maps | {"mask": mask}


def _all(function, leaves, options, **more):
    """The output and the gradients of a smooth function of it."""
    out = function(*leaves, **options, **more)
    pull = torch.linspace(-1, 1, out.numel()).bfloat16().to(out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(("kind", "close"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_outputs_and_gradients_are_the_references(n, kind, close, causal):
    leaves, options = _inputs(n, kind)
    found = _all(feature_attention, leaves, options, causal=causal)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    wide = {k: x if k == "mask" else x.double() for k, x in options.items()}
    wanted = _all(feature_attention_reference, exact, wide, causal=causal)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == kind
        assert (one - other).abs().max() <= close * max(1, other.abs().max())


@pytest.mark.parametrize("cached", [1, 700, 5000])
def test_the_size_of_the_blocks_does_not_matter(monkeypatch, cached):
    leaves, options = _inputs(150, b=5)
    wanted = _all(feature_attention, leaves, options)
    monkeypatch.setattr(blocks, "_CACHED", cached)
    monkeypatch.setattr(blocks, "_SHORTEST", 1)
    for one, other in zip(_all(feature_attention, leaves, options), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_and_their_gradients_are_those_of_finite_differences(causal):
    leaves, options = _inputs(4, b=2, d=3, dv=2, m=4)

    def function(q, k, v):
        return feature_attention(q, k, v, causal=causal, **options)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("causal", [False, True])
def test_a_document_alone_is_as_among_others_with_more_padding(causal):
    leaves, options = _inputs(90, torch.float32, b=4)
    mask = torch.zeros(4, 90, dtype=torch.bool)
    lengths = (90, 40, 65, 1)
    for i, length in enumerate(lengths):
        mask[i, :length] = True
    together = _all(feature_attention, leaves, options | {"mask": mask}, causal=causal)
    pull = torch.linspace(-1, 1, together[0].numel()).bfloat16().float().view(together[0].shape)
    for i, length in enumerate(lengths):
        own = [x.detach()[i : i + 1, :, :length].requires_grad_() for x in leaves]
        out = feature_attention(
            *own,
            options["query_map"][i : i + 1],
            options["key_map"],
            offset=options["offset"],
            key_square=options["key_square"],
            causal=causal,
        )
        alone = [out, *torch.autograd.grad(out, own, pull[i : i + 1, :, :length])]
        for one, other in zip(together, alone, strict=True):
            assert torch.allclose(one[i : i + 1, :, :length], other, atol=1e-5)
            assert (one[i, :, length:] == 0).all()


@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("causal", [False, True])
def test_what_padding_holds_goes_nowhere(causal, filling):
    leaves, options = _inputs(70, torch.float32)
    wanted = _all(feature_attention, leaves, options, causal=causal)
    hidden = ~options["mask"][:, None, :, None]
    spoilt = [x.detach().masked_fill(hidden, filling) for x in leaves]
    found = _all(feature_attention, [x.requires_grad_() for x in spoilt], options, causal=causal)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_a_document_without_tokens_gives_zeros_and_takes_no_gradient():
    leaves, options = _inputs(70, torch.float32)
    for x in _all(feature_attention, leaves, options):
        assert (x[-1] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spread", [10.0, 100.0])
def test_large_logits_stay_finite(spread, causal):
    leaves, options = _inputs(130, torch.float32, spread=spread)
    for x in _all(feature_attention, leaves, options, causal=causal):
        assert x.isfinite().all()


def test_large_logits_stay_right():
    leaves, options = _inputs(100, torch.float64, spread=6.0)  # logits of hundreds
    short = [x.detach().float().requires_grad_() for x in leaves]
    narrow = {k: x if k == "mask" else x.float() for k, x in options.items()}
    out, wanted = (
        _all(feature_attention, short, narrow)[0],
        _all(feature_attention_reference, leaves, options)[0],
    )
    assert (out - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_half_precision_in_gives_half_precision_out_with_float32_sums():
    leaves, options = _inputs(3000, torch.float32, b=1)
    wanted = _all(feature_attention, leaves, options)
    halves = [x.detach().bfloat16().requires_grad_() for x in leaves]
    exact = _all(feature_attention, [x.detach().float().requires_grad_() for x in halves], options)
    found = _all(feature_attention, halves, options)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one.float(), other, rtol=2**-7, atol=3e-3 * other.abs().max().item())
    with torch.autocast("cpu", torch.bfloat16):
        under = _all(feature_attention, leaves, options)
    for one, other in zip(under, wanted, strict=True):
        assert torch.equal(one, other)


def _twice(leaves, options):
    """The gradients of a function, and those of a function of them."""
    with torch.autocast("cpu", torch.bfloat16, enabled=options.get("autocast", False)):
        out = feature_attention(*leaves, **{k: x for k, x in options.items() if k != "autocast"})
        pull = torch.linspace(-1, 1, out.numel()).to(out.dtype).view(out.shape)
        first = torch.autograd.grad(out, leaves, pull, create_graph=True)
    size = torch.stack([x.float().square().sum() for x in first]).sum()
    return [*first, *torch.autograd.grad(size, leaves)]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_gradient_of_the_gradient_in_half_precision(kind):
    leaves, options = _inputs(40, torch.float32, spread=0.5)
    halves = [x.detach().to(kind).requires_grad_() for x in leaves]
    exact = _twice([x.detach().float().requires_grad_() for x in halves], options)
    for one, other in zip(_twice(halves, options), exact, strict=True):
        assert one.dtype == kind
        # Outputs and first gradients are rounded on the way.
        assert (one - other).abs().max() <= 16 * torch.finfo(kind).eps * other.abs().max()


def test_a_gradient_of_the_gradient_under_autocast():
    leaves, options = _inputs(40, torch.float32, spread=0.5)
    wanted = _twice(leaves, options)
    for one, other in zip(_twice(leaves, options | {"autocast": True}), wanted, strict=True):
        assert torch.equal(one, other)


def test_the_causal_form_does_not_see_what_comes_later():
    leaves, options = _inputs(150, torch.float64)
    leaves = [x.detach() for x in leaves]
    options["mask"][:] = True
    out = feature_attention(*leaves, causal=True, **options)
    for at in (1, 63, 64, 100):
        later = [torch.cat([x[:, :, :at], 3 * x[:, :, at:]], dim=2) for x in leaves]
        changed = feature_attention(*later, causal=True, **options)
        assert torch.allclose(out[:, :, :at], changed[:, :, :at], atol=1e-9)
        assert not torch.allclose(out[:, :, at:], changed[:, :, at:], atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 4),
    h=st.integers(1, 3),
    n=st.integers(1, 80),
    d=st.integers(1, 9),
    dv=st.integers(1, 9),
    m=st.integers(1, 40),
    causal=st.booleans(),
)
def test_any_shape(b, h, n, d, dv, m, causal):
    leaves, options = _inputs(n, b=b, h=h, d=d, dv=dv, m=m, seed=n)
    found = _all(feature_attention, leaves, options, causal=causal)
    wanted = _all(feature_attention_reference, leaves, options, causal=causal)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-9 * max(1, other.abs().max().item()))


@pytest.mark.parametrize("causal", [False, True])
def test_compiled_it_is_one_graph_with_the_same_results(causal):
    leaves, options = _inputs(40, torch.float32)
    compiled = torch.compile(feature_attention, fullgraph=True, backend="aot_eager")
    found = _all(compiled, leaves, options, causal=causal)
    for one, other in zip(
        found, _all(feature_attention, leaves, options, causal=causal), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_operators_keep_their_promises_to_the_compiler():
    leaves, options = _inputs(9, torch.float32)
    maps = (options[name] for name in ("query_map", "key_map", "offset", "key_square"))
    inputs = (*(x.detach() for x in leaves), *maps)
    torch.library.opcheck(torch.ops.longarc.attend, (*inputs, options["mask"]))
    results = torch.ops.longarc.attend(*inputs, options["mask"])
    torch.library.opcheck(
        torch.ops.longarc.attend_backward,
        (torch.ones_like(inputs[2]), *inputs, options["mask"], *results),
    )
