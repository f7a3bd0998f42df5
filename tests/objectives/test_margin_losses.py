"""What margins, priors and the multi-label losses are for, and their own options."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F

from longarc.errors import DataError, OptionError
from longarc.objectives.losses.asymmetric import AsymmetricLoss, asymmetric_cross_entropy
from longarc.objectives.losses.binary_cross_entropy import BinaryCrossEntropyLoss
from longarc.objectives.losses.class_balanced import (
    ClassBalancedLoss,
    class_balanced_cross_entropy,
    class_balanced_weights,
)
from longarc.objectives.losses.class_weighted import ClassWeightedLoss
from longarc.objectives.losses.ldam import LDAMLoss, margin_cross_entropy
from longarc.objectives.losses.logit_adjusted import LogitAdjustedLoss
from longarc.objectives.losses.multilabel_softmax import MultiLabelSoftmaxLoss, multilabel_softmax
from longarc.objectives.losses.radius_margin import (
    RadiusMarginLoss,
    radius_margin_cross_entropy,
)
from longarc.objectives.losses.registry import build_loss, check_loss_options

COUNTS = [80, 15, 5]
PRIOR = torch.tensor(COUNTS, dtype=torch.float64) / 100
TARGET = torch.tensor([0, 2, 1, -100, 0, 0, 1])
MULTI_HOT = torch.tensor(
    [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0], [-100, -100, -100], [0, 0, 1]]
)
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, generator=generator, dtype=torch.float64)


def gradient_of(value, *inputs):
    return torch.autograd.grad(value.sum(), inputs)


# Class-balanced


def test_class_balanced_lies_between_no_weights_and_inverse_frequency():
    counts = torch.tensor([900, 40, 7, 1, 0])
    ones = class_balanced_weights(counts, 0.0, torch.float64)
    torch.testing.assert_close(ones, torch.ones(5, dtype=torch.float64))
    inverse = ClassWeightedLoss(counts).class_weights()
    for near_one in (1 - 1e-9, 1 - 1e-12, math.nextafter(1, 0)):  # in float32, all of them 1
        torch.testing.assert_close(class_balanced_weights(counts, near_one), inverse)
    weights = ClassBalancedLoss(counts, beta=0.9).class_weights(torch.float64)
    expected = [(1 - 0.9) / (1 - 0.9**n) for n in (900, 40, 7, 1, 1)]
    assert (weights / weights[3]).tolist() == pytest.approx(expected)


@each_reduction
def test_class_balanced_is_torchs_with_the_papers_weights(logits, reduction):
    raw = torch.tensor([(1 - 0.99) / (1 - 0.99**n) for n in COUNTS], dtype=torch.float64)
    weights = raw / (PRIOR * raw).sum()
    expected = F.cross_entropy(logits, TARGET, weight=weights, reduction=reduction)
    loss = ClassBalancedLoss(COUNTS, beta=0.99, reduction=reduction)
    torch.testing.assert_close(loss(logits, TARGET), expected)
    function = class_balanced_cross_entropy(logits, TARGET, COUNTS, 0.99, reduction=reduction)
    torch.testing.assert_close(function, expected)


# LDAM


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_ldam_is_cross_entropy_on_the_true_logit_less_its_margin(logits, scale):
    """As the authors' code computes it."""
    margins = 1 / torch.tensor(COUNTS, dtype=torch.float64).sqrt().sqrt()
    margins = margins * (0.5 / margins.max())
    kept = TARGET >= 0
    index = F.one_hot(TARGET[kept], 3).bool()
    output = torch.where(index, logits[kept] - margins, logits[kept])
    expected = F.cross_entropy(scale * output, TARGET[kept])
    torch.testing.assert_close(LDAMLoss(COUNTS, scale=scale)(logits, TARGET), expected)
    function = margin_cross_entropy(logits, TARGET, margins, scale)
    torch.testing.assert_close(function, expected)


def test_ldam_without_margins_is_cross_entropy_of_scaled_logits(logits):
    loss = LDAMLoss(COUNTS, max_margin=0, scale=2)
    torch.testing.assert_close(loss(logits, TARGET), F.cross_entropy(2 * logits, TARGET))
    torch.testing.assert_close(loss.probabilities(logits), (2 * logits).softmax(dim=1))


