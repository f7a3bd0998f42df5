"""The probe against scikit-learn, on handwritten digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from longarc.objectives.losses.f1_weighted import F1WeightedCrossEntropy
from longarc.objectives.losses.registry import build_loss
from longarc.training.probe import Probe, fit_probe
from longarc.training.probe_temperature import temperature


@pytest.fixture(scope="module")
def digits():
    """500 digits and the pixels that are often inked: rare ones leave the optimum nearly flat."""
    data = load_digits()
    x = data.data[:500]
    x = x[:, (x > 0).mean(axis=0) > 0.4].astype(np.float32)
    assert x.std(axis=0).min() > 0.1 * np.median(x.std(axis=0)), "scikit-learn knows no floor"
    return torch.from_numpy(x), torch.from_numpy(data.target[:500])


def no_score(probe):
    return 0.0


def fit(x, y, name="cross-entropy", penalty=1e-2, counts=None, classes=10, **options):
    if counts is None:
        counts = torch.bincount(y) if y.ndim == 1 else y.sum(dim=0).long()
    loss = build_loss(name, class_counts=counts, num_examples=len(x), multi_label=y.ndim == 2)
    return fit_probe(x, y, loss, classes=classes, score=no_score, penalties=(penalty,), **options)


def reference(x, y, penalty):
    """scikit-learn: minimise Σ loss + ‖W‖² / (2 C), on standardised features."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=5000)
    model.fit(scaler.transform(x), y)
    return model.decision_function(scaler.transform(x))


def centred(logits):
    """Softmax does not see a constant added to all classes."""
    logits = torch.as_tensor(np.asarray(logits), dtype=torch.float64)
    return (logits - logits.mean(dim=1, keepdim=True)).numpy()


@pytest.mark.parametrize("penalty", [1e-1, 1e-2])
def test_it_is_logistic_regression(digits, penalty):
    x, y = digits
    found = centred(fit(x, y, penalty=penalty).logits(x))
    expected = centred(reference(x.numpy().astype(np.float64), y.numpy(), penalty))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_the_features_scale_does_not_matter(digits):
    x, y = digits
    plain = fit(x, y).logits(x)
    for scale in (1e-3, 1e3):
        moved = (x + torch.linspace(-20, 20, x.shape[1])) * scale
        np.testing.assert_allclose(fit(moved, y).logits(moved), plain, atol=0.03)


def test_class_weighted_is_logistic_regression_with_balanced_weights(digits):
    x, y = digits
    keep = torch.cat([torch.where(y == c)[0][: 4 + 4 * c] for c in range(10)])
    x, y = x[keep], y[keep]
    found = centred(fit(x, y, "class-weighted").logits(x))
    scaler = StandardScaler().fit(x)
    # "balanced" weighs an example N / (C n_c), which sums to N, as the probe's mean does.
    model = LogisticRegression(
        C=1 / (1e-2 * len(x)), class_weight="balanced", tol=1e-8, max_iter=5000
    )
    model.fit(scaler.transform(x), y)
    expected = centred(model.decision_function(scaler.transform(x)))
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_logit_adjusted_is_cross_entropy_less_the_prior(digits):
    """The bias is not penalised, so it takes up the prior whole, at any penalty."""
    x, y = digits
    keep = torch.cat([torch.where(y == c)[0][: 4 + 4 * c] for c in range(10)])
    x, y = x[keep], y[keep]
    prior = (torch.bincount(y) / len(y)).log()
    plain = fit(x, y, "cross-entropy").logits(x)
    adjusted = fit(x, y, "logit-adjusted").logits(x)
    np.testing.assert_allclose(centred(adjusted + prior), centred(plain), atol=0.02)
    assert np.abs(centred(adjusted) - centred(plain)).max() > 0.5


def test_class_vectors_are_those_of_the_features_as_they_are(digits):
    """At the optimum the gradient of the objective, written out in float64, is zero."""
    x, y = digits
    x, penalty = 0.05 * x, 1e-2  # not of unit deviation, so that it matters which vectors
    deviation = x.double().std(0, correction=0)
    counts = torch.bincount(y)
    loss = build_loss("radius-margin", class_counts=counts, options={"tau": 0.3})
    probe = fit_probe(x, y, loss, classes=10, score=no_score, penalties=(penalty,))

    def steepest(scale):
        """The largest entry of the gradient in the units of the fit; ``scale`` of the vectors."""
        weight = probe.weight.double().requires_grad_()
        radius = -0.15 * (counts / counts.sum()).double().log()[y]
        reach = radius[:, None] * (scale * weight).norm(dim=1)
        away = 1 - 2 * torch.eye(10, dtype=torch.float64)[y]
        logits = x.double() @ weight.T + probe.bias.double() + away * reach
        value = torch.nn.functional.cross_entropy(logits, y)
        (value + penalty / 2 * (deviation * weight).square().sum()).backward()
        return (weight.grad / deviation).abs().max()

    assert steepest(1.0) < 1e-3
    assert steepest(deviation) > 1e-2, "the vectors of standardised features are others"


def test_a_schedule_is_fitted_as_it_ends_and_set_back(digits):
    x, y = digits
    keep = torch.cat([torch.where(y == c)[0][: 4 + 4 * c] for c in range(10)])
    x, y = x[keep], y[keep]
    options = {"max_margin": 0.0, "reweight_after": 0.8, "beta": 0.9}
    loss = build_loss("ldam", class_counts=torch.bincount(y), options=options)
    found = fit_probe(x, y, loss, classes=10, score=no_score, penalties=(1e-2,))
    assert not loss.reweights
    late = build_loss("class-balanced", class_counts=torch.bincount(y), options={"beta": 0.9})
    expected = fit_probe(x, y, late, classes=10, score=no_score, penalties=(1e-2,))
    np.testing.assert_allclose(found.logits(x), expected.logits(x), atol=0.01)
    assert (found.logits(x) - fit(x, y).logits(x)).abs().max() > 0.1


