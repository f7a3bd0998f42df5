"""The gradient weight against finite differences, other libraries' losses and hand-made cases."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import longarc
from longarc.errors import DataError, OptionError
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.objectives.losses.f1_weighted import F1WeightedCrossEntropy
from longarc.objectives.losses.gradient_view import gradient_weight
from longarc.objectives.losses.registry import LOSSES, build_loss

P = torch.tensor([0.03, 0.3, 0.55, 0.8, 0.97] * 2, dtype=torch.float64)
Y = torch.tensor([1.0] * 5 + [0.0] * 5, dtype=torch.float64)
# Without the one whose gradient is not its value's slope: F1 is detached. It has its own test.
KINDS = [
    (name, kind)
    for name, info in LOSSES.items()
    for kind in (False, True)
    if (info.multi_label if kind else info.single_label) and name != "f1-weighted"
]


@pytest.mark.parametrize(("name", "multi_label"), KINDS)
def test_it_is_the_slope_of_the_batchs_sum(name, multi_label):
    """By central differences in each point's logit."""
    counts = [40] if multi_label else [160, 40]
    loss = build_loss(name, class_counts=counts, num_examples=200, multi_label=multi_label)
    loss.reduction = "mean"  # must not matter
    measured = gradient_weight(loss, P, Y)

    def total(z: torch.Tensor) -> float:
        logits = z[:, None] if multi_label else torch.stack([torch.zeros_like(z), z], dim=1)
        target = Y[:, None] if multi_label else Y.long()
        return float(loss(logits, target, reduction="sum"))

    z, h = torch.logit(P), 1e-5
    for i in range(len(P)):
        step = torch.zeros_like(z)
        step[i] = h
        slope = (total(z + step) - total(z - step)) / (2 * h)
        assert float(measured[i]) == pytest.approx(slope / float(P[i] - Y[i]), rel=1e-5, abs=1e-7)


def test_f1_weights_are_those_of_the_batch_and_only_of_it():
    loss = F1WeightedCrossEntropy(multi_label=True)
    f1 = 2 * float((P * Y).sum()) / float((P + Y).sum())
    expected = Y * (1 - f1 / 2) + (1 - Y) * f1 / 2
    torch.testing.assert_close(gradient_weight(loss, P, Y), expected)
    alone = gradient_weight(loss, P[:1], Y[:1])  # F = 2·0.03 / 1.03
    torch.testing.assert_close(alone, torch.tensor([1 - 0.03 / 1.03], dtype=torch.float64))


def test_losses_of_torch_and_functions():
    one = torch.ones_like(P)
    plain = torch.nn.CrossEntropyLoss(reduction="sum")
    torch.testing.assert_close(gradient_weight(plain, P, Y), one)
    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.5, 4.0]), reduction="sum")
    torch.testing.assert_close(gradient_weight(weighted, P, Y), torch.where(Y == 1, 4.0, 0.5) * one)
    assert weighted.weight.dtype == torch.float32  # the copy was cast, not the user's
    binary = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor([3.0]))
    binary.multi_label = True
    torch.testing.assert_close(gradient_weight(binary, P, Y), torch.where(Y == 1, 3.0, 1.0) * one)

    def brier(logits, target):
        return (logits.softmax(dim=1)[:, 1] - target).square().sum()

    torch.testing.assert_close(gradient_weight(brier, P, Y), 2 * P * (1 - P))


def test_soft_labels():
    p, y = [0.1, 0.4, 0.9], [0.3, 0.8, 0.25]
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(gradient_weight(CrossEntropyLoss(), p, y), one)
    binary = build_loss("binary-cross-entropy", class_counts=[1], multi_label=True)
    torch.testing.assert_close(gradient_weight(binary, p, y), one)


def test_it_looks_and_does_not_touch():
    loss = F1WeightedCrossEntropy("running", multi_label=True)
    p = P.clone().requires_grad_()
    with torch.no_grad():
        first = gradient_weight(loss, p, Y)
    assert not first.requires_grad
    assert p.grad is None
    assert loss._sums is None, "a look has changed the running F1"
    torch.testing.assert_close(gradient_weight(loss, P, Y), first)


def test_no_pull_is_zero_and_not_minus_zero():
    loss = build_loss("truncated", class_counts=[1, 1])
    assert [str(float(w)) for w in gradient_weight(loss, [0.9, 0.1], [1, 0])] == ["0.0", "0.0"]


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([0.5, 1.0], [1, 0], r"p has 1 at point 1; probabilities lie between 0 and 1"),
        ([0.0], [1], r"p has 0 at point 0"),
        ([float("nan")], [1], r"p has nan at point 0"),
        ([0.5], [2], r"y has 2 at point 0; labels are"),
        ([0.2, 0.3], [1, 0.3], r"p has 0.3 at point 1; that is y too"),
        ([0.5, 0.5], [1], r"p has shape \(2,\) and y \(1,\); expected \(n,\)"),
        ([[0.5]], [[1]], r"p has shape \(1, 1\)"),
    ],
)
def test_points_that_cannot_be(p, y, message):
    with pytest.raises(DataError, match=message):
        gradient_weight(CrossEntropyLoss(), p, y)


def test_a_mean_of_another_library_is_refused():
    with pytest.raises(OptionError, match=r"CrossEntropyLoss has reduction='mean'.*'sum'"):
        gradient_weight(torch.nn.CrossEntropyLoss(), P, Y)


def test_the_short_names_are_the_function_and_cost_no_torch():
    assert longarc.gradient_weight is gradient_weight
    assert longarc.objectives.losses.gradient_weight is gradient_weight
    with pytest.raises(AttributeError, match="has no attribute 'gradient_wait'"):
        _ = longarc.objectives.losses.gradient_wait
    program = "import sys, longarc.objectives.losses; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
