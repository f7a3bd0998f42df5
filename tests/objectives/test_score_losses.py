"""What the re-weighting losses are for, and how they hang together."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import f1_score

from longarc.errors import OptionError
from longarc.objectives.losses.binary_cross_entropy import binary_cross_entropy
from longarc.objectives.losses.cross_entropy import cross_entropy
from longarc.objectives.losses.dice import DiceLoss, dice_loss
from longarc.objectives.losses.f1_weighted import (
    F1WeightedCrossEntropy,
    f1_weighted_cross_entropy,
    soft_f1,
)
from longarc.objectives.losses.focal import FocalLoss, focal_loss, focal_probabilities
from longarc.objectives.losses.log_space import log_one_minus_softmax
from longarc.objectives.losses.registry import build_loss, check_loss_options
from longarc.objectives.losses.soft_accuracy import SoftAccuracyLoss, soft_accuracy_loss
from longarc.objectives.losses.soft_f1 import SoftF1Loss, soft_f1_loss
from longarc.objectives.losses.truncated import TruncatedCrossEntropy, truncated_cross_entropy

DOUBLE = torch.float64
TARGET = torch.tensor([0, 2, 1, -100, 0, 0, 1])
MULTI_HOT = torch.tensor(
    [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [-100, -100, -100], [0, 0, 1]]
)
both_kinds = pytest.mark.parametrize(
    ("multi_label", "target"), [(False, TARGET), (True, MULTI_HOT)], ids=["single", "multi"]
)


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, generator=generator, dtype=DOUBLE)


def gradient(loss, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    logits = logits.detach().clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(logits, target).sum(), logits)
    return result


@both_kinds
@pytest.mark.parametrize(
    ("loss", "function"),
    [
        (SoftAccuracyLoss, soft_accuracy_loss),
        (SoftF1Loss, soft_f1_loss),
        (F1WeightedCrossEntropy, f1_weighted_cross_entropy),
        (TruncatedCrossEntropy, truncated_cross_entropy),
        (FocalLoss, focal_loss),
        (DiceLoss, dice_loss),
    ],
)
def test_the_function_is_the_module(logits, multi_label, target, loss, function):
    for reduction in ("mean", "none"):
        contract = {"multi_label": multi_label, "reduction": reduction}
        assert torch.equal(function(logits, target, **contract), loss(**contract)(logits, target))
    options = {"multi_label": multi_label, "reduction": "none", "ignore_index": -1}
    ignored = function(logits, torch.where(target == -100, -1, target), **options)
    assert torch.equal(ignored, loss(multi_label=multi_label, reduction="none")(logits, target))


# Logarithms of probabilities


def test_log_one_minus_softmax_at_any_scale():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(50, 6, generator=generator, dtype=DOUBLE)
    expected = torch.log1p(-z.softmax(dim=1))
    torch.testing.assert_close(log_one_minus_softmax(z), expected)
    assert torch.autograd.gradcheck(log_one_minus_softmax, z[:5].requires_grad_())
    far = torch.tensor([[1e4, -1e4], [40.0, 0.0], [1e4, 1e4]], dtype=DOUBLE)
    by_hand = [[-2e4, 0], [-40, -math.exp(-40)], [-math.log(2), -math.log(2)]]
    torch.testing.assert_close(
        log_one_minus_softmax(far), torch.tensor(by_hand, dtype=DOUBLE), rtol=1e-14, atol=0
    )


def test_log_one_minus_softmax_with_classes_switched_off():
    z = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    value = log_one_minus_softmax(z)
    torch.testing.assert_close(
        value, torch.tensor([[math.log(1 / (1 + math.e)), math.log(math.e / (1 + math.e)), 0.0]])
    )
    value.sum().backward()
    assert torch.isfinite(z.grad).all()
    for loss in (FocalLoss(), TruncatedCrossEntropy(), F1WeightedCrossEntropy(), DiceLoss()):
        assert torch.isfinite(gradient(loss, z, torch.tensor([1]))).all()


# Soft accuracy


def test_soft_accuracys_gradient_vanishes_on_both_sides():
    z = torch.linspace(-8, 8, 9, dtype=DOUBLE)[:, None]
    p = z.sigmoid()
    for label, sign in ((1.0, -1), (0.0, 1)):
        loss = SoftAccuracyLoss(multi_label=True)
        slope = gradient(lambda z, t, loss=loss: loss(z, t, reduction="sum"), z, 0 * z + label)
        torch.testing.assert_close(slope, sign * p * (1 - p))
        # … where cross-entropy's goes to ∓1 on the wrong side: the factor is the true class's p.
        chance = p if label else 1 - p
        torch.testing.assert_close(slope, (p - label) * chance)


def test_soft_accuracy_is_the_accuracy_of_certain_answers():
    z = 1e4 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert SoftAccuracyLoss()(z, torch.tensor([0, 1, 2, 2])).item() == 0.25


# Soft F1


@both_kinds
def test_soft_f1_of_certain_answers_is_the_f1_score(multi_label, target):
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (40, 4)) if multi_label else generator.integers(0, 4, 40)
    guess = generator.integers(0, 2, (40, 4)) if multi_label else generator.integers(0, 5, 40)
    classes = 4 if multi_label else 5  # class 4 is guessed but never true: it is left out
    certain = torch.tensor(guess if multi_label else np.eye(5)[guess])
    z = 1e4 * (2 * certain.double() - 1)
    expected = f1_score(truth, guess, average="macro", labels=range(4))
    assert z.shape == (40, classes)
    value = SoftF1Loss(multi_label=multi_label)(z, torch.tensor(truth))
    assert value.item() == pytest.approx(1 - expected)


def test_soft_f1_of_a_batch_is_no_mean_of_its_parts(logits):
    target = torch.tensor([0, 2, 1, 1, 0, 0, 1])
    loss = SoftF1Loss()
    whole, parts = (
        loss(logits, target),
        (loss(logits[:3], target[:3]), loss(logits[3:], target[3:])),
    )
    assert abs(whole.item() - (3 * parts[0] + 4 * parts[1]).item() / 7) > 1e-3
    shares = loss(logits, target, reduction="none")
    assert shares.mean().item() == pytest.approx(whole.item())


def test_soft_f1_without_positives_is_zero_and_flat():
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    loss = SoftF1Loss(multi_label=True)
    assert loss(z, torch.zeros(3, 2)).item() == 0
    assert torch.equal(gradient(loss, z, torch.zeros(3, 2)), torch.zeros(3, 2))
    only_first = torch.tensor([[1.0, 0], [0, 0], [0, 0]])
    slope = gradient(loss, z, only_first)
    assert (slope[:, 0] != 0).all()
    assert torch.equal(slope[:, 1], torch.zeros(3))  # false positives of an absent class are free


# F1-weighted cross-entropy


@both_kinds
def test_f1_weighted_lies_between_positives_only_and_half_of_one_versus_rest(
    logits, multi_label, target
):
    options = {"multi_label": multi_label, "reduction": "none"}
    none, full = torch.zeros(3), torch.ones(3)
    positives = f1_weighted_cross_entropy(logits, target, none, **options)
    even = f1_weighted_cross_entropy(logits, target, full, **options)
    if multi_label:
        expected = binary_cross_entropy(logits, target, reduction="none") / 2
        torch.testing.assert_close(even, expected)
        hot = torch.where(target == -100, 0, target).double()
        by_hand = -(hot * logits.sigmoid().log()).mean(dim=1)
        torch.testing.assert_close(positives, by_hand)
    else:
        torch.testing.assert_close(positives, cross_entropy(logits, target, reduction="none"))


@both_kinds
def test_f1_weighteds_gradient_takes_f1_as_a_constant(logits, multi_label, target):
    keep = (target != -100) if target.ndim == 1 else (target != -100).any(dim=1)
    hot = torch.eye(3, dtype=DOUBLE)[target.clamp(min=0)] if target.ndim == 1 else target.double()
    p = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    f1 = soft_f1(p[keep], hot[keep])
    fixed = lambda z, t: f1_weighted_cross_entropy(z, t, f1, multi_label=multi_label)  # noqa: E731
    assert torch.autograd.gradcheck(fixed, (logits.clone().requires_grad_(), target))
    loss = F1WeightedCrossEntropy(multi_label=multi_label)
    torch.testing.assert_close(loss(logits, target), fixed(logits, target))
    torch.testing.assert_close(gradient(loss, logits, target), gradient(fixed, logits, target))


def test_f1_weighted_pulls_as_soft_f1_does_where_its_slope_is_not_flat():
    """Its gradient is soft F1's without the true answer's probability, up to Σ (t + p) / 2."""
    z = torch.linspace(-3, 3, 8, dtype=DOUBLE)[:, None]
    t = torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 1], dtype=DOUBLE)[:, None]
    p = z.sigmoid()
    ours = gradient(F1WeightedCrossEntropy(multi_label=True, reduction="sum"), z, t)
    soft = gradient(SoftF1Loss(multi_label=True), z, t)
    chance_of_the_true_answer = torch.where(t == 1, p, 1 - p)
    torch.testing.assert_close(soft, 2 * ours * chance_of_the_true_answer / (t + p).sum())


def test_f1_weighted_an_absent_classs_negatives_weigh_nothing_in_a_batch(logits):
    target = torch.tensor([0, 0, 1, 1, 0, 1, 0])
    f1 = soft_f1(logits.softmax(dim=1), torch.eye(3, dtype=DOUBLE)[target])
    assert f1[2] == 0
    assert (f1[:2] > 0).all()


def running(momentum: float = 0.9, **contract) -> F1WeightedCrossEntropy:
    return F1WeightedCrossEntropy("running", momentum, **contract)


@both_kinds
def test_running_f1_is_the_batchs_at_first_and_then_remembers(logits, multi_label, target):
    loss = running(0.75, multi_label=multi_label)
    batch = F1WeightedCrossEntropy(multi_label=multi_label)
    torch.testing.assert_close(loss(logits, target), batch(logits, target))

    second = logits.flip(0) + 1
    hits, size = torch.zeros(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
    for z, weight in ((logits, 0.75), (second, 1.0)):
        p = z.sigmoid() if multi_label else z.softmax(dim=1)
        for row in range(7):
            if (target[row] == -100).any():
                continue
            t = target[row] if multi_label else torch.eye(3)[target[row]]
            hits += weight * t * p[row]
            size += weight * (t + p[row])
    expected = f1_weighted_cross_entropy(second, target, 2 * hits / size, multi_label=multi_label)
    torch.testing.assert_close(loss(second, target), expected)


def test_running_f1_changes_in_training_only(logits):
    loss = running()
    loss(logits, TARGET)
    with torch.no_grad():
        before = loss(-logits, TARGET)
        assert torch.equal(loss(-logits, TARGET), before)
    evaluating = copy.deepcopy(loss).eval()
    assert torch.equal(evaluating(-logits, TARGET), before)
    assert torch.equal(evaluating(-logits, TARGET), before)
    assert not torch.equal(loss(-logits, TARGET), before)
    # Before the first update F is 0: the positives alone.
    fresh = running().eval()
    torch.testing.assert_close(fresh(logits, TARGET), cross_entropy(logits, TARGET))


def test_running_f1_keeps_a_class_that_the_batch_lacks(logits):
    loss = running()
    loss(logits, TARGET)
    without = torch.tensor([0, 0, 1, 1, 0, 1, 0])
    remembered = gradient(loss, logits, without)[:, 2]
    forgotten = gradient(F1WeightedCrossEntropy(), logits, without)[:, 2]
    assert (remembered > forgotten).all()


def test_running_f1_is_neither_rounded_nor_saved(logits):
    loss, twin = running(), running()
    loss(logits, TARGET), twin(logits, TARGET)
    loss.half()
    assert torch.equal(loss(-logits, TARGET), twin(-logits, TARGET))
    assert loss.state_dict() == {}
    value = loss.to("meta")(logits.to("meta"), TARGET.to("meta"))
    assert value.device.type == "meta"


def test_running_f1_starts_anew_and_ends_as_the_calls_own(logits):
    """As a probe and a training ask for: the start, the end, and what is between."""
    loss, batch = running(), F1WeightedCrossEntropy()
    first = loss(logits, TARGET)
    loss.set_progress(0.5)
    assert not torch.equal(loss(-logits, TARGET), batch(-logits, TARGET))
    kept = loss._sums
    loss.set_progress(1.0)
    for z in (logits, -logits):
        assert torch.equal(loss(z, TARGET), batch(z, TARGET))
    assert loss._sums is kept
    loss.set_progress(0.0)
    assert torch.equal(loss(logits, TARGET), first)


def test_running_f1_once_frozen_is_a_function(logits):
    loss = running()
    loss(logits, TARGET)
    kept, frozen = loss._sums, loss.frozen()
    before = frozen(-logits, TARGET)
    assert loss._sums is kept
    loss(-logits, TARGET)
    assert loss._sums is not kept, "the loss itself goes on"
    assert loss.training
    assert torch.equal(frozen(-logits, TARGET), before)


def test_running_f1_is_taken_up_where_it_was(logits):
    loss, again = running(), running()
    assert loss.gathered() == {}
    loss(logits, TARGET)
    again.take_up(loss.gathered())
    assert torch.equal(again(-logits, TARGET), loss(-logits, TARGET))


def test_running_f1_refuses_another_number_of_classes(logits):
    loss = build_loss("f1-weighted", class_counts=[3, 1], options={"statistics": "running"})
    loss(logits, TARGET)
    with pytest.raises(OptionError, match=r"running F1 has shape \(3,\).*\(7, 2\)"):
        loss(logits[:, :2], torch.zeros(7).long())
    with pytest.raises(OptionError, match=r"f1 has shape \(2,\)"):
        f1_weighted_cross_entropy(logits, TARGET, torch.zeros(2))


# Truncation


def test_truncated_has_no_gradient_beyond_the_threshold_and_cross_entropys_before():
    p = torch.tensor([0.05, 0.3, 0.59, 0.61, 0.9], dtype=DOUBLE)
    z, first = torch.stack([p.log(), (1 - p).log()], dim=1), torch.zeros(5).long()
    slope = gradient(TruncatedCrossEntropy(reduction="sum"), z, first)
    plain = gradient(lambda z, t: cross_entropy(z, t, reduction="sum"), z, first)
    torch.testing.assert_close(slope[:3], plain[:3])
    assert torch.equal(slope[3:], torch.zeros(2, 2, dtype=DOUBLE))
    # For a label of its own, on both sides, and the silent examples still count in the mean.
    odds = torch.logit(p)[:, None]
    loss = TruncatedCrossEntropy(0.6, multi_label=True)
    positives = gradient(loss, odds, torch.ones(5, 1))[:, 0]
    torch.testing.assert_close(positives, torch.where(p <= 0.6, p - 1, 0) / 5)
    negatives = gradient(loss, odds, torch.zeros(5, 1))[:, 0]
    torch.testing.assert_close(negatives, torch.where(p >= 0.4, p, 0) / 5)


# Focal loss


@both_kinds
def test_focal_loss_with_gamma_zero_is_cross_entropy(logits, multi_label, target):
    value = focal_loss(logits, target, 0, multi_label=multi_label)
    plain = binary_cross_entropy if multi_label else cross_entropy
    torch.testing.assert_close(value, plain(logits, target))
    expected = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    torch.testing.assert_close(focal_probabilities(logits, 0, multi_label=multi_label), expected)


def minimiser(loss: FocalLoss, q: torch.Tensor) -> torch.Tensor:
    """The logits (1, C) at which the expected loss under the class probabilities q is least."""

    def expected(z: np.ndarray) -> tuple[float, np.ndarray]:
        logits = torch.tensor(z[None], requires_grad=True)
        value = loss(logits, q[None])
        value.backward()
        return value.item(), logits.grad[0].numpy()

    found = minimize(
        expected, np.zeros(len(q)), jac=True, method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 1000},
    )  # fmt: skip
    return torch.tensor(found.x)[None]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("q", [[0.7, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.95, 0.05]])
def test_focal_probabilities_are_those_the_expected_loss_was_least_for(gamma, q):
    q = torch.tensor(q, dtype=DOUBLE)
    loss = FocalLoss(gamma)
    z = minimiser(loss, q)
    torch.testing.assert_close(loss.probabilities(z)[0], q, rtol=1e-5, atol=1e-6)
    softmax = z.softmax(dim=1)[0]
    assert (softmax - q).abs().max() > 0.005
    assert softmax.argsort().equal(q.argsort())
    if len(q) == 2:
        assert 0.5 < softmax[0] < q[0]


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
def test_focal_probabilities_of_labels_of_their_own(gamma, alpha):
    q = torch.tensor([0.02, 0.3, 0.5, 0.9], dtype=DOUBLE)
    loss = FocalLoss(gamma, alpha, multi_label=True)
    z = minimiser(loss, q)
    torch.testing.assert_close(loss.probabilities(z)[0], q, rtol=1e-4, atol=1e-5)
    assert (z.sigmoid()[0] - q).abs().max() > 0.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_probabilities_of_saturated_logits(dtype, gamma):
    rows = [[1e4, -1e4, 0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4], [30, 0, 0], [0, -torch.inf, 0]]
    p = focal_probabilities(torch.tensor(rows, dtype=dtype), gamma)
    assert p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(5, dtype=p.dtype))
    assert p[0].tolist() == [1, 0, 0]
    assert p[1].tolist() == [0.5, 0.5, 0]
    assert p[4].tolist() == [0.5, 0, 0.5]
    alone = focal_probabilities(torch.tensor(rows[:4], dtype=dtype), gamma, multi_label=True)
    assert alone[0].tolist() == [1, 0, 0.5]


def test_focal_probabilities_lose_no_digits_near_certainty():
    z = torch.linspace(0, 40, 81, dtype=DOUBLE)[:, None] * torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    odds = [focal_probabilities(z.to(t), 2.0)[:, 1].double() for t in (DOUBLE, torch.float32)]
    torch.testing.assert_close(
        odds[1][odds[0] > 1e-30], odds[0][odds[0] > 1e-30], rtol=1e-4, atol=0
    )


def test_focal_alpha_is_for_labels_of_their_own():
    check_loss_options("focal", {"alpha": 0.25})  # the kind of labels is open yet
    check_loss_options("focal", {"alpha": 0.25}, multi_label=True)
    with pytest.raises(OptionError, match=r"alpha=0.25 .*class-weighted or class-balanced"):
        check_loss_options("focal", {"alpha": 0.25}, multi_label=False)
    for alpha in (0, 1, -0.1, "0.25"):
        with pytest.raises(OptionError, match="alpha must be"):
            check_loss_options("focal", {"alpha": alpha})


# Dice


def test_dice_is_the_papers_formula_at_a_point():
    z, p = torch.logit(torch.tensor([[0.3]], dtype=DOUBLE)), 0.3
    expected = {
        "plain": [1 - (2 * p + 1) / (p + 1 + 1), 1 - 1 / (p + 1)],
        "squared": [1 - (2 * p + 1) / (p * p + 1 + 1), 1 - 1 / (p * p + 1)],
        "self-adjusting": [1 - (2 * 0.7 * p + 1) / (0.7 * p + 2), 1 - 1 / (0.7 * p + 1)],
    }
    for form, values in expected.items():
        for label, value in zip((1.0, 0.0), values, strict=True):
            loss = dice_loss(z, torch.full((1, 1), label), form, multi_label=True)
            assert loss.item() == pytest.approx(value)


def test_self_adjusting_dice_is_least_at_one_half_and_plain_at_certainty():
    p = torch.linspace(0.01, 0.99, 99, dtype=DOUBLE)
    z, ones = torch.logit(p)[:, None], torch.ones(99, 1)
    losses = {
        form: DiceLoss(form, multi_label=True, reduction="none")(z, ones)
        for form in ("plain", "squared", "self-adjusting")
    }
    assert p[losses["self-adjusting"].argmin()].item() == pytest.approx(0.5)
    assert (losses["plain"].diff() < 0).all()
    assert (losses["squared"].diff() < 0).all()
    without = DiceLoss("self-adjusting", alpha=0, multi_label=True, reduction="none")(z, ones)
    torch.testing.assert_close(without, losses["plain"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("f1-weighted", {"statistics": "runing"}, "no statistics 'runing'. Did you mean running"),
        ("f1-weighted", {"momentum": 1}, "momentum must be .* below 1; found 1"),
        ("truncated", {"threshold": 0.4}, "threshold must be .* at least 0.5 and below 1"),
        ("focal", {"gamma": -1}, "gamma must be .* at least 0"),
        ("dice", {"form": "square"}, "no form 'square'. Did you mean squared"),
        ("dice", {"form": ["plain"]}, r"no form \['plain'\]"),
        ("dice", {"smooth": 0}, "smooth must be .* at least 1e-06"),
        ("dice", {"alpha": -1}, "alpha must be .* at least 0"),
        ("soft-f1", {"gamma": 1}, "no option 'gamma'. It has none."),
    ],
)
@pytest.mark.parametrize("multi_label", [None, False, True])
def test_options_out_of_range(name, options, message, multi_label):
    with pytest.raises(OptionError, match=message):
        check_loss_options(name, options, multi_label=multi_label)