def test_ldams_weights_come_in_at_the_fraction(logits):
    loss = LDAMLoss(COUNTS, reweight_after=0.8, beta=0.99)
    margins = LDAMLoss(COUNTS)
    weights = ClassBalancedLoss(COUNTS, beta=0.99).class_weights(torch.float64)
    kept = TARGET[TARGET >= 0]
    each = margins(logits, TARGET, reduction="none")[TARGET >= 0]
    weighted = (weights[kept] * each).sum() / weights[kept].sum()
    early, late = (each.mean(), 6.0), (weighted, weights[kept].sum())
    schedule = {0.0: early, 0.79: early, 0.8: late, 1.0: late, 0.5: early}
    for fraction, (expected, total) in schedule.items():
        loss.set_progress(fraction)
        margins.set_progress(fraction)
        torch.testing.assert_close(loss(logits, TARGET), expected)
        assert loss.denominator(TARGET, 3).item() == pytest.approx(float(total))
        torch.testing.assert_close(margins(logits, TARGET), each.mean())  # it has no schedule
    assert (weighted - each.mean()).abs() > 0.01


# Radius margin


def radius_formula(s, y, radii, norms):
    """One example, as it is written."""
    true = torch.exp(s[y] - radii[y] * norms[y])
    others = [torch.exp(s[i] + radii[y] * norms[i]) for i in range(len(s)) if i != y]
    return -torch.log(true / (true + sum(others)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_radius_margin_and_both_its_gradients_are_the_formulas(logits, dtype):
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, 4, generator=generator, dtype=torch.float64).to(dtype)
    vectors.requires_grad_()
    logits.requires_grad_()
    value = RadiusMarginLoss(COUNTS, tau=0.6)(logits, TARGET, vectors)
    found = gradient_of(value, logits, vectors)

    exact = vectors.detach().double().requires_grad_()
    radii = -0.3 * PRIOR.log()
    norms = exact.square().sum(dim=1).sqrt()
    losses = [
        radius_formula(logits[i], int(y), radii, norms) for i, y in enumerate(TARGET) if y >= 0
    ]
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(value, expected)
    for gradient, right in zip(found, gradient_of(expected, logits, exact), strict=True):
        torch.testing.assert_close(gradient, right.to(gradient.dtype))


def test_soft_labels_weigh_the_radius_margins_of_the_classes(logits):
    vectors = torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)).requires_grad_()
    soft = (logits.detach() + 1).softmax(dim=1)
    soft[0] = torch.tensor([0.0, 1.0, 0.0])
    radii = torch.tensor([0.1, 0.4, 1.5], dtype=torch.float64)
    value = radius_margin_cross_entropy(logits, soft, radii, vectors, reduction="none")
    norms = vectors.norm(dim=1)
    expected = torch.stack([
        sum(soft[i, c] * radius_formula(logits[i], c, radii, norms) for c in range(3))
        for i in range(7)
    ])  # fmt: skip
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient_of(value, vectors), gradient_of(expected, vectors))


def test_with_equal_norms_the_radius_margin_is_one_margin_on_the_true_logit(logits):
    radii = torch.tensor([0.1, 0.4, 1.5], dtype=torch.float64)
    kept = TARGET >= 0
    y = TARGET[kept]
    for norm in (1.0, 3.0):
        vectors = norm * torch.eye(3, 5, dtype=torch.float64)
        margin = F.one_hot(y, 3) * 2 * radii[y][:, None] * norm
        expected = F.cross_entropy(logits[kept] - margin, y)
        loss = RadiusMarginLoss(radii=radii)
        torch.testing.assert_close(loss(logits, TARGET, vectors), expected)
        if norm == 1.0:
            torch.testing.assert_close(loss(logits, TARGET), expected)


def test_radius_margin_differs_from_logit_adjustment_by_the_rivals_margin(logits):
    kept = TARGET >= 0
    z, y = logits[kept], TARGET[kept]
    m = -0.7 * PRIOR.log()
    radius = RadiusMarginLoss(COUNTS, tau=0.7, reduction="none")
    adjusted = LogitAdjustedLoss(COUNTS, tau=0.7, reduction="none")
    for i in range(len(y)):
        others = [c for c in range(3) if c != y[i]]
        own = sum(torch.exp(m[y[i]] + z[i, c] - z[i, y[i]]) for c in others)
        pairwise = sum(torch.exp(m[y[i]] - m[c] + z[i, c] - z[i, y[i]]) for c in others)
        torch.testing.assert_close(radius(z, y)[i], torch.log1p(own))
        torch.testing.assert_close(adjusted(z, y)[i], torch.log1p(pairwise))


