"""The penalty of a finite step: against formulas, on any model, and left without a trace."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import longarc
from longarc.dynamics.modified_flow import modified_field
from longarc.errors import ModelError, OptionError


def half_square(model, batch):
    return model(batch).square().mean() / 2


def quartic(model, batch):
    return model(batch).pow(4).mean() / 4


@pytest.fixture
def linear():
    """One output w·x; L = E (w·x)² / 2, so that g = E (w·x) x."""
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    return model


def test_against_the_formula(linear):
    x = torch.arange(12, dtype=torch.float64).view(4, 3) / 5
    w = linear.weight.detach()[0]
    g = ((x @ w)[:, None] * x).mean(0)
    found = longarc.implicit_regularization(linear, x, 0.1, loss=half_square)
    assert found.loss == pytest.approx(float((x @ w).square().mean() / 2), rel=1e-12)
    assert found.squared_gradient_norm == pytest.approx(float(g @ g), rel=1e-12)
    assert found.penalty == pytest.approx(0.1 / 4 * float(g @ g), rel=1e-12)
    assert found.ratio == pytest.approx(found.penalty / found.loss, rel=1e-12)


def test_its_slope_is_the_correction_of_the_flow():
    """Loss plus penalty, by differences in the weights, is what the modified flow descends."""
    x = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.8, -1.0]], dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    lr, at, step = 0.4, torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64), 1e-5

    def penalised(weights):
        with torch.no_grad():
            model.weight.copy_(weights)
        found = longarc.implicit_regularization(model, x, lr, loss=quartic)
        return found.loss + found.penalty

    slopes = [
        (penalised(at + step * e) - penalised(at - step * e)) / (2 * step)
        for e in torch.eye(3, dtype=torch.float64)
    ]
    field = modified_field(lambda w: (x @ w).pow(4).mean() / 4, lr, order=1)
    torch.testing.assert_close(
        torch.tensor(slopes, dtype=torch.float64), -field(at), rtol=1e-7, atol=1e-7
    )


def test_momentum_multiplies_it():
    """Heavy ball on h w²/2: log of the dominant root against −(h + (c/2) h²), c = γ(1+β)/(1−β)²."""
    beta, h, errors = 0.9, 1.0, []
    for lr in (1e-4, 5e-5):
        root = max(np.roots([1, -(1 + beta - lr * h), beta]).real)
        rate = -math.log(root) / (lr / (1 - beta))
        errors.append(abs(rate - (h + lr * (1 + beta) / (1 - beta) ** 2 / 2 * h**2)))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # what is left is of second order


@pytest.fixture(scope="module")
def bert():
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return BertForSequenceClassification(config)


def test_a_hugging_face_batch(bert):
    batch = {"input_ids": torch.arange(10).view(2, 5), "labels": torch.tensor([0, 2])}
    bert.eval()
    found = longarc.implicit_regularization(bert, batch, 2e-5)
    model = copy.deepcopy(bert)
    loss = model(**batch).loss
    loss.backward()
    squared = sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
    assert found.loss == loss.item()
    assert found.squared_gradient_norm == pytest.approx(squared, rel=1e-5)
    assert found.penalty == pytest.approx(5e-6 * squared, rel=1e-5)


def test_it_leaves_no_trace(bert):
    batch = {"input_ids": torch.arange(10).view(2, 5), "labels": torch.tensor([0, 2])}
    bert.train()
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():  # as in evaluation
        found = longarc.implicit_regularization(bert, batch, 2e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == longarc.implicit_regularization(bert, batch, 2e-5)  # the same dropout
    torch.rand(1)
    assert found != longarc.implicit_regularization(bert, batch, 2e-5)
    assert bert.training
    assert all(parameter.grad is None for parameter in bert.parameters())
    assert all(torch.equal(value, before[name]) for name, value in bert.state_dict().items())


def test_frozen_and_idle_weights_have_no_part():
    model = nn.ModuleDict(
        {"used": nn.Linear(2, 1), "frozen": nn.Linear(1, 1), "idle": nn.Linear(9, 9)}
    )
    model["frozen"].requires_grad_(False)

    def loss(model, x):
        return model["frozen"](model["used"](x)).square().mean()

    x = torch.ones(1, 2)
    found = longarc.implicit_regularization(model, x, 0.1, loss=loss)
    gradients = torch.autograd.grad(loss(model, x), list(model["used"].parameters()))
    squared = sum(g.square().sum().item() for g in gradients)
    assert found.squared_gradient_norm == pytest.approx(squared, rel=1e-6)


def test_half_precision_weights_are_squared_in_single():
    """600 gradients of 300 each: 5.4e7, above float16's largest number."""
    model = nn.Linear(600, 1, bias=False).half()

    def loss(model, x):
        return (model.weight * x).sum().float()

    found = longarc.implicit_regularization(model, torch.tensor(300.0).half(), 1.0, loss=loss)
    assert found.squared_gradient_norm == pytest.approx(600 * 300.0**2, rel=1e-3)


def test_no_loss_no_ratio():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    found = longarc.implicit_regularization(model, torch.ones(1, 1), 0.1, loss=half_square)
    assert (found.loss, found.penalty) == (0, 0)
    assert math.isnan(found.ratio)


def test_refusals(linear, bert):
    x = torch.ones(1, 3, dtype=torch.float64)
    for lr in (-0.1, math.inf, None):
        with pytest.raises(OptionError, match="lr must be a finite number"):
            longarc.implicit_regularization(linear, x, lr, loss=half_square)
    with pytest.raises(ModelError, match=r"batch is a Tensor; without a loss .* mapping"):
        longarc.implicit_regularization(linear, x, 0.1)
    with pytest.raises(ModelError, match=r"returned no loss\. Put labels .* found input_ids"):
        longarc.implicit_regularization(bert, {"input_ids": torch.ones(1, 2).long()}, 0.1)
    with pytest.raises(ModelError, match=r"loss is \(2, 1\); expected a scalar"):
        longarc.implicit_regularization(
            linear, x.expand(2, 3), 0.1, loss=lambda model, batch: model(batch)
        )
    with pytest.raises(ModelError, match="loss is float; expected a scalar tensor"):
        longarc.implicit_regularization(linear, x, 0.1, loss=lambda model, batch: 1.0)
    with pytest.raises(ModelError, match=r"loss is \(\); expected .* not detached"):
        longarc.implicit_regularization(
            linear, x, 0.1, loss=lambda model, batch: half_square(model, batch).detach()
        )
    linear.requires_grad_(False)
    with pytest.raises(ModelError, match="No weight of this Linear requires a gradient"):
        longarc.implicit_regularization(linear, x, 0.1, loss=half_square)
