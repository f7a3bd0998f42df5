"""Sharpness against spectra that are known, and against the whole Hessian of small networks."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import eigvalsh
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

import longarc
from longarc.dynamics.critical_rate import critical_learning_rate
from longarc.dynamics.hessian import HessianProducts
from longarc.dynamics.sharpness import largest_eigenvalue, sharpness
from longarc.errors import ModelError, OptionError

SPECTRA = {
    "spread": np.linspace(-3, 10, 40),
    "close": np.array([7.0, 6.9, 6.8, *np.linspace(0, 6, 30)]),
    "negative first": np.array([-20.0, 4.0, 3.0, *np.linspace(-1, 2, 30)]),
    "repeated": np.array([5.0, 5.0, 5.0, 1.0, 0.0]),
    "all negative": np.linspace(-9, -1, 12),
    "one": np.array([3.0]),
    "flat": np.zeros(6),
}


def quadratic(spectrum, seed=0):
    """A random rotation of ½ Σ λ_i x_i², its matrix, and parameters in three pieces."""
    n = len(spectrum)
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.normal(size=(n, n)))[0]
    matrix = torch.from_numpy(rotation @ np.diag(spectrum) @ rotation.T)
    start = torch.from_numpy(random.normal(size=n))
    parts = [p.clone().requires_grad_() for p in start.tensor_split(min(3, n))]

    def loss():
        x = torch.cat(parts)
        return x @ matrix @ x / 2

    return loss, parts, matrix


@pytest.mark.parametrize("products", ["exact", "finite-difference"])
@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("name", SPECTRA)
def test_a_known_spectrum(name, method, products):
    loss, parts, matrix = quadratic(SPECTRA[name])
    product = HessianProducts(loss, parts, method=products)
    found = largest_eigenvalue(product, method=method, tolerance=1e-5, max_products=20_000)
    largest = max(SPECTRA[name])
    assert found.value == pytest.approx(largest, rel=1e-5, abs=1e-7)
    residual = (matrix @ found.vector - found.value * found.vector).norm()
    assert residual <= 1e-5 * abs(found.value) + 1e-6
    assert found.residual == pytest.approx(float(residual), abs=1e-6)
    assert found.products == product.count <= 20_000


def test_lanczos_takes_fewer_products_and_starts_anew():
    spectrum = np.concatenate([np.linspace(0, 0.99, 300), [1.0]])
    loss, parts, _ = quadratic(spectrum)
    counts = {}
    for method in ("lanczos", "power"):
        found = largest_eigenvalue(HessianProducts(loss, parts), method=method, max_products=5000)
        assert found.value == pytest.approx(1, abs=1e-3)
        counts[method] = found.products
    assert 16 < counts["lanczos"] < counts["power"] / 2


def test_the_residual_bounds_the_error_when_it_stops_early():
    spectrum = np.linspace(0, 1, 200)
    loss, parts, _ = quadratic(spectrum)
    found = largest_eigenvalue(HessianProducts(loss, parts), max_products=5)
    assert found.products == 5
    assert np.abs(spectrum - found.value).min() <= found.residual + 1e-12


class Tanh(nn.Module):
    """A network of 55 weights, the last layer's bias of no use to the loss."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def tiny_bert(dropout=0.0, attention="sdpa"):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=6, max_position_embeddings=8, num_labels=3, initializer_range=0.6,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        attn_implementation=attention,
    )  # fmt: skip
    return BertForSequenceClassification(config).double()


def batch_of(rows=6):
    torch.manual_seed(1)
    ids = torch.randint(1, 7, (rows, 7))
    mask = (torch.arange(7) < torch.randint(3, 8, (rows, 1))).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(rows) % 3}


def whole_hessian(evaluate, parameters, step=1e-5):
    """A column at a time by central differences of the gradient, in float64.

    torch.func.hessian is no reference: in torch 2.13 it has layer normalisation's weights wrong, so
    that the matrix is not symmetric.
    """

    def gradient():
        g = torch.autograd.grad(evaluate(), parameters, materialize_grads=True)
        return torch.cat([part.flatten() for part in g])

    columns = []
    for parameter in parameters:
        for entry in range(parameter.numel()):
            ends = []
            for by in (step, -step):
                with torch.no_grad():
                    before = parameter.view(-1)[entry].item()
                    parameter.view(-1)[entry] += by
                ends.append(gradient())
                with torch.no_grad():
                    parameter.view(-1)[entry] = before
            columns.append((ends[0] - ends[1]) / (2 * step))
    hessian = torch.stack(columns).numpy()
    np.testing.assert_allclose(hessian, hessian.T, rtol=0, atol=1e-7)
    return (hessian + hessian.T) / 2


@pytest.fixture(scope="module")
def small():
    """(model, batch, loss, Hessian) of the tanh network and of a BERT of one layer."""
    torch.manual_seed(0)
    model = Tanh().double()
    x, y = torch.randn(10, 4).double(), torch.arange(10) % 3

    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"])

    batch = {"x": x, "y": y}
    hessian = whole_hessian(lambda: loss(model, batch), list(model.parameters()))
    found = {"tanh": (model, batch, loss, hessian)}
    bert, batch = tiny_bert(), batch_of()
    hessian = whole_hessian(lambda: bert(**batch).loss, list(bert.parameters()))
    return found | {"bert": (bert, batch, None, hessian)}


