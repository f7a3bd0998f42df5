"""Decomposed Jacobians against automatic differentiation of textbook steps, and of torch's."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jacrev

from longarc.dynamics.jacobian_products import (
    lyapunov_exponents,
    product_norms,
    products,
    spectral_norms,
    spectral_radii,
)
from longarc.dynamics.recurrent_jacobian import outputs_of, recurrent_jacobians, run_layers
from longarc.errors import DataError, ModelError, OptionError
from textbook.recurrences import CELLS, make, run, step

DOUBLE = torch.float64
sizes = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(1, 9))


def case(cell, hidden=5, inputs=3, batch=2, steps=6, seed=0, scale=1.0):
    torch.manual_seed(seed)
    module = make(cell, inputs, hidden)
    for weight in module.parameters():
        weight.data.mul_(scale * hidden**0.5)  # far from linear
    return module, torch.randn(batch, steps, inputs, dtype=DOUBLE)


def autograd_jacobians(cell, module, x):
    """(b, n, S, H, S, H) of a textbook step at the states that it visits itself."""
    found = []
    for document in x:
        states = run(cell, module, document)
        found.append(
            torch.stack(
                [
                    jacrev(lambda s, x_t=x_t: step(cell, module, x_t, s))(before)
                    for x_t, before in zip(document, states, strict=False)
                ]
            )
        )
    return torch.stack(found)


@settings(max_examples=8, deadline=None)
@given(size=sizes, seed=st.integers(0, 1000))
@pytest.mark.parametrize("cell", CELLS)
def test_the_sum_is_autograds(cell, size, seed):
    hidden, inputs, batch, steps = size
    module, x = case(cell, hidden, inputs, batch, steps, seed)
    found = recurrent_jacobians(module, x)
    expected = autograd_jacobians(cell, module, x).flatten(-2).flatten(-3, -2)
    assert (found.matrices() - expected).abs().max() <= 1e-10
    vectors = torch.randn(batch, steps, found.states, hidden, dtype=DOUBLE)
    columns = vectors.flatten(-2)[..., None]
    applied = found.apply(vectors).flatten(-2)
    assert (applied - (expected @ columns)[..., 0]).abs().max() <= 1e-10
    pulled = found.pull(vectors).flatten(-2)
    assert (pulled - (expected.mT @ columns)[..., 0]).abs().max() <= 1e-10
    terms = sum(found.only(name).matrices() for name in found.terms)
    torch.testing.assert_close(terms, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_the_sum_is_that_of_torchs_own_module(cell):
    """One step of the fused module, from a state of its own, differentiated by autograd."""
    module, x = case(cell)
    module.batch_first = True
    found = recurrent_jacobians(module, x).matrices()
    states = len(x[0]), x.shape[1]
    two = cell in ("lstm", "output-gated-gru")

    def one(state, x_t):
        start = tuple(s[None, None] for s in state) if two else state[0][None, None]
        _, end = module(x_t[None, None], start)
        return torch.stack([e[0, 0] for e in end]) if two else end[0]

    for b in range(len(x)):
        state = torch.zeros(1 + two, 5, dtype=DOUBLE)
        for t in range(states[1]):
            expected = torch.autograd.functional.jacobian(
                lambda s, x_t=x[b, t]: one(s, x_t), state
            ).reshape(found.shape[2:])
            assert (found[b, t] - expected).abs().max() <= 1e-10
            state = one(state, x[b, t]).detach()


@pytest.mark.parametrize("cell", CELLS)
def test_each_term_is_its_path_alone(cell):
    """A step in which all but one use of h (or the carry) is held still."""
    module, x = case(cell)
    found = recurrent_jacobians(module, x)
    document = x[1]
    states = run(cell, module, document)
    for name in found.terms:
        expected = [
            jacrev(
                lambda s, x_t=x_t, still=before, name=name: step(
                    cell, module, x_t, s, moves=name, still=still
                )
            )(before)
            for x_t, before in zip(document, states, strict=False)
        ]
        matrix = found.only(name).matrices()[1]
        torch.testing.assert_close(
            matrix, torch.stack(expected).reshape(matrix.shape), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("cell", ["lstm", "output-gated-gru"])
def test_cell_to_cell(cell):
    """c_t by c_{t−1} where h_{t−1} follows it, the gate before held still."""
    module, x = case(cell)
    found = recurrent_jacobians(module, x, state="cell")
    assert "output gate" not in found.terms
    for b, document in enumerate(x):
        states = run(cell, module, document)
        for t in range(1, len(document)):
            before = states[t]
            shape = torch.tanh if cell == "lstm" else lambda c: c
            gate = before[0] / shape(before[1])

            def following(c, gate=gate, shape=shape, x_t=document[t]):
                return step(cell, module, x_t, torch.stack([gate * shape(c), c]))[1]

            expected = jacrev(following)(before[1])
            torch.testing.assert_close(found.matrices()[b, t], expected, rtol=0, atol=1e-9)
    for name, norm in found.norms().items():
        part = found if name == "sum" else found.only(name)
        torch.testing.assert_close(norm, part.matrices().flatten(-2).norm(dim=-1))


@pytest.mark.parametrize("cell", CELLS)
def test_norms_radii_and_singular_values_are_the_matrices(cell):
    module, x = case(cell, hidden=6)
    found = recurrent_jacobians(module, x)
    norms = found.norms()
    assert set(norms) == {*found.terms, "sum"}
    for name, norm in norms.items():
        part = found if name == "sum" else found.only(name)
        torch.testing.assert_close(norm, part.matrices().flatten(-2).norm(dim=-1))
    exact = torch.linalg.eigvals(found.matrices()).abs().amax(-1)
    torch.testing.assert_close(spectral_radii(found), exact)
    # A basis of all N vectors has all there is.
    torch.testing.assert_close(
        spectral_radii(found, exact=False, basis=99), exact, rtol=1e-5, atol=1e-5
    )
    largest = torch.linalg.svdvals(found.matrices())[..., 0]
    torch.testing.assert_close(spectral_norms(found), largest)
    torch.testing.assert_close(
        spectral_norms(found, exact=False, basis=99), largest, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("cell", CELLS)
def test_arnoldi_comes_near_in_a_layer_of_some_size(cell):
    torch.manual_seed(0)
    module = make(cell, 16, 96)
    found = recurrent_jacobians(module, torch.randn(1, 6, 16, dtype=DOUBLE))
    exact = spectral_radii(found, exact=True)
    assert ((spectral_radii(found, exact=False) / exact - 1).abs() < 0.05).all()
    largest = spectral_norms(found, exact=True)
    assert ((spectral_norms(found, exact=False) / largest - 1).abs() < 0.02).all()


@pytest.mark.parametrize("cell", CELLS)
def test_products_over_distance(cell):
    module, x = case(cell, hidden=3, steps=7)
    found = recurrent_jacobians(module, x)
    single = found.matrices()
    for distance in (1, 2, 3, 5, 7):
        chained = products(found, distance)
        assert chained.shape[1] == 8 - distance
        for end in range(distance - 1, 7):
            expected = torch.eye(single.shape[-1], dtype=DOUBLE).expand(2, -1, -1)
            for t in range(end - distance + 1, end + 1):
                expected = single[:, t] @ expected
            torch.testing.assert_close(chained[:, end - distance + 1], expected)
    norms = product_norms(found)
    for distance in (1, 4, 7):
        expected = products(found, distance)[:, -1].flatten(-2).norm(dim=-1).log()
        torch.testing.assert_close(norms[:, distance], expected)
    assert (norms[:, 0] - math.log(single.shape[-1]) / 2).abs().max() < 1e-12
    estimate = product_norms(found, probes=4000)
    alive = norms > -600
    assert ((estimate - norms)[alive].abs() < 0.1).all()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "output-gated-gru"])
def test_all_lyapunov_exponents_add_up_to_the_volume(cell):
    module, x = case(cell, hidden=3, steps=12, scale=0.3)
    found = recurrent_jacobians(module, x)
    exponents = lyapunov_exponents(found, found.size)
    volume = torch.linalg.slogdet(found.matrices()).logabsdet.mean(1)
    torch.testing.assert_close(exponents.sum(1), volume)


def test_the_first_exponent_is_the_growth_of_the_product():
    module, x = case("gru", hidden=4, steps=300, scale=0.5)
    found = recurrent_jacobians(module, x)
    first = lyapunov_exponents(found, 1)[:, 0]
    growth = product_norms(found)[:, -1] / 300
    torch.testing.assert_close(first, growth, atol=0.02, rtol=0)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_layers_directions_and_padding_are_the_modules(cell, batch_first):
    torch.manual_seed(0)
    module = make(cell, 3, 4, num_layers=3, bidirectional=True, batch_first=batch_first)
    lengths = [6, 1, 4]
    x = torch.randn(3, 6, 3, dtype=DOUBLE)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    packed = nn.utils.rnn.pack_padded_sequence(
        x if batch_first else x.transpose(0, 1), torch.tensor(lengths), batch_first, False
    )
    start = torch.randn(6, 3, 4, dtype=DOUBLE)
    hx = (start, start.flip(0)) if cell in ("lstm", "output-gated-gru") else start
    out, _ = nn.utils.rnn.pad_packed_sequence(module(packed, hx)[0], batch_first=True)
    runs = run_layers(module, x, mask, initial=hx)
    assert [(run.layer, run.reverse) for run in runs] == [
        (i, r) for i in range(3) for r in (False, True)
    ]
    torch.testing.assert_close(outputs_of(runs), out)
    # Padding in front or behind, whatever stands there: the same steps.
    for document, length in enumerate(lengths):
        alone = x[document : document + 1, :length]
        left = torch.cat([torch.full((1, 3, 3), 9.0, dtype=DOUBLE), alone], dim=1)
        seen = torch.cat([torch.zeros(1, 3), torch.ones(1, length)], dim=1)
        for layer in (0, 2):
            for reverse in (False, True):
                where = {"layer": layer, "reverse": reverse}
                whole = recurrent_jacobians(module, x, mask, **where).matrices()[document]
                single = recurrent_jacobians(module, alone, **where).matrices()[0]
                torch.testing.assert_close(whole[:length], single)
                assert not whole[length:].any()
                shifted = recurrent_jacobians(module, left, seen, **where).matrices()[0]
                torch.testing.assert_close(shifted[:length], single)


def test_without_biases_and_from_the_end():
    torch.manual_seed(0)
    module = make("gru", 2, 3, bias=False)
    x = torch.randn(2, 5, 2, dtype=DOUBLE)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = recurrent_jacobians(module, x, mask)
    ends = found.from_end()
    torch.testing.assert_close(ends.matrices()[1, :3], found.matrices()[1, :3].flip(0))
    assert not ends.matrices()[1, 3:].any()


def test_bad_input_is_refused():
    module = make("lstm", 2, 3)
    x = torch.zeros(1, 4, 2, dtype=DOUBLE)
    with pytest.raises(ModelError, match="Linear is no recurrent layer"):
        recurrent_jacobians(nn.Linear(2, 2), x)
    with pytest.raises(ModelError, match="has no layer 1"):
        recurrent_jacobians(module, x, layer=1)
    with pytest.raises(ModelError, match="has no layer 0 in reverse"):
        recurrent_jacobians(module, x, reverse=True)
    with pytest.raises(ModelError, match=r"expects \(b, n, 2\)"):
        recurrent_jacobians(module, x[..., :1])
    with pytest.raises(DataError, match="mask has shape"):
        recurrent_jacobians(module, x, torch.ones(1, 3))
    with pytest.raises(DataError, match="starts from 2 states"):
        recurrent_jacobians(module, x, initial=torch.zeros(1, 1, 3))
    with pytest.raises(ModelError, match="no cell state"):
        recurrent_jacobians(make("gru", 2, 3), x, state="cell")
    with pytest.raises(ModelError, match="proj_size"):
        recurrent_jacobians(nn.LSTM(2, 3, proj_size=1), x.float())
    found = recurrent_jacobians(module, x)
    with pytest.raises(OptionError, match="forget gate"):
        found.only("forget")
    with pytest.raises(OptionError, match="distance"):
        products(found, 5)
    with pytest.raises(DataError, match="lead with dimensions"):
        lyapunov_exponents(found[:, 0])
