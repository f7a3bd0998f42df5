"""What holds for every kernel with a window or clusters, however it estimates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longarc.errors import OptionError
from longarc.models.attention.kernel import AttentionKernel
from longarc.models.attention.registry import build_kernel
from longarc.models.attention.softmax import softmax_attention

KERNELS: dict[str, dict[str, Any]] = {
    "block-sparse": {"window": 8, "num_global": 2, "num_random": 2},
    "local-performer": {"window": 8, "num_global": 2, "num_features": 16},
    "clustered": {"num_clusters": 8},
    "local-clustered": {"window": 8, "num_global": 2, "num_clusters": 8},
    "learned": {"window": 8, "num_global": 2, "num_clusters": 8},
}
every_kernel = pytest.mark.parametrize("name", KERNELS)
WINDOWED = [name for name in KERNELS if "window" in KERNELS[name]]


def build(name: str, **options: Any) -> AttentionKernel:
    return build_kernel(name, heads=3, width=8, seed=1, options={**KERNELS[name], **options})


def random_qkv(b: int, n: int, *, dtype: torch.dtype = torch.float64, size: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(n)
    qkv = torch.randn(3, b, 3, n, 8, generator=generator, dtype=torch.float64)
    return [(size * x).to(dtype).requires_grad_() for x in qkv]


def output_and_gradients(
    kernel: AttentionKernel, qkv: Any, tokens: int, **more: Any
) -> list[Tensor]:
    """The first document's real rows of the output, and of the gradients of a sum over them."""
    out = kernel(*qkv, **more)
    row = out[0, :, :tokens]
    gradients = torch.autograd.grad((row * row.detach().cos()).sum(), qkv)
    return [row.detach(), *(g[0, :, :tokens] for g in gradients)]


@every_kernel
@pytest.mark.parametrize("tokens", [1, 2, 17, 63])
def test_padding_and_other_documents_change_nothing(name: str, tokens: int) -> None:
    kernel, qkv = build(name), random_qkv(1, tokens)
    alone = output_and_gradients(kernel, qkv, tokens)
    padded = []
    for x, other in zip(qkv, random_qkv(1, 90), strict=True):
        x = torch.nn.functional.pad(x.detach(), (0, 0, 0, 90 - tokens), value=float("nan"))
        padded.append(torch.cat([x, other.detach()]).requires_grad_())
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[0, tokens:] = False
    with_mask = output_and_gradients(kernel, padded, tokens, mask=mask)
    for a, b in zip(alone, with_mask, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    gradients = torch.autograd.grad(kernel(*padded, mask=mask).sum(), padded)
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert (gradient[0, :, tokens:] == 0).all()


@every_kernel
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(name: str, junk: float) -> None:
    qkv = [x.detach().float() for x in random_qkv(2, 65)]
    mask = torch.ones(2, 65)
    mask[1, 40:] = 0  # a mask of numbers, as tokenizers make it
    mask[1, 5] = 0
    clean = build(name)(*qkv, mask=mask)
    dirty = [x.masked_fill(mask[:, None, :, None] == 0, junk) for x in qkv]
    out = build(name)(*dirty, mask=mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out, clean, atol=0, rtol=0)


@every_kernel
def test_a_document_without_tokens_gives_zeros(name: str) -> None:
    qkv = random_qkv(2, 65, dtype=torch.float32)
    mask = torch.ones(2, 65, dtype=torch.bool)
    mask[1] = False
    out = build(name)(*qkv, mask=mask)
    assert (out[1] == 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), qkv))


@every_kernel
@pytest.mark.parametrize("size", [0.0, 1e-4, 30.0, 300.0])
def test_any_logits_are_finite(name: str, size: float) -> None:
    qkv = random_qkv(1, 65, dtype=torch.float32, size=size)
    out = build(name)(*qkv)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), qkv))


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("tokens", [1, 2, 63, 64])
def test_a_window_of_the_text_is_exact(name: str, tokens: int) -> None:
    qkv = random_qkv(2, tokens)
    out = build(name, window=32)(*qkv)
    torch.testing.assert_close(out, softmax_attention(*qkv), atol=1e-12, rtol=1e-12)


@every_kernel
def test_scale_is_the_products(name: str) -> None:
    q, k, v = (x.detach() for x in random_qkv(1, 65))
    kernel = build(name)
    torch.testing.assert_close(kernel(q, k, v, scale=0.7), kernel(0.7 * 8**0.5 * q, k, v))


@every_kernel
def test_the_layout_in_memory_does_not_matter(name: str) -> None:
    qkv = [x.detach() for x in random_qkv(2, 65)]
    as_in_a_model = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    torch.testing.assert_close(build(name)(*qkv), build(name)(*as_in_a_model))


@every_kernel
def test_half_precision(name: str) -> None:
    qkv = random_qkv(1, 65, dtype=torch.float32, size=0.5)
    kernel = build(name)
    exact = kernel(*qkv)
    half = [x.bfloat16() for x in qkv]
    out = kernel(*half)
    assert out.dtype == torch.bfloat16
    assert (out - exact).norm() < 0.2 * exact.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = kernel(*half)
    assert (cast - exact).norm() < 0.2 * exact.norm()


@every_kernel
def test_dropout_drops_weights_and_keeps_the_mean(name: str) -> None:
    torch.manual_seed(0)
    q, k, v = (x.detach() for x in random_qkv(1, 40, size=0.3))
    kernel = build(name)
    exact = kernel(q, k, v)
    mean = torch.stack([kernel(q, k, v, dropout=0.2) for _ in range(200)]).mean(dim=0)
    assert not torch.equal(kernel(q, k, v, dropout=0.2), exact)
    assert (mean - exact).abs().max() < 0.2


@every_kernel
def test_compiles(name: str) -> None:
    qkv = random_qkv(1, 33)
    kernel = build(name)
    compiled = torch.compile(kernel, backend="eager")
    torch.testing.assert_close(compiled(*qkv), kernel(*qkv))


@every_kernel
def test_nothing_random_is_saved(name: str) -> None:
    assert set(build(name).state_dict()) <= {"share", "bend", "offset"}


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        (name, option, value)
        for name in KERNELS
        for option, value in (
            ("window", 0), ("num_global", -1), ("num_random", -1), ("num_selected", -1),
            ("num_features", 0), ("projection", "ortogonal"), ("num_clusters", 0),
            ("iterations", 1.5),
            ("importance", float("nan")), ("spread", 2.0),
        )
        if option in build_kernel(name, heads=1, width=8).__init__.__kwdefaults__
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=option):
        build(name, **{option: value})