def test_the_radius_margin_bounds_the_loss_of_every_code_in_the_ball():
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    code = torch.randn(1, 4, generator=generator, dtype=torch.float64)
    loss = RadiusMarginLoss(radii=[0.2, 0.5, 1.0])
    for y in range(3):
        bound = loss(code @ vectors.T, torch.tensor([y]), vectors)
        step = torch.randn(500, 4, generator=generator, dtype=torch.float64)
        step = loss.radii[y] * step / step.norm(dim=1, keepdim=True)
        near = F.cross_entropy((code + step) @ vectors.T, torch.full((500,), y), reduction="none")
        assert near.max() <= bound
        assert near.max() > F.cross_entropy(code @ vectors.T, torch.tensor([y]))


def test_ignored_rows_give_the_class_vectors_no_gradient():
    vectors = torch.ones(3, 2, requires_grad=True)
    logits = torch.tensor([[torch.inf, torch.nan, 0.0], [0.0, 1.0, 2.0]])
    loss = RadiusMarginLoss(COUNTS)
    value = loss(logits, torch.tensor([-100, 1]), vectors)
    torch.testing.assert_close(value, loss(logits[1:], torch.tensor([1]), vectors))
    (gradient,) = gradient_of(loss(logits, torch.tensor([-100, -100]), vectors), vectors)
    assert torch.equal(gradient, torch.zeros(3, 2))


def test_radii_that_are_given_are_not_rounded_and_a_zero_vector_is_no_trouble(logits):
    loss = RadiusMarginLoss(radii=[0.1, 0.7, 1.3])
    expected = loss(logits, TARGET)
    torch.testing.assert_close(loss.half()(logits, TARGET), expected, rtol=0, atol=0)
    vectors = torch.zeros(3, 4, requires_grad=True)
    value = loss(logits, TARGET, vectors)
    torch.testing.assert_close(value, F.cross_entropy(logits, TARGET))
    assert torch.equal(*gradient_of(value, vectors), torch.zeros(3, 4))


@pytest.mark.parametrize(
    "vectors", [torch.ones(4, 2), torch.ones(3), torch.ones(3, 2).long()], ids=["C", "1-d", "type"]
)
def test_class_vectors_that_do_not_fit(logits, vectors):
    with pytest.raises(DataError, match=r"class_vectors have shape \(.*expected \(3, d\)"):
        RadiusMarginLoss(COUNTS)(logits, TARGET, vectors)


# A prior of one's own


def test_any_prior_up_to_a_constant(logits):
    from_counts = LogitAdjustedLoss(COUNTS, tau=0.7)
    given = LogitAdjustedLoss(log_prior=PRIOR.log() + 3.0, tau=0.7)
    torch.testing.assert_close(given.log_prior(torch.float64), PRIOR.log())
    expected = from_counts(logits, TARGET)
    torch.testing.assert_close(given(logits, TARGET), expected)
    exact = given(logits, TARGET)
    torch.testing.assert_close(given.half()(logits, TARGET), exact, rtol=0, atol=0)
    assert list(given.buffers()) == []
    compiled = torch.compile(given, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, TARGET), exact)
    named = build_loss("logit-adjusted", class_counts=[9, 1], options={"log_prior": [0, -1, -2.5]})
    assert torch.isfinite(named(logits, TARGET))


@pytest.mark.parametrize("name", ["logit-adjusted", "radius-margin"])
def test_options_for_each_class_are_checked(logits, name):
    option = {"logit-adjusted": "log_prior", "radius-margin": "radii"}[name]
    loss = build_loss(name, class_counts=[1, 2, 3], options={option: [0.5, 1.0]})
    message = re.escape(f"{option} has shape (2,), but the logits have shape (7, 3)")
    with pytest.raises(OptionError, match=message):
        loss(logits, TARGET)
    for values, problem in [
        ([0.0, float("inf")], "has inf for class 1"),
        ([0.0, float("nan")], "has nan for class 1"),
        ([[0.0, 1.0]], r"has shape \(1, 2\), not \(C,\)"),
        ([], r"has shape \(0,\), not \(C,\)"),
        (["a"], "cannot be read as numbers"),
        ({"a": 1}, "cannot be read as numbers"),
    ]:
        with pytest.raises(OptionError, match=f"{option} {problem}"):
            check_loss_options(name, {option: values})
    with pytest.raises(OptionError, match=f"class_counts and {option} are both missing"):
        build_loss(name, class_counts=None)  # type: ignore[arg-type]
    if name == "radius-margin":
        with pytest.raises(OptionError, match=r"radii has -1 for class 0.*at least 0"):
            check_loss_options(name, {option: [-1, 1]})


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_mutual_information_is_the_posterior_over_the_prior(logits, tau):
    loss = LogitAdjustedLoss(COUNTS, tau=tau)
    pmi = loss.mutual_information(logits)
    posterior = (logits + tau * PRIOR.log()).softmax(dim=1)
    torch.testing.assert_close(pmi.exp(), posterior / PRIOR)
    torch.testing.assert_close((PRIOR * pmi.exp()).sum(dim=1), torch.ones(7, dtype=torch.float64))
    if tau == 1:
        expected = logits - (PRIOR * logits.exp()).sum(dim=1, keepdim=True).log()
        torch.testing.assert_close(pmi, expected)
    assert loss.mutual_information(logits.half()).dtype == torch.float32


