"""What crossed k steps, against a network with a copy of its weights for every step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from longarc.dynamics.gradient_share import (
    follow_back,
    full_adjoints,
    parameter_gradient,
    parameter_shares,
    reach,
)
from longarc.dynamics.jacobian_products import lyapunov_exponents
from longarc.dynamics.recurrent_jacobian import recurrent_jacobians, run_layers
from longarc.errors import DataError
from textbook.recurrences import CELLS, make, step

DOUBLE = torch.float64


class Copied:
    """A module whose recurrent weights are one step's own copy."""

    def __init__(self, module, weight):
        self.hidden_size = module.hidden_size
        self.weight_ih_l0, self.weight_hh_l0 = module.weight_ih_l0, weight
        self.bias_ih_l0, self.bias_hh_l0 = module.bias_ih_l0, module.bias_hh_l0

    @property
    def weight_hh_l0(self):
        return self._weight

    @weight_hh_l0.setter
    def weight_hh_l0(self, weight):
        self._weight = Kept(weight)


class Kept:
    """A weight that textbook steps do not detach."""

    def __init__(self, weight):
        self.weight = weight

    def detach(self):
        return self.weight


def case(cell, lengths=(7, 4), hidden=4):
    torch.manual_seed(0)
    module = make(cell, 3, hidden)
    for weight in module.parameters():
        weight.data.mul_(2)
    x = torch.randn(len(lengths), max(lengths), 3, dtype=DOUBLE)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    jacobians = recurrent_jacobians(module, x, mask)
    shape = (*x.shape[:2], jacobians.states, hidden)
    errors = torch.randn(shape, dtype=DOUBLE) * mask[..., None, None]
    return module, x, jacobians, errors, lengths


@pytest.mark.parametrize("cell", CELLS)
def test_parts_are_those_of_copied_weights(cell):
    """dL_t/dW of the copy used in step t − k, summed over t, is part k."""
    module, x, jacobians, errors, lengths = case(cell)
    parts = [torch.zeros_like(module.weight_hh_l0) for _ in range(7)]
    for b, length in enumerate(lengths):
        copies = [module.weight_hh_l0.detach().clone().requires_grad_() for _ in range(length)]
        state = torch.zeros(jacobians.states, 4, dtype=DOUBLE)
        for t in range(length):
            state = step(cell, Copied(module, copies[t]), x[b, t], state)
            loss = (state * errors[b, t]).sum()
            for s, part in enumerate(torch.autograd.grad(loss, copies[: t + 1], retain_graph=True)):
                parts[t - s] += part
    found = parameter_shares(jacobians, errors)
    whole = sum(parts)
    torch.testing.assert_close(found.whole.flatten(0, 1), whole)
    torch.testing.assert_close(found.norms, torch.stack([part.norm() for part in parts]))
    along = torch.stack([(part * whole).sum() for part in parts]) / whole.square().sum()
    torch.testing.assert_close(found.shares, along)
    assert float(found.shares.sum()) == pytest.approx(1)
    near = parameter_shares(jacobians, errors, farthest=2)
    torch.testing.assert_close(near.shares, found.shares[:3])


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_whole_is_torchs_gradient_through_all_layers(cell):
    """Weights and inputs of two layers in both directions, errors handed down between them."""
    torch.manual_seed(0)
    module = make(cell, 3, 4, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(2, 6, 3, dtype=DOUBLE, requires_grad=True)
    mask = torch.arange(6) < torch.tensor([6, 3])[:, None]
    packed = nn.utils.rnn.pack_padded_sequence(x, mask.sum(1), batch_first=True)
    out, _ = nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)
    error = torch.randn_like(out) * mask[..., None]
    wanted = dict(module.named_parameters()) | {"x": x}
    expected = dict(
        zip(wanted, torch.autograd.grad(out, list(wanted.values()), error), strict=True)
    )
    runs = run_layers(module, x.detach(), mask)
    for layer in (1, 0):
        below = 0
        for run in (run for run in runs if run.layer == layer):
            jacobians = run.jacobians()
            errors = torch.zeros(2, 6, jacobians.states, 4, dtype=DOUBLE)
            errors[:, :, 0] = run.in_steps(error.chunk(2, dim=-1)[run.reverse])
            adjoints = full_adjoints(jacobians, errors)
            weight = f"weight_hh_l{layer}" + "_reverse" * run.reverse
            gradient = parameter_gradient(jacobians, adjoints).flatten(0, 1)
            torch.testing.assert_close(gradient, expected[weight])
            below = below + run.input_errors(adjoints)
        error = below
    torch.testing.assert_close(error, expected["x"])


