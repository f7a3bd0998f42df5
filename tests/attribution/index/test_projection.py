"""Projected gradients: the factored arithmetic, the average over the signs, the error told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from longarc.attribution.index.hashed import Hashed
from longarc.attribution.index.layers import project
from longarc.attribution.index.projection import Sketches, Whole, balanced
from longarc.attribution.index.search import estimates
from longarc.errors import ModelError, OptionError


class Reader(nn.Module):
    """Every kind of layer that is known, a shared one among them; in double precision."""

    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, 6, padding_idx=0)
        self.places = nn.Embedding(5, 6)
        self.norm = norm(6)
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.double()

    def forward(self, ids):
        places = torch.arange(ids.shape[1])[None]
        hidden = self.norm(self.words(ids) + self.places(places))
        hidden = torch.tanh(self.inner(torch.tanh(self.inner(hidden))))
        return self.head(hidden.mean(dim=1))


IDS = torch.tensor([[1, 2, 3, 0], [4, 4, 4, 8], [5, 1, 0, 0]])
ALPHA = torch.tensor([[0.3, -0.5, 0.2], [1.0, -0.4, -0.6], [-0.1, 0.4, -0.3]]).double()


def exact_gradients(model):
    def loss(parameters, ids, alpha):
        return (functional_call(model, parameters, (ids[None],))[0] * alpha).sum()

    return vmap(grad(loss), in_dims=(None, 0, 0))(dict(model.named_parameters()), IDS, ALPHA)


def rows_of(model, projection, names=None):
    def backward():
        logits = model(IDS)
        logits.backward(ALPHA)
        return logits

    return project(model, names or dict(model.named_parameters()), projection, backward)


def shapes_of(model):
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


def positive(shapes, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: tuple(torch.rand(k, generator=generator).double() + 0.2 for k in shape)
        for n, shape in shapes.items()
    }


def outer(factors):
    return factors[0] if len(factors) == 1 else factors[0][:, None] * factors[1]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_the_whole_is_the_gradient_of_each_example(norm):
    model = Reader(norm)
    exact = exact_gradients(model)
    rows = rows_of(model, Whole(shapes_of(model), like=ALPHA))
    expected = torch.cat([g.flatten(1) for g in exact.values()], dim=1)
    assert torch.allclose(rows, expected, rtol=0, atol=1e-13)
    assert expected.abs().sum() > 1


def projection_of(kind, shapes, size, *, weighed=False, seed=0, width=8):
    """A projection, with what it multiplies gradients by at random if asked."""
    if kind == "hashed":
        weights = {n: outer(f) for n, f in positive(shapes).items()} if weighed else {}
        return Hashed(shapes, size, seed=seed, weights=weights, like=ALPHA)
    balance = positive(shapes) if weighed else {}
    return Sketches(shapes, size, width=width, seed=seed, balance=balance, like=ALPHA)


@pytest.mark.parametrize("size", [128, 4096])
@pytest.mark.parametrize("kind", ["factored", "hashed"])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_layers_give_the_sketch_of_the_gradient(kind, weighed, size):
    """From what enters and leaves the layers, the same as from the gradient written out."""
    model = Reader()
    shapes = shapes_of(model)
    sketches = projection_of(kind, shapes, size, weighed=weighed)
    rows = rows_of(model, sketches)
    exact = exact_gradients(model)
    for i, row in enumerate(rows):
        # A direction is divided by the balance, a gradient multiplied.
        direct = sketches.direction({n: g[i] * sketches.scale(n) ** 2 for n, g in exact.items()})
        assert torch.allclose(row, direct, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["factored", "hashed"])
@pytest.mark.parametrize("weighed", [False, True])
def test_inner_products_are_right_on_average_and_so_is_their_error(kind, weighed):
    generator = torch.Generator().manual_seed(1)
    left, right, vector, one, two = (
        torch.randn(*shape, generator=generator).double()
        for shape in ((3, 4, 40), (3, 4, 50), (3, 17), (40, 50), (17,))
    )
    truth = torch.einsum("bti,btj,ij->b", left, right, one) + vector @ two
    found, told = [], []
    for seed in range(400):
        # Names of their own, so that the places differ as well as the signs.
        shapes = {f"matrix {seed}": (40, 50), f"vector {seed}": (17,)}
        matrix, entries = shapes
        size = 64 if kind == "hashed" else 192
        sketches = projection_of(kind, shapes, size, weighed=weighed, seed=seed, width=4)
        rows = left.new_zeros(3, size)
        sketches.add_outer(rows, matrix, left, right)
        sketches.add_vector(rows, entries, vector)
        direction = sketches.direction({matrix: one, entries: two})
        value, variance = estimates(rows, direction[None], sketches.sketches)
        found.append(value[0])
        told.append(variance[0])
    found, told = torch.stack(found), torch.stack(told)
    error = found.std(dim=0) / len(found) ** 0.5
    assert ((found.mean(dim=0) - truth).abs() < 3 * error).all()
    assert torch.allclose(told.mean(dim=0), found.var(dim=0), rtol=0.2)


@pytest.mark.parametrize("kind", [Hashed, Sketches])
def test_signs_depend_on_seed_and_name_alone(kind):
    shapes = {"a": (3, 4), "b": (3, 4)}
    part = torch.ones(3, 4)
    both = kind(shapes, 128, seed=1, like=part)
    alone = kind({"b": (3, 4)}, 128, seed=1, like=part)
    other = kind(shapes, 128, seed=2, like=part)
    assert torch.equal(both.direction({"b": part}), alone.direction({"b": part}))
    assert not torch.equal(both.direction({"b": part}), both.direction({"a": part}))
    assert not torch.equal(both.direction({"b": part}), other.direction({"b": part}))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 5), cols=st.integers(1, 5), seed=st.integers(0, 99))
def test_balance_of_a_product_is_its_root(rows, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    down, across = (torch.rand(n, generator=generator).double() + 0.1 for n in (rows, cols))
    found = balanced(down[:, None] * across)
    assert torch.allclose(outer(found), (down[:, None] * across).sqrt())


def test_balance_leaves_out_what_never_moved():
    scale = torch.tensor([[4.0, 9.0], [0.0, 0.0]]).double()
    assert torch.allclose(outer(balanced(scale))[0], scale[0].sqrt())
    assert all(factor.isfinite().all() for factor in balanced(torch.zeros(2, 3)))
    assert torch.equal(balanced(torch.tensor([4.0, 0.0]))[0], torch.tensor([2.0, 1.0]))


def test_parameters_are_left_as_they_were_and_lower_layers_alone():
    model = Reader()
    model.words.weight.requires_grad_(False)
    sketches = Sketches({"head.weight": (3, 6)}, 128, like=ALPHA)
    seen = []
    model.inner.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    rows_of(model, sketches, ["head.weight"])
    assert seen == [False, False]
    assert not model.words.weight.requires_grad
    assert model.head.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


class Mixer(nn.Module):
    """A layer whose first axis is not the examples."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, ids):
        return self.head(self.inner(torch.nn.functional.one_hot(ids % 4).double().flatten(0, 1))
                         .view(*ids.shape, 4).mean(dim=1))  # fmt: skip


def test_layers_that_mix_the_examples_are_refused():
    model = Mixer()
    with pytest.raises(ModelError, match="Linear sees 12 rows where others see 3"):
        rows_of(model, Whole(shapes_of(model), like=ALPHA))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(OptionError, match="multiple of 64, and two or more; found 100"):
        Sketches({"a": (3, 4)}, 100, like=ALPHA)
    with pytest.raises(OptionError, match="a has 3 axes"):
        Sketches({"a": (3, 4, 5)}, 128, like=ALPHA)
