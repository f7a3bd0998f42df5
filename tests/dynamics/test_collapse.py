"""Measures of collapse against closed forms, the authors' code and what must not matter."""

from __future__ import annotations

import json
import math

import pytest
import torch
from scipy.special import hyp0f1, ive

from longarc.dynamics.collapse import (
    BLOCK,
    alignment,
    code_std,
    collapse_measures,
    cosine_spread,
    effective_rank,
    uniformity,
)
from longarc.dynamics.collapse_detector import CollapseDetector
from longarc.errors import DataError, OptionError

D = 8
ALL = [code_std, effective_rank, uniformity, cosine_spread]


def draw(n, d=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def test_isotropic_codes():
    """Uniform on the sphere: variance 1/d, E e^{κ cos} = ₀F₁(d/2; κ²/4)."""
    codes = draw(3000)
    assert code_std(codes) == pytest.approx(1 / math.sqrt(D), rel=0.01)
    assert cosine_spread(codes) == pytest.approx(1 / math.sqrt(D), rel=0.01)
    for t in (0.5, 2.0):
        expected = -2 * t + math.log(hyp0f1(D / 2, t * t))
        assert uniformity(codes, t) == pytest.approx(expected, abs=0.01)
    assert effective_rank(codes) == pytest.approx(D, rel=0.001)
    assert alignment(codes, draw(3000, seed=1)) == pytest.approx(2, rel=0.02)


def test_a_circle():
    """Evenly on a circle: ½ of the squares each; E e^{2t cos} is the Bessel function I₀."""
    angles = torch.arange(400, dtype=torch.float64) * (2 * math.pi / 400)
    codes = torch.stack([angles.cos(), angles.sin()], dim=1) * 3
    assert code_std(codes) == pytest.approx(math.sqrt(0.5 * 400 / 399))
    assert effective_rank(codes) == pytest.approx(2)
    # All 400² pairs have the mean e^{−2t} I₀(2t); those of a code with itself count 1 each.
    mean = ive(0, 4.0)
    expected = math.log((400 * mean - 1) / 399)
    assert uniformity(codes) == pytest.approx(expected)


def test_rank_one():
    """On one line to both sides: no mean, one direction."""
    along = torch.tensor([1.0, -1.0]).repeat(50).double()
    codes = along[:, None] * draw(1)
    assert effective_rank(codes) == pytest.approx(1, abs=1e-6)
    direction = draw(1)[0] / draw(1)[0].norm()
    assert code_std(codes) == pytest.approx(float(direction.abs().mean() * (100 / 99) ** 0.5))
    # Of the 4,950 pairs 2 · 1,225 have cosine 1, 2,500 have −1.
    mean = (2450 - 2500) / 4950
    assert cosine_spread(codes) == pytest.approx(math.sqrt(1 - mean**2))
    assert uniformity(codes) == pytest.approx(math.log((2450 + 2500 * math.exp(-8)) / 4950))


def test_constant_codes():
    codes = draw(1).expand(50, D)
    for measure, expected in zip(ALL, (0, 1, 0, 0), strict=True):
        assert measure(codes) == pytest.approx(expected, abs=1e-6), measure.__name__
    assert alignment(codes, codes) == 0
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert code_std(torch.zeros(4, 3)) == 0


def test_singular_values_that_are_known():
    values = torch.tensor([5.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    left, _ = torch.linalg.qr(draw(20, 4))
    right, _ = torch.linalg.qr(draw(4, 4, seed=1))
    p = [0.5, 0.3, 0.1, 0.1]
    expected = math.exp(-sum(q * math.log(q) for q in p))
    assert effective_rank(left * values @ right.T) == pytest.approx(expected)


def test_wang_and_isolas_code():
    """Theirs, as published with the paper."""

    def lalign(x, y, alpha=2):
        return (x - y).norm(dim=1).pow(alpha).mean()

    def lunif(x, t=2):
        return torch.pdist(x, p=2).pow(2).mul(-t).exp().mean().log()

    first, second = draw(30), draw(30, seed=1)
    unit = torch.nn.functional.normalize
    for power in (1.0, 2.0, 3.0):
        expected = float(lalign(unit(first), unit(second), power))
        assert alignment(first, second, power) == pytest.approx(expected)
        assert uniformity(first, power) == pytest.approx(float(lunif(unit(first), power)))


@pytest.mark.parametrize("number", [BLOCK, BLOCK + 1, 2 * BLOCK + 40])
def test_all_pairs_count_once_however_many_codes(number):
    codes = torch.nn.functional.normalize(draw(number).double())
    i, j = torch.triu_indices(number, number, offset=1)
    cosines = (codes[i] * codes[j]).sum(1)
    assert cosine_spread(codes) == pytest.approx(float(cosines.std(correction=0)))
    assert uniformity(codes) == pytest.approx(float((4 * cosines - 4).exp().mean().log()))


@pytest.mark.parametrize("measure", ALL)
def test_what_does_not_matter(measure):
    codes = draw(60) + 0.5
    expected = measure(codes)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert measure(codes[order]) == pytest.approx(expected)
    assert measure(codes[:, torch.arange(D - 1, -1, -1)]) == pytest.approx(expected)
    assert measure(17.0 * codes) == pytest.approx(expected)
    assert measure(-codes) == pytest.approx(expected)
    rotation, _ = torch.linalg.qr(draw(D, D, seed=3))
    # A mean of standard deviations depends on the axes, but little.
    near = 0.05 if measure is code_std else 1e-9
    assert measure(codes @ rotation) == pytest.approx(expected, rel=near)
    if measure is not effective_rank:  # each code's own length
        assert measure(codes * draw(60, 1, seed=4).exp()) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [code_std, uniformity])
def test_the_closer_to_collapse_the_closer_to_0(measure):
    found = [abs(measure(draw(200) + shift)) for shift in (0, 0.5, 1, 3, 10, 100)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.03 * found[0]


def test_half_precision_and_gradients():
    codes = (draw(100) + 1).bfloat16().requires_grad_()
    found = collapse_measures(codes, codes)
    exact = collapse_measures(codes.detach().double(), codes.detach().double())
    assert found == pytest.approx(exact, rel=1e-4, abs=1e-6)
    assert found.relative_std == pytest.approx(math.sqrt(D) * code_std(codes))
    assert collapse_measures(codes).alignment is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: code_std(torch.ones(1, 3)), r"shape \(1, 3\).*with 2 examples or more"),
        (lambda: uniformity(torch.ones(3)), r"shape \(3,\).*expected \(N, d\)"),
        (lambda: effective_rank(torch.ones(3, 3).long()), r"type torch.int64"),
        (lambda: alignment(draw(3), draw(4)), r"shapes \(3, 8\) and \(4, 8\)"),
    ],
)
def test_codes_that_cannot_be(call, message):
    with pytest.raises(DataError, match=message):
        call()


