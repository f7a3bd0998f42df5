"""Learned: where it starts, and that what it learns can be learnt and saved."""

from __future__ import annotations

import torch

from longarc.models.attention.learned import Learned
from longarc.models.attention.local_clustered import LocalClustered


def random_qkv(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(3, 1, 3, n, 8, generator=generator, dtype=torch.float64)


def test_new_it_is_local_clustered() -> None:
    qkv = random_qkv(100)
    options = {"window": 8, "num_clusters": 6, "spread": 0.6}
    learned, plain = Learned(3, 8, **options)(*qkv), LocalClustered(3, 8, **options)(*qkv)
    torch.testing.assert_close(learned, plain, atol=1e-7, rtol=1e-6)  # parameters are float32


def test_gradients_of_the_parameters() -> None:
    qkv = random_qkv(60)
    kernel = Learned(3, 8, window=8, num_clusters=6).double()

    def out(*parameters: torch.Tensor) -> torch.Tensor:
        named = dict(zip(("share", "bend", "offset"), parameters, strict=True))
        return torch.func.functional_call(kernel, named, tuple(qkv))

    parameters = [p.detach().clone().requires_grad_() for p in kernel.parameters()]
    assert torch.autograd.gradcheck(out, parameters, fast_mode=True)


def test_each_head_has_its_own_parameters() -> None:
    qkv = random_qkv(60)
    kernel = Learned(3, 8, window=8, num_clusters=6)
    before = kernel(*qkv).detach()
    with torch.no_grad():
        kernel.offset[1] = 0.5
    changed = (kernel(*qkv) - before).abs().amax(dim=(0, 2, 3))
    assert changed[1] > 1e-3
    assert changed[0] == changed[2] == 0


def test_what_it_learnt_is_in_the_state_dict() -> None:
    kernel, other = Learned(3, 8), Learned(3, 8)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.3
    other.load_state_dict(kernel.state_dict())
    qkv = random_qkv(200)
    assert torch.equal(kernel(*qkv), other(*qkv))