# Multi-label softmax


def test_multilabel_softmax_is_the_authors_for_hard_labels(logits):
    kept = MULTI_HOT[:, 0] >= 0
    y, z = MULTI_HOT[kept].double(), logits[kept]
    # Su's code: both groups in one array, what is not in a group pushed to −10^12.
    s = (1 - 2 * y) * z
    zeros = torch.zeros(len(z), 1, dtype=z.dtype)
    negative = torch.logsumexp(torch.cat([s - y * 1e12, zeros], dim=1), dim=1)
    positive = torch.logsumexp(torch.cat([s - (1 - y) * 1e12, zeros], dim=1), dim=1)
    expected = (negative + positive).mean()
    torch.testing.assert_close(MultiLabelSoftmaxLoss()(logits, MULTI_HOT), expected)
    torch.testing.assert_close(multilabel_softmax(logits, MULTI_HOT), expected)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_multilabel_softmax_of_one_label_is_binary_cross_entropy(target):
    z = torch.linspace(-30, 30, 13, dtype=torch.float64)[:, None]
    expected = BinaryCrossEntropyLoss(reduction="none")(z, torch.full_like(z, target))
    found = MultiLabelSoftmaxLoss(reduction="none")(z, torch.full_like(z, target))
    torch.testing.assert_close(found, expected)


def test_multilabel_softmax_is_continuous_up_to_hard_labels(logits):
    t = MULTI_HOT[:5].double()
    z = logits[:5].requires_grad_()
    loss = MultiLabelSoftmaxLoss(reduction="none")
    value, nearly = loss(z, t), loss(z, t.clamp(1e-12, 1 - 1e-12))
    torch.testing.assert_close(nearly, value)
    torch.testing.assert_close(gradient_of(nearly, z), gradient_of(value, z))


def test_an_infinite_logit_switches_a_label_off():
    z = torch.tensor([[1.0, -torch.inf]], requires_grad=True)
    value = MultiLabelSoftmaxLoss()(z, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(value, F.softplus(torch.tensor(-1.0)))
    (gradient,) = gradient_of(value, z)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 1] == 0


def test_adjusted_for_the_prior_one_labels_optimum_is_the_likelihood_ratio():
    # Four values of x; p(x | label), p(x | no label); one document in fifty has the label.
    with_label = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    without = torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64)
    weight = torch.cat([0.02 * with_label, 0.98 * without])  # of (x, label), (x, no label)
    target = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64)[:, None]
    ratio = (with_label / without).log()
    for tau, optimum in [(1.0, ratio), (0.0, ratio + math.log(0.02 / 0.98))]:
        loss = MultiLabelSoftmaxLoss([2], 100, tau=tau, reduction="none")
        z = optimum.clone().requires_grad_()
        risk = weight @ loss(z.repeat(2)[:, None], target)
        (gradient,) = gradient_of(risk, z)
        torch.testing.assert_close(gradient, torch.zeros_like(z))
        # The threshold 0 is the balanced decision with the prior taken out, else "never".
        assert (optimum > 0).tolist() == ([False, False, True, True] if tau else [False] * 4)


def test_multilabel_softmax_counts_labels_that_none_or_all_have():
    loss = MultiLabelSoftmaxLoss([0, 10, 4], 10, tau=1)
    expected = torch.tensor([1 / 10, 10 / 1, 4 / 6]).log()
    torch.testing.assert_close(loss.prior_log_odds(), expected)
    with pytest.raises(OptionError, match="tau=1 needs class_counts and num_examples"):
        MultiLabelSoftmaxLoss([1, 2], tau=1)
    with pytest.raises(OptionError, match="11 for label 0, more than num_examples=10"):
        MultiLabelSoftmaxLoss([11, 2], 10)