@pytest.mark.parametrize("name", ["tanh", "bert"])
def test_the_whole_hessian_of_a_small_network(small, name):
    model, batch, loss, hessian = small[name]
    expected = eigvalsh(hessian)[-1]
    assert expected > 0.1
    for method in ("lanczos", "power"):
        assert sharpness(model, batch, loss=loss, method=method) == pytest.approx(
            expected, rel=1e-3
        )
    parameters = list(model.parameters())
    vector = torch.randn(len(hessian)).double()

    def evaluate():
        return model(**batch).loss if loss is None else loss(model, batch)

    for method, tolerance in (("exact", 1e-6), ("finite-difference", 1e-6)):
        product = HessianProducts(evaluate, parameters, method=method)(vector)
        np.testing.assert_allclose(product, hessian @ vector.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["tanh", "bert"])
def test_the_critical_rate_along_the_gradient_of_a_network(small, name):
    """A line through a network is no parabola: the loss is looked at in small steps along it."""
    model, batch, loss, _ = small[name]
    parameters = list(model.parameters())

    def evaluate():
        return model(**batch).loss if loss is None else loss(model, batch)

    g = torch.autograd.grad(evaluate(), parameters, materialize_grads=True)
    before = [p.detach().clone() for p in parameters]
    start, rates = float(evaluate().detach()), np.geomspace(1e-3, 100, 500)
    with torch.no_grad():
        for rate in rates:
            for p, weight, part in zip(parameters, before, g, strict=True):
                p.copy_(weight - rate * part)
            if float(evaluate()) >= start:
                break
        for p, weight in zip(parameters, before, strict=True):
            p.copy_(weight)
    assert 1e-3 < rate < 100
    found = critical_learning_rate(evaluate, parameters, g, guess=rate / 3)
    assert found.rate == pytest.approx(rate, rel=0.1)
    assert found.below < rate * 1.03
    assert rate / 1.03 < found.above
    assert found.passes <= 7
    assert sharpness(model, batch, loss=loss, method="critical") == pytest.approx(2 / rate, rel=0.1)
    assert all(torch.equal(p, w) for p, w in zip(parameters, before, strict=True))


@pytest.mark.parametrize("guess", [1e-4, 0.3, 1.0, 50.0])
def test_along_an_eigenvector_the_critical_rate_is_exact(guess):
    loss, parts, matrix = quadratic(np.array([8.0, 3.0, 1.0, 0.5, 0.1]))
    values, vectors = np.linalg.eigh(matrix.numpy())
    for value, vector in zip(values, vectors.T, strict=True):
        with torch.no_grad():
            for part, new in zip(parts, torch.from_numpy(vector).tensor_split(3), strict=True):
                part.copy_(new)
        gradient = torch.autograd.grad(loss(), parts)
        found = critical_learning_rate(
            loss, parts, gradient, guess=guess * 2 / value, max_passes=20
        )
        assert found.rate == pytest.approx(2 / value, rel=1e-9)
        assert found.sharpness == pytest.approx(value, rel=1e-9)
        assert found.below <= 2 / value * (1 + 1e-9)
        assert found.above >= 2 / value * (1 - 1e-9)
        if 0.25 <= guess <= 4:
            assert found.passes <= 6


def test_any_direction_of_a_quadratic():
    """γ_c = 2 dᵀg / dᵀHd, here for a preconditioned gradient."""
    loss, parts, matrix = quadratic(np.linspace(0.1, 9, 12))
    g = torch.cat(torch.autograd.grad(loss(), parts))
    d = g / (g.abs() + 0.1)
    expected = float(2 * d @ g / (d @ matrix @ d))
    found = critical_learning_rate(loss, parts, d.tensor_split(3), guess=0.5)
    assert found.rate == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", ["quartic", "softplus", "kink", "diverging"])
def test_other_shapes_are_found_to_the_tolerance(shape):
    theta = torch.zeros(1, dtype=torch.float64)
    functions = {  # of the rate, each back at its start at 2
        "quartic": lambda r: r**4 - 8 * r,
        "softplus": lambda r: F.softplus(20 * (r - 1)) - 10 * r,
        "kink": lambda r: (r - 1).abs(),
        "diverging": lambda r: torch.where(r < 2, -r, math.nan),
    }
    found = critical_learning_rate(
        lambda: functions[shape](-theta[0]), [theta], [torch.ones(1).double()], guess=0.11,
        tolerance=0.02, max_passes=30,
    )  # fmt: skip
    assert found.rate == pytest.approx(2, rel=0.04)
    assert found.below < found.above
    assert found.passes <= 16


def test_where_the_loss_never_falls_or_never_rises():
    theta, ones = torch.zeros(1, dtype=torch.float64), [torch.ones(1).double()]
    falling = critical_learning_rate(lambda: theta[0], [theta], ones, guess=1.0, max_passes=6)
    assert (falling.rate, falling.sharpness, falling.passes) == (math.inf, 0.0, 6)
    assert falling.below == 4**4
    rising = critical_learning_rate(lambda: -theta[0], [theta], ones, guess=1.0, max_passes=6)
    assert (rising.rate, rising.sharpness, rising.below) == (0.0, math.inf, 0.0)
    assert rising.above == 4**-4


