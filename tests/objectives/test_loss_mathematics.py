"""What the losses are for, and that their function forms and other people's code agree."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from longarc.errors import OptionError
from longarc.objectives.losses.binary_cross_entropy import (
    BinaryCrossEntropyLoss,
    binary_cross_entropy,
)
from longarc.objectives.losses.class_weighted import (
    ClassWeightedLoss,
    class_weighted_cross_entropy,
)
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss, cross_entropy
from longarc.objectives.losses.logit_adjusted import (
    LogitAdjustedLoss,
    logit_adjusted_cross_entropy,
)

COUNTS = [80, 15, 5]


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, generator=generator, dtype=torch.float64)


TARGET = torch.tensor([0, 2, 1, -100, 0, 0, 1])
MULTI_HOT = torch.tensor(
    [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [-100, -100, -100], [0, 0, 1]]
)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_cross_entropy_is_torchs(logits, reduction, label_smoothing):
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    expected = F.cross_entropy(logits, TARGET, **options)
    torch.testing.assert_close(CrossEntropyLoss(**options)(logits, TARGET), expected)
    torch.testing.assert_close(cross_entropy(logits, TARGET, **options), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weighted_is_torchs_with_scikit_learns_weights(logits, reduction):
    labels = np.repeat([0, 1, 2], COUNTS)
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=labels))
    expected = F.cross_entropy(logits, TARGET, weight=weights, reduction=reduction)
    loss = ClassWeightedLoss(COUNTS, reduction=reduction)
    torch.testing.assert_close(loss.class_weights(torch.float64), weights)
    torch.testing.assert_close(loss(logits, TARGET), expected)
    function = class_weighted_cross_entropy(logits, TARGET, weights, reduction=reduction)
    torch.testing.assert_close(function, expected)


@pytest.mark.parametrize("power", [0, 0.5, 1, 10])
def test_class_weights_average_to_one_over_the_examples(power):
    counts = torch.tensor([900, 3, 0, 1])
    weights = ClassWeightedLoss(counts, power=power).class_weights()
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1)
    assert weights[2] == weights[3]  # a class of none weighs what a class of one does


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_binary_cross_entropy_is_torchs(logits, reduction, power):
    weights = torch.tensor([20 / 80, 85 / 15, 95 / 5], dtype=torch.float64) ** power
    kept = [0, 1, 2, 3, 4, 6]
    rows = F.binary_cross_entropy_with_logits(
        logits[kept], MULTI_HOT[kept].double(), pos_weight=weights, reduction="none"
    ).mean(dim=1)
    expected = torch.zeros(7, dtype=torch.float64)
    expected[kept] = rows
    expected = {"none": expected, "sum": rows.sum(), "mean": rows.mean()}[reduction]
    loss = BinaryCrossEntropyLoss(COUNTS, 100, pos_weight_power=power, reduction=reduction)
    torch.testing.assert_close(loss(logits, MULTI_HOT), expected)
    function = binary_cross_entropy(logits, MULTI_HOT, pos_weight=weights, reduction=reduction)
    torch.testing.assert_close(function, expected)


def test_logit_adjusted_as_a_function(logits):
    log_prior = torch.tensor(COUNTS, dtype=torch.float64).log()  # up to a constant
    torch.testing.assert_close(
        logit_adjusted_cross_entropy(logits, TARGET, log_prior, 0.5),
        LogitAdjustedLoss(COUNTS, tau=0.5)(logits, TARGET),
    )
    torch.testing.assert_close(
        logit_adjusted_cross_entropy(logits, TARGET, log_prior, 0), cross_entropy(logits, TARGET)
    )


def test_logit_adjustment_is_minimal_where_argmax_is_the_balanced_decision():
    # Three classes, four values of x, p(x | class) below; the joint distribution as soft labels.
    likelihood = torch.tensor(
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.5, 0.2, 0.2], [0.1, 0.1, 0.5, 0.3]], dtype=torch.float64
    )
    prior = torch.tensor(COUNTS, dtype=torch.float64) / 100
    joint = (prior[:, None] * likelihood).T
    p_x = joint.sum(dim=1)
    logits = likelihood.T.log().requires_grad_()

    risk = (p_x * LogitAdjustedLoss(COUNTS, reduction="none")(logits, joint / p_x[:, None])).sum()
    risk.backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))

    # Of all 3^4 decision rules none has a lower balanced error than argmax z …
    rules = torch.cartesian_prod(*[torch.arange(3)] * 4)
    balanced_recall = likelihood[rules, torch.arange(4)].sum(dim=1) / 3
    chosen = (rules == logits.argmax(dim=1)).all(dim=1)
    assert balanced_recall[chosen].item() == pytest.approx(balanced_recall.max().item())
    # … and plain cross-entropy's optimum, the posterior, decides for the head class every time.
    assert (joint.argmax(dim=1) == 0).sum() >= 3
    assert balanced_recall[(rules == joint.argmax(dim=1)).all(dim=1)] < balanced_recall.max()


def test_a_class_without_examples_is_pushed_down():
    logits = torch.zeros(1, 3, requires_grad=True)
    LogitAdjustedLoss([9, 1, 0])(logits, torch.tensor([0])).backward()
    assert 0 < logits.grad[0, 2] == logits.grad[0, 1]


def test_a_class_switched_off_by_an_infinite_logit():
    logits = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    for loss in (CrossEntropyLoss(), ClassWeightedLoss(COUNTS), LogitAdjustedLoss(COUNTS)):
        for target in (torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.0]])):
            value = loss(logits, target)
            (gradient,) = torch.autograd.grad(value, logits)
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all()
            assert gradient[0, 2] == 0


def test_one_label_is_enough_for_a_multi_label_loss():
    value = BinaryCrossEntropyLoss()(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))
    assert value.item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    "call",
    [
        lambda z, v: class_weighted_cross_entropy(z, TARGET, v),
        lambda z, v: logit_adjusted_cross_entropy(z, TARGET, v),
        lambda z, v: binary_cross_entropy(z, MULTI_HOT, pos_weight=v),
    ],
)
@pytest.mark.parametrize("shape", [(1,), (4,), (7, 3), ()])
def test_function_forms_do_not_broadcast_by_accident(logits, call, shape):
    message = re.escape(f"has shape {shape}, but the logits have shape (7, 3)")
    with pytest.raises(OptionError, match=message):
        call(logits, torch.ones(shape))


def test_the_guides_examples_run():
    guide = Path(__file__).parents[2] / "docs" / "losses.md"
    blocks = re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(guide), "exec"), names)
    poly1, textbook = names["Poly1Loss"], names["textbook_poly1"]
    z, t = [0.3, -1.0, 2.0], [0.0, 1.0, 0.0]
    value = poly1()(torch.tensor([z], dtype=torch.float64), torch.tensor([t]))  # type: ignore[operator]
    assert value.item() == pytest.approx(textbook(z, t, COUNTS, 100, {})[0])  # type: ignore[operator]