# Asymmetric


@each_reduction
def test_asymmetric_without_focus_and_margin_is_binary_cross_entropy(logits, reduction):
    plain = BinaryCrossEntropyLoss(reduction=reduction)
    expected = plain(logits, MULTI_HOT)
    loss = AsymmetricLoss(0, 0, 0, reduction=reduction)
    torch.testing.assert_close(loss(logits, MULTI_HOT), expected)
    function = asymmetric_cross_entropy(logits, MULTI_HOT, 0, 0, 0, reduction=reduction)
    torch.testing.assert_close(function, expected)
    soft = logits.sigmoid()
    torch.testing.assert_close(loss(logits, soft), plain(logits, soft))


def test_asymmetric_is_the_authors_over_the_number_of_labels(logits):
    kept = MULTI_HOT[:, 0] >= 0
    y, p = MULTI_HOT[kept].double(), logits[kept].sigmoid()
    # Their code clips and sums, in these steps.
    absent = (1 - p + 0.05).clamp(max=1)
    loss = y * p.clamp(min=1e-8).log() + (1 - y) * absent.clamp(min=1e-8).log()
    weight = (1 - (p * y + absent * (1 - y))) ** (1 * y + 4 * (1 - y))
    expected = -(loss * weight).sum() / (6 * 3)
    torch.testing.assert_close(AsymmetricLoss()(logits, MULTI_HOT), expected)


def test_asymmetric_forgets_absent_labels_below_the_margin():
    below, above = math.log(0.04 / 0.96), math.log(0.06 / 0.94)
    z = torch.tensor([[below, above]], requires_grad=True)
    value = AsymmetricLoss(gamma_negative=1.0)(z, torch.zeros(1, 2))
    (gradient,) = gradient_of(value, z)
    assert gradient[0, 0] == 0
    assert gradient[0, 1] > 0
    certain = AsymmetricLoss()(torch.full((1, 1), 1e4), torch.zeros(1, 1))
    assert certain.item() == pytest.approx(-(0.95**4) * math.log(0.05))


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("margin", [0.0, 1e-3, 0.3])
def test_asymmetric_has_finite_gradients_everywhere(gamma, margin):
    around = torch.tensor([math.log(margin / (1 - margin))]) if margin else torch.zeros(1)
    values = [torch.linspace(-150, 150, 601), torch.tensor([-1e4, 1e4]), around]
    z = torch.cat(values)[:, None].requires_grad_()
    for target in (0.0, 0.5, 1.0):
        loss = AsymmetricLoss(gamma, gamma, margin, reduction="none")
        value = loss(z, torch.full_like(z, target))
        (gradient,) = gradient_of(value, z)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
        assert value.min() >= -1e-6


# Options and function forms


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("class-balanced", {"beta": 1.0}, "beta must be .* below 1; found 1.0"),
        ("class-balanced", {"power": 1.0}, r"no option 'power'. Known: beta \(default 0.999\)"),
        ("ldam", {"scale": 0}, "scale must be a finite number"),
        ("ldam", {"reweight_after": 1}, "reweight_after must be .* below 1"),
        ("ldam", {"max_margin": -1}, "max_margin must be"),
        ("radius-margin", {"tau": -1}, "tau must be"),
        ("multilabel-softmax", {"tau": "1"}, "tau must be"),
        ("asymmetric", {"margin": 1.0}, "margin must be .* below 1"),
        ("asymmetric", {"gamma_negative": -1}, "gamma_negative must be"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(OptionError, match=message):
        check_loss_options(name, options)


@pytest.mark.parametrize("shape", [(1,), (4,), (7, 3), ()])
def test_function_forms_do_not_broadcast_by_accident(logits, shape):
    message = re.escape(f"has shape {shape}, but the logits have shape (7, 3)")
    for function in (margin_cross_entropy, radius_margin_cross_entropy):
        with pytest.raises(OptionError, match=message):
            function(logits, TARGET, torch.ones(shape))


@pytest.mark.parametrize(
    "loss", [ClassBalancedLoss(COUNTS), LDAMLoss(COUNTS), RadiusMarginLoss(COUNTS)]
)
def test_a_class_switched_off_by_an_infinite_logit(loss):
    logits = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    for target in (torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.0]])):
        value = loss(logits, target)
        (gradient,) = gradient_of(value, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 2] == 0