def test_dropout_has_one_mask_and_everything_is_left_as_it_was():
    model, batch = tiny_bert(dropout=0.3), batch_of()
    model.bert.embeddings.requires_grad_(False)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    for method in ("lanczos", "power", "critical"):
        torch.manual_seed(5)
        once = sharpness(model, batch, method=method)
        assert torch.equal(torch.rand(3), expected), "random state is handed on untouched"
        torch.manual_seed(5)
        assert sharpness(model, batch, method=method) == once
        torch.manual_seed(6)
        assert sharpness(model, batch, method=method) != once
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_every_pass_sees_the_same_mask():
    """Along a direction of length 0 every loss is the start's."""
    model, batch = tiny_bert(dropout=0.3).train(), batch_of()
    parameters = list(model.parameters())
    still = [torch.zeros_like(p) for p in parameters]
    found = critical_learning_rate(
        lambda: model(**batch).loss, parameters, still, guess=1.0, max_passes=5
    )
    assert len({loss for _, loss in found.losses}) == 1


def test_frozen_weights_do_not_count(small):
    model, batch, loss, hessian = small["tanh"]
    names = [n for n, p in model.named_parameters() for _ in range(p.numel())]
    keep = [i for i, name in enumerate(names) if name.startswith("second")]
    expected = eigvalsh(hessian[np.ix_(keep, keep)])[-1]
    try:
        model.first.requires_grad_(False)
        assert sharpness(model, batch, loss=loss) == pytest.approx(expected, rel=1e-3)
        model.requires_grad_(False)
        for method in ("lanczos", "critical"):
            with pytest.raises(ModelError, match="no parameter requires a gradient"):
                sharpness(model, batch, loss=loss, method=method)
    finally:
        model.requires_grad_(True)


@pytest.mark.parametrize("method", ["lanczos", "power", "critical"])
def test_where_gradients_are_off(small, method):
    model, batch, loss, _ = small["tanh"]
    expected = sharpness(model, batch, loss=loss, method=method)
    with torch.no_grad():
        assert sharpness(model, batch, loss=loss, method=method) == expected


def test_without_a_second_derivative_it_falls_back_to_differences():
    class Once(torch.autograd.Function):
        """x³, which can be differentiated a single time."""

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * gradient

    theta = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    vector = torch.tensor([1.0, -1.0], dtype=torch.float64)
    cube = Once.apply
    cases = [
        (cube, 6 * theta),
        (lambda x: cube(x) ** 2, 30 * theta**4),
        # Another way leads to the same weights, so that their derivative exists, and lacks a part.
        (lambda x: cube(x) + x**2, 6 * theta + 2),
    ]
    for function, second in cases:
        loss = partial(lambda f: f(theta).sum(), function)
        product = HessianProducts(loss, [theta])
        torch.testing.assert_close(product(vector), (second * vector).detach())
        assert product.method == "finite-difference"
        with pytest.raises(NotImplementedError, match="no second derivative"):
            HessianProducts(loss, [theta], method="exact")(vector)


def test_a_loss_that_is_linear_in_a_weight_has_exact_products():
    theta = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    product = HessianProducts(lambda: (theta**3).sum() + other.sum(), [theta, other])
    vector = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(product(vector), torch.tensor([12.0, -6.0, 0.0]).double())
    assert product.method == "exact"


def test_bad_input_is_refused():
    loss, parts, _ = quadratic(np.ones(3))
    still = [torch.zeros_like(p) for p in parts]
    with pytest.raises(OptionError, match="guess is 0"):
        critical_learning_rate(loss, parts, still, guess=0.0)
    with pytest.raises(ModelError, match="the loss is nan"):
        critical_learning_rate(lambda: loss() * math.nan, parts, still, guess=1.0)
    with pytest.raises(OptionError, match="lanczos"):
        largest_eigenvalue(HessianProducts(loss, parts), method="lanzcos")
    with pytest.raises(OptionError, match="critical"):
        sharpness(nn.Linear(1, 1), {}, method="critcal")
    linear = nn.Linear(1, 1)
    for method in ("lanczos", "power", "critical"):
        with pytest.raises(ModelError, match=r"numbers at these weights|norm is nan"):
            sharpness(
                linear,
                {},
                loss=lambda m, _: m(torch.ones(1, 1)).square().sum() * math.nan,
                method=method,
            )
    unlabelled = {name: value for name, value in batch_of().items() if name != "labels"}
    with pytest.raises(ModelError, match="gave no loss"):
        sharpness(tiny_bert(), unlabelled)


@pytest.mark.parametrize("method", ["lanczos", "power", "critical"])
def test_batch_norms_statistics_stay(method):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    assert sharpness(model, data, loss=loss, method=method) > 0  # pyright: ignore[reportArgumentType]
    longarc.implicit_regularization(model, data, 0.1, loss=loss)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