def test_multi_label_is_one_regression_a_label(digits):
    """The loss is the mean over C labels, so each label's penalty weighs C times as much."""
    x, y = digits
    several = torch.stack([y % 2 == 0, y > 6, (y == 3) | (y == 8)], dim=1).float()
    found = fit(x, several, "binary-cross-entropy", classes=3).logits(x).numpy()
    for label in range(3):
        exact = x.numpy().astype(np.float64)
        expected = reference(exact, several[:, label].numpy(), 3 * 1e-2)
        np.testing.assert_allclose(found[:, label], expected, atol=0.01)


def test_ignored_rows_do_not_count(digits):
    x, y = digits
    masked = y.clone()
    masked[::3] = -100
    counts = torch.bincount(y, minlength=10)
    loss = build_loss("cross-entropy", class_counts=counts)
    found = fit_probe(x, masked, loss, classes=10, score=no_score, penalties=(1e-2,))
    scale = x.std(0, correction=0)
    keep = masked >= 0
    # Standardised over all rows, so that is given to the reference too.
    scaled = ((x - x.mean(0)) / scale).numpy()
    model = LogisticRegression(C=1 / (1e-2 * int(keep.sum())), tol=1e-8, max_iter=5000)
    model.fit(scaled[keep], y[keep])
    np.testing.assert_allclose(
        centred(found.logits(x)), centred(model.decision_function(scaled)), atol=0.02
    )


def test_the_best_penalty_by_score_is_kept(digits):
    x, y = digits
    tried: list[Probe] = []

    def score(probe):
        tried.append(probe)
        return -abs(np.log10(probe.penalty) + 3)

    loss = build_loss("cross-entropy", class_counts=[1] * 10)
    best = fit_probe(x, y, loss, classes=10, score=score)
    assert best.penalty == 1e-3
    assert best is tried[1]
    norms = [float((p.weight * x.std(0)).norm()) for p in tried]
    assert norms == sorted(norms), "weaker penalties allow larger weights"


def test_constant_features_and_classes_without_examples(digits):
    x, y = digits
    x = torch.cat([x, torch.ones(len(x), 2)], dim=1)
    probe = fit(x, y, classes=12, counts=[*torch.bincount(y).tolist(), 0, 0])
    logits = probe.logits(x)
    assert logits.shape == (500, 12)
    assert torch.isfinite(logits).all()
    assert (logits.argmax(1) == y).float().mean() > 0.98
    assert set(logits.argmax(1).tolist()) <= set(range(10))


@pytest.mark.parametrize("level", [0.0, 5000.0])
def test_a_feature_that_hardly_varies_stays_quiet(digits, level):
    """Were it scaled to the size of the others, noise on it would drown them."""
    x, y = digits
    generator = torch.Generator().manual_seed(0)
    quiet = level + 1e-3 * y[:, None] + 1e-3 * torch.rand(len(x), 1, generator=generator)
    probe = fit(torch.cat([x, quiet], dim=1), y)
    noisy = torch.cat([x, quiet + 0.1 * torch.randn(len(x), 1, generator=generator)], dim=1)
    np.testing.assert_allclose(probe.logits(noisy), fit(x, y).logits(x), atol=0.1)


def test_no_penalties(digits):
    loss = build_loss("cross-entropy", class_counts=[1] * 10)
    with pytest.raises(ValueError, match="at least one"):
        fit_probe(*digits, loss, classes=10, score=no_score, penalties=())


@pytest.mark.real
def test_on_the_real_encoders_features(minilm, tiny):
    """As the job does it: features of the frozen encoder, then the weights go into the head."""
    from longarc.models.head import final_linear
    from longarc.models.loading import load_classifier
    from longarc.training.prediction import Predictor

    texts, target = tiny.make_table(48)
    model = load_classifier("minilm", labels=("a", "b", "c"))
    predictor = Predictor(model, minilm[1], max_length=64)
    x = torch.from_numpy(predictor.features(texts))
    probe = fit(x, torch.from_numpy(target), classes=3)
    assert (probe.logits(x).argmax(1).numpy() == target).mean() > 0.9
    with torch.no_grad():
        final_linear(model).weight.copy_(probe.weight)
        final_linear(model).bias.copy_(probe.bias)
    np.testing.assert_allclose(predictor.logits(texts), probe.logits(x), atol=1e-3)


@pytest.mark.parametrize("several", [False, True])
def test_a_running_f1_is_that_of_all_documents(digits, several):
    x, y = digits
    y = torch.nn.functional.one_hot(y) if several else y
    loss, batch = (
        F1WeightedCrossEntropy(statistics, multi_label=several)
        for statistics in ("running", "batch")
    )
    options = {"classes": 10, "score": no_score, "penalties": (1e-1, 1e-2), "max_iterations": 20}
    found, expected = (fit_probe(x, y, each, **options) for each in (loss, batch))
    assert torch.equal(found.weight, expected.weight)
    again = fit_probe(x, y, loss, **options)
    assert torch.equal(again.weight, found.weight), "a probe leaves nothing behind"
    assert temperature(found, x[:100], y[:100], loss) == temperature(found, x[:100], y[:100], batch)
    assert loss._sums is None