def watch(scales, rank_one=False, **options):
    """Codes that shrink towards one point, or towards one line."""
    detector = CollapseDetector(**options)
    for step, scale in enumerate(scales):
        codes = draw(64, seed=step) * scale + 1
        if rank_one:
            codes = draw(64, seed=step) * torch.tensor([1.0] + [scale] * (D - 1))
        if detector.update(collapse_measures(codes), 10 * step):
            break
    return detector.alarm


def test_the_alarm():
    """Three measurements in a row, and none sooner."""
    alarm = watch([1, 1, 1e-3, 1e-3, 1e-3])
    assert (alarm.measure, alarm.onset, alarm.step) == ("spread", 20, 40)
    assert alarm.value < 0.01 < 0.5 < alarm.reference
    assert "collapse" in str(alarm)
    assert "at step 40" in str(alarm)
    assert watch([1, 1e-3, 1e-3, 1, 1e-3, 1e-3, 1]) is None
    assert watch([1, 1e-3, 1e-3], patience=2).step == 20
    assert watch([1] + [0.3] * 20) is None
    assert watch([1] + [0.3] * 20, fraction=0.5).onset == 10


def test_what_is_low_without_an_alarm_is_known():
    """As codes are at the end of a training that was too short for the alarm."""
    for scales, since in (([1, 1, 1e-3, 1e-3], 20), ([1, 1e-3, 1], None), ([1, 1, 1], None)):
        detector = CollapseDetector()
        for step, scale in enumerate(scales):
            assert detector.update(collapse_measures(draw(64) * scale + 1), 10 * step) is None
        assert detector.low_since == since


def test_dimensions_collapse_too():
    alarm = watch([1, 1e-3, 1e-3, 1e-3], rank_one=True)
    assert (alarm.measure, alarm.onset, alarm.step) == ("rank", 10, 30)


def test_the_best_so_far_is_the_measure():
    """From alike to spread and back to what it was at the start: that is a collapse."""
    assert watch([0.02] * 10) is None
    assert watch([0.02, 0.3, 1, 0.02, 0.02, 0.02]).onset == 30


def test_a_start_that_is_collapsed_already():
    assert watch([1e-6] * 5).step == 20


def test_it_goes_on_from_its_state():
    scales = [1, 1, 1e-3, 1e-3, 1e-3]
    detector = CollapseDetector()
    for step, scale in enumerate(scales):
        resumed = CollapseDetector()
        resumed.load_state_dict(json.loads(json.dumps(detector.state_dict())))
        detector = resumed
        detector.update(collapse_measures(draw(64, seed=step) * scale + 1), 10 * step)
    assert detector.alarm == watch(scales)
    again = CollapseDetector()
    again.load_state_dict(detector.state_dict())
    assert again.alarm == detector.alarm
    with pytest.raises(OptionError, match="no state of a CollapseDetector"):
        again.load_state_dict({"step": 1})


@pytest.mark.parametrize("options", [{"fraction": 1.0}, {"fraction": -0.1}, {"patience": 0}])
def test_options_that_cannot_be(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        CollapseDetector(**options)