@pytest.mark.parametrize("cell", CELLS)
def test_cheap_and_exact_agree(cell):
    """Following one error back gives what matrices and shares give, by distance."""
    _, _, jacobians, errors, lengths = case(cell)
    last = errors[[0, 1], [n - 1 for n in lengths]]
    found = follow_back(jacobians, last)
    matrices = jacobians.matrices()
    for b, length in enumerate(lengths):
        u = last[b].flatten()
        size = u.norm()
        for k in range(length):
            assert float(found.logs[b, k]) == pytest.approx(float((u.norm() / size).log()))
            u = matrices[b, length - 1 - k].T @ u
        assert (found.logs[b, length:] == -math.inf).all()
    assert sum(found.terms.values()) == pytest.approx(1)
    only = torch.zeros_like(errors)
    only[[0, 1], [n - 1 for n in lengths]] = last
    adjoints = full_adjoints(jacobians, only)
    exact = parameter_shares(jacobians, only)
    for k in range(7):
        rows = [(b, n - 1 - k) for b, n in enumerate(lengths) if n > k]
        steps = torch.zeros_like(adjoints)
        for b, t in rows:
            steps[b, t] = adjoints[b, t]
            norm = last[b].norm() * found.logs[b, k].exp()
            torch.testing.assert_close(adjoints[b, t].norm(), norm)
        torch.testing.assert_close(exact.norms[k], parameter_gradient(jacobians, steps).norm())


def test_shares_of_terms_against_matrices():
    _, _, jacobians, errors, _ = case("lstm", lengths=(5,))
    last = errors[:, -1]
    found = follow_back(jacobians, last).terms
    expected = dict.fromkeys(jacobians.terms, 0.0)
    u = last[0].flatten()
    for t in (4, 3, 2, 1):  # into the states of the steps 3, 2, 1, 0
        after = jacobians.matrices()[0, t].T @ u
        for name in expected:
            part = jacobians.only(name).matrices()[0, t].T @ u
            expected[name] += float(part @ after / after.square().sum()) / 4
        u = after
    assert found == pytest.approx(expected)


def test_growth_is_the_lyapunov_exponent_in_the_long_run():
    torch.manual_seed(0)
    module = make("rnn", 3, 16)
    module.weight_hh_l0.data.mul_(3)
    jacobians = recurrent_jacobians(module, 0.3 * torch.randn(2, 600, 3, dtype=DOUBLE))
    found = follow_back(jacobians, torch.randn(2, 1, 16, dtype=DOUBLE))
    first = lyapunov_exponents(jacobians, 1).mean()
    assert found.growth == pytest.approx(float(first), abs=0.03)


def test_growth_of_powers_of_one_number():
    """A gradient that fades below rounding still has the rate at which it did."""
    for factor in (0.5, 1.0, 1.5, 1e-4):
        rnn = nn.RNN(1, 2, nonlinearity="relu").double()
        for weight in rnn.parameters():
            nn.init.ones_(weight)
        rnn.weight_hh_l0.data.copy_(factor * torch.eye(2))
        jacobians = recurrent_jacobians(rnn, torch.ones(1, 400, 1, dtype=DOUBLE))
        found = follow_back(jacobians, torch.ones(1, 1, 2, dtype=DOUBLE))
        assert found.growth == pytest.approx(math.log(factor))
        assert reach(found.norms) == {0.5: 6, 1.0: 395, 1.5: 399, 1e-4: 0}[factor]


def test_a_gradient_that_has_died_counts_as_zero():
    """Three documents: one whose last step but one is shut, one open, and one too short."""
    rnn = nn.RNN(1, 1, nonlinearity="relu", bias=False, batch_first=True).double()
    nn.init.constant_(rnn.weight_ih_l0, 1.0)
    nn.init.constant_(rnn.weight_hh_l0, 0.5)
    x = torch.ones(3, 6, 1, dtype=DOUBLE)
    x[0, 4] = -100.0
    mask = torch.arange(6) < torch.tensor([[6], [6], [3]])
    found = follow_back(recurrent_jacobians(rnn, x, mask=mask), torch.ones(3, 1, 1, dtype=DOUBLE))
    assert found.lengths.tolist() == [6, 6, 3]
    # At 2 the first document's has died and the third's has not; beyond, the third has no steps.
    shares = torch.tensor([1, 1, 2 / 3, 1 / 2, 1 / 2, 1 / 2], dtype=DOUBLE)
    torch.testing.assert_close(found.norms, shares * 0.5 ** torch.arange(6, dtype=DOUBLE))


def test_without_errors_there_is_nothing():
    _, _, jacobians, errors, _ = case("gru")
    found = follow_back(jacobians, torch.zeros_like(errors[:, 0]))
    assert found.growth == -math.inf
    assert not found.norms.any()
    assert reach(torch.zeros(3)) == 0
    with pytest.raises(DataError, match="errors have shape"):
        parameter_shares(jacobians, errors[:, :2])
    with pytest.raises(DataError, match="norms have shape"):
        reach(torch.zeros(2, 2))
