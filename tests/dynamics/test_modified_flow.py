"""The modified flow: against closed forms, and against gradient descent order by order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longarc.dynamics.modified_flow import gradient_descent, modified_field, modified_flow
from longarc.errors import DataError, OptionError


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def product(weights):
    """Barrett & Dherin's two-parameter model, x = 1 and y = 0.6."""
    a, b = weights
    return (0.6 - a * b).square() / 2


def network(weights):
    """Mean loss of a tanh network of 2 inputs, 2 hidden units and one output on five points."""
    x = vector(0.3, -1.2, 0.8, 2.0, -0.5, 0.1, 1.1, -0.7, -1.5, 0.4).view(5, 2)
    y = vector(1, 0, 1, 0, 1)
    hidden = torch.tanh(x @ weights[:4].view(2, 2) + weights[4:6])
    return torch.nn.functional.binary_cross_entropy_with_logits(hidden @ weights[6:8], y)


START = vector(0.9, -0.4, 0.5, 1.2, 0.1, -0.3, 1.5, -0.8)


def test_the_field_of_two_parameters_by_hand():
    """g, H and T written out; r = ab − y."""
    lr, a, b = 0.07, 1.3, -0.4
    r = a * b - 0.6
    g = np.array([r * b, r * a])
    hessian = np.array([[b * b, r + a * b], [r + a * b, a * a]])
    # Third derivatives: aab = 2b, abb = 2a, aaa = bbb = 0.
    third = np.array([
        2 * (2 * b) * g[0] * g[1] + 2 * a * g[1] ** 2,
        2 * b * g[0] ** 2 + 2 * (2 * a) * g[0] * g[1],
    ])  # fmt: skip
    wanted = [-g, -lr / 2 * hessian @ g, -(lr**2) * (hessian @ hessian @ g / 3 + third / 12)]
    for order in (0, 1, 2):
        found = modified_field(product, lr, order)(vector(a, b))
        np.testing.assert_allclose(found.numpy(), sum(wanted[: order + 1]), rtol=1e-12)


def test_the_first_order_descends_the_penalised_loss():
    lr = 0.3
    at = START.clone().requires_grad_()
    (g,) = torch.autograd.grad(network(at), at, create_graph=True)
    penalised = network(at) + lr / 4 * g.square().sum()
    (wanted,) = torch.autograd.grad(penalised, at)
    torch.testing.assert_close(modified_field(network, lr, 1)(START), -wanted, rtol=1e-12, atol=0)


def test_the_second_order_by_differences_of_the_gradient():
    """H v and T[v, v] from the gradient alone, by central differences."""
    lr, step = 0.3, 1e-3
    descend = modified_field(network, lr, 0)
    g = -descend(START)

    def hessian(v):
        return (descend(START - step * v) - descend(START + step * v)) / (2 * step)

    third = -(descend(START + step * g) - 2 * descend(START) + descend(START - step * g)) / step**2
    hg = hessian(g)
    wanted = -g - lr / 2 * hg - lr**2 * (hessian(hg) / 3 + third / 12)
    found = modified_field(network, lr, 2)(START)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_the_second_order_descends_no_loss():
    """Its Jacobian is not symmetric, that of the first order is."""
    jacobians = [
        torch.stack([
            (field(START + 1e-5 * e) - field(START - 1e-5 * e)) / 2e-5
            for e in torch.eye(8, dtype=torch.float64)
        ])
        for field in (modified_field(network, 1.0, order) for order in (1, 2))
    ]  # fmt: skip
    skew = [float((j - j.T).abs().max()) for j in jacobians]
    assert skew[0] < 1e-8
    assert skew[1] > 1e-3


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_quadratic_loss_has_the_truncated_logarithm(order):
    """(1 − γh)^k is the flow of the whole series; order n has its first n + 1 terms."""
    lr, h = 0.1, vector(0.5, 2.0, 5.0)
    series = -sum(lr**n * h ** (n + 1) / (n + 1) for n in range(order + 1))
    found = modified_flow(
        lambda w: (h * w.square()).sum() / 2, vector(1, -2, 3), lr, 12, order=order
    )
    wanted = vector(1, -2, 3) * torch.exp(series * lr * torch.arange(13)[:, None])
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


def test_gradient_descent_of_a_quadratic_loss():
    lr, h = 0.1, vector(0.5, 2.0, 5.0)
    found = gradient_descent(lambda w: (h * w.square()).sum() / 2, vector(1, -2, 3), lr, 12)
    wanted = vector(1, -2, 3) * (1 - lr * h) ** torch.arange(13)[:, None]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("loss", "start", "time"), [(product, vector(2.8, 3.5), 0.4), (network, START, 4.0)]
)
def test_the_order_of_convergence(loss, start, time, order):
    """The distance to gradient descent at a fixed time is of order γ^(order + 1)."""
    numbers = [40, 80] if loss is product else [12, 24]
    errors = []
    for steps in numbers:
        walked = gradient_descent(loss, start, time / steps, steps)
        flowed = modified_flow(loss, start, time / steps, steps, order=order)
        errors.append(float((walked - flowed).norm(dim=1).max()))
    slope = np.polyfit(np.log(1 / np.array(numbers)), np.log(errors), 1)[0]
    assert slope == pytest.approx(order + 1, abs=0.1)


def test_losses_that_stop_depending_on_the_weights():
    """A linear loss has no Hessian, a quadratic one no third derivative."""
    slope = vector(2.0, -1.0)
    for order in (0, 1, 2):
        found = modified_field(lambda w: w @ slope, 0.1, order)(vector(1, 1))
        torch.testing.assert_close(found, -slope)
    flat = modified_field(lambda w: vector(3.0).sum(), 0.1, 2)(vector(1, 1))
    assert flat.tolist() == [0, 0]


def test_nothing_is_left_behind():
    start = START.clone().requires_grad_()
    with torch.no_grad():
        flow = modified_flow(network, start, 0.1, 2, order=2)
    assert flow.shape == (3, 8)
    assert torch.equal(flow[0], START)
    assert not flow.requires_grad
    assert start.grad is None
    assert modified_flow(network, start, 0.1, 0).shape == (1, 8)


def test_refusals():
    with pytest.raises(DataError, match=r"\(2, 1\) in torch.float64; expected \(d,\)"):
        modified_flow(product, vector(1, 1)[:, None], 0.1, 2)
    with pytest.raises(DataError, match=r"torch.float32; expected \(d,\) in torch.float64"):
        gradient_descent(product, vector(1, 1).float(), 0.1, 2)
    with pytest.raises(OptionError, match="order must be 0, 1 or 2; found 3"):
        modified_flow(product, vector(1, 1), 0.1, 2, order=3)
    for lr in (0, -1, math.nan, "fast"):
        with pytest.raises(OptionError, match="lr must be"):
            modified_flow(product, vector(1, 1), lr, 2)
    with pytest.raises(OptionError, match="steps must be a whole number"):
        modified_flow(product, vector(1, 1), 0.1, -1)


def test_a_flow_that_escapes_is_refused():
    """θ' = θ², away in a finite time."""
    with pytest.raises(
        OptionError, match=r"order 0 cannot be followed beyond step ([0-9]|10) of 30"
    ):
        modified_flow(lambda w: -w.pow(3).sum() / 3, vector(1.0), 0.1, 30, order=0)
