from __future__ import annotations

import itertools

import pytest
import torch

from longarc.errors import OptionError
from longarc.models.attention.conditioning import condition, moments
from longarc.models.attention.performer import (
    Performer,
    performer_attention,
    performer_attention_reference,
)
from longarc.models.attention.random_features import draw_projections
from longarc.models.attention.softmax import softmax_attention

SWITCHES = [
    dict(zip(("centre", "balance", "optimal"), chosen, strict=True))
    for chosen in itertools.product([False, True], repeat=3)
]


def _qkv(b=2, h=3, n=50, d=8, dv=5, kind=torch.float64, seed=0, length=1.0):
    """Queries and keys with means and spreads of their own, as models have them."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    q, k = (
        length * (normal(b, n, h, d) * normal(h, d).exp() + normal(h, d)).transpose(1, 2)
        for _ in range(2)
    )
    v = normal(b, n, h, dv).transpose(1, 2)
    mask = torch.rand(b, n, generator=g) > 0.3
    mask[:, 0] = True
    return [x.to(kind).requires_grad_() for x in (q, k, v)], mask


def _all(function, leaves, *args, **options):
    out = function(*leaves, *args, **options)
    pull = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 65, 257])
def test_outputs_and_gradients_are_the_references(n, switches):
    leaves, mask = _qkv(n=n, length=0.5)
    omega = draw_projections(20, 8, heads=3)
    for more in ({"mask": mask}, {}, {"mask": mask, "scale": 0.2}):
        found = _all(performer_attention, leaves, omega, **more, **switches)
        wanted = _all(performer_attention_reference, leaves, omega, **more, **switches)
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 257])
def test_the_causal_form_is_the_references_and_looks_at_nothing_later(n):
    leaves, mask = _qkv(n=n, length=0.5)
    omega = draw_projections(20, 8, heads=3)
    found = _all(performer_attention, leaves, omega, mask=mask, causal=True)
    wanted = _all(performer_attention_reference, leaves, omega, mask=mask, causal=True)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8)
    at = n // 2
    early = performer_attention(
        *(x[:, :, : at + 1] for x in leaves), omega, mask=mask[:, : at + 1], causal=True
    )
    assert torch.allclose(early, found[0][:, :, : at + 1], atol=1e-10)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_it_converges_to_softmax_attention(switches):
    (q, k, v), mask = _qkv(length=0.25, n=30)
    exact = softmax_attention(q, k, v, mask=mask)
    errors = []
    for m in (16, 128, 1024):
        draws = [draw_projections(m, 8, heads=3, method="orthogonal", seed=s) for s in range(8)]
        outs = [performer_attention(q, k, v, x, mask=mask, **switches) for x in draws]
        seen = mask[:, None, :, None]
        errors.append(((torch.stack(outs) - exact) * seen).square().mean().item())
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_centring_and_balancing_bring_it_nearer():
    (q, k, v), _ = _qkv(n=60, length=0.6)
    exact = softmax_attention(q, k, v)
    draws = [draw_projections(64, 8, heads=3, seed=s) for s in range(20)]

    def error(**switches):
        outs = torch.stack([performer_attention(q, k, v, x, **switches) for x in draws])
        return (outs - exact).square().mean().item()

    neither = error(centre=False, balance=False)
    assert error(centre=True, balance=False) < 0.95 * neither
    assert error(centre=False, balance=True) < 0.95 * neither
    assert error() < 0.9 * min(error(balance=False), error(centre=False))


@pytest.mark.parametrize("n", [1, 50, 700])
def test_the_moments_are_those_of_the_tokens(n):
    (q, k, _), mask = _qkv(n=n)
    found = moments(q.detach(), k.detach(), mask, 0.7, True, True)
    for i in range(2):
        there_q, there_k = q[i][:, mask[i]], k[i][:, mask[i]]
        weight = (0.7 * (there_k * there_q.mean(dim=1, keepdim=True)).sum(dim=2)).softmax(dim=1)
        wanted = [x.mean(dim=1) for x in (there_q, there_q**2, there_k, there_k**2)]
        wanted.append((weight[..., None] * there_k).sum(dim=1))
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one[i, :, 0], other)


def test_the_compiler_knows_the_moments_shapes():
    (q, k, _), mask = _qkv(kind=torch.float32)
    torch.library.opcheck(
        torch.ops.longarc.moments, (q.detach(), k.detach(), mask, 0.7, True, False)
    )


def test_balance_leaves_the_least_sum_of_squares():
    (q, k, _), mask = _qkv()
    a, c, psi, _ = condition(q, k, mask, 1.0, centre=True, balance=True, optimal=False)
    seen = mask[:, None, :, None]

    def size(by):
        x, y = (q - a) * by * seen, (k - c) / by * seen
        return (x.square() + y.square()).sum()

    assert size(psi) < min(size(1.02 * psi), size(0.98 * psi), size(torch.ones_like(psi)))


@pytest.mark.parametrize("switches", [SWITCHES[0], SWITCHES[-1]], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_a_document_alone_is_as_among_others_whatever_padding_holds(switches, causal):
    (q, k, v), _ = _qkv(b=3, n=80, kind=torch.float32)
    lengths = (80, 33, 1)
    mask = torch.zeros(3, 80, dtype=torch.bool)
    for i, length in enumerate(lengths):
        mask[i, :length] = True
    hidden = ~mask[:, None, :, None]
    fillings = [0.0, float("nan"), 1e30]
    spoilt = [
        x.detach().masked_fill(hidden, f).requires_grad_()
        for x, f in zip((q, k, v), fillings, strict=True)
    ]
    omega = draw_projections(32, 8, heads=3)
    options = {**switches, "causal": causal}
    together = _all(performer_attention, spoilt, omega, mask=mask, **options)
    pull = torch.linspace(-1, 1, together[0].numel()).view(together[0].shape)
    for i, length in enumerate(lengths):
        own = [x.detach()[i : i + 1, :, :length].requires_grad_() for x in (q, k, v)]
        out = performer_attention(*own, omega, **options)
        alone = [out, *torch.autograd.grad(out, own, pull[i : i + 1, :, :length])]
        for one, other in zip(together, alone, strict=True):
            assert torch.allclose(one[i : i + 1, :, :length], other, rtol=1e-4, atol=1e-5)
            assert one.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [10.0, 100.0])
def test_large_logits_and_empty_documents_stay_finite(length, causal):
    leaves, mask = _qkv(kind=torch.float32, length=length, n=130)
    mask[1] = False
    kernel = Performer(3, 8, num_features=32)
    for x in _all(kernel, leaves, mask=mask, causal=causal):
        assert x.isfinite().all()
        assert (x[1] == 0).all()


def test_half_precision():
    leaves, mask = _qkv(kind=torch.bfloat16, n=130, length=0.5)
    kernel = Performer(3, 8, num_features=32)
    out = kernel(*leaves, mask=mask)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), kernel(*(x.float() for x in leaves), mask=mask), atol=0.02)
    wide = [x.detach().float() for x in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kernel(*wide, mask=mask), kernel(*wide, mask=mask))
        under = kernel(*wide, mask=mask)
    assert torch.equal(under, kernel(*wide, mask=mask))


def test_the_seed_decides_and_nothing_is_saved():
    leaves, _ = _qkv(kind=torch.float32)
    one, same, other = (Performer(3, 8, seed=s, num_features=32) for s in (1, 1, 2))
    assert torch.equal(one(*leaves), same(*leaves))
    assert not torch.equal(one(*leaves), other(*leaves))
    assert one.state_dict() == {}


def test_redrawing_is_for_training_and_follows_the_global_generator():
    leaves, _ = _qkv(kind=torch.float32)
    kernel, plain = (Performer(3, 8, num_features=32, redraw=redraw) for redraw in (True, False))
    torch.manual_seed(0)
    first, second = kernel(*leaves), kernel(*leaves)
    torch.manual_seed(0)
    assert torch.equal(kernel(*leaves), first)
    assert not torch.equal(first, second)
    assert torch.equal(kernel.eval()(*leaves), plain(*leaves))


def test_redrawing_under_an_activation_checkpoint_has_the_right_gradient():
    leaves, _ = _qkv(kind=torch.float32)
    kernel = Performer(3, 8, num_features=32, redraw=True)

    def checkpointed(q, k, v):
        return torch.utils.checkpoint.checkpoint(kernel, q, k, v, use_reentrant=False)

    torch.manual_seed(0)
    found = _all(checkpointed, leaves)
    torch.manual_seed(0)
    for one, other in zip(found, _all(kernel, leaves), strict=True):
        assert torch.equal(one, other)


def test_compiled_it_gives_the_same():
    leaves, mask = _qkv(kind=torch.float32, length=0.5)
    kernel = Performer(3, 8, num_features=32)
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    found = _all(compiled, leaves, mask=mask)
    for one, other in zip(found, _all(kernel, leaves, mask=mask), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "num_features must be a whole number"),
        ({"projection": "stratifed"}, "Did you mean stratified"),
        ({"centre": "yes"}, "centre must be True or False"),
        ({"balance": 1}, "balance must be True or False"),
        ({"optimal": None}, "optimal must be True or False"),
        ({"redraw": 10}, "redraw must be True or False"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(OptionError, match=message):
        Performer(2, 4, **options)
