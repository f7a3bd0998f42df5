"""Each recipe against closed forms, brute force or scikit-learn."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from sklearn.preprocessing import StandardScaler
from torch import nn

from longarc.data.labels import LabelSpace
from longarc.errors import ModelError
from longarc.objectives.losses.focal import FocalLoss, focal_probabilities
from longarc.objectives.losses.registry import build_loss
from longarc.training.prediction import decisions, probabilities
from longarc.training.probe import fit_probe
from longarc.training.recipes.loss_choice import candidate_losses, probe_losses
from longarc.training.recipes.post_hoc import POST_HOC_TAUS, choose_tau, log_prior, post_hoc_adjust
from longarc.training.recipes.retrain import retrain_classifier
from longarc.training.recipes.second_stage import SecondStage, check_head
from longarc.training.recipes.tau_norm import TAU_NORM_TAUS, tau_normalize
from longarc.training.recipes.temperature import LIMIT, fit_temperature
from longarc.training.recipes.trials import Trials, negative_log_likelihood

COUNTS = np.array([700, 250, 50])


# Post-hoc adjustment


@pytest.fixture
def world():
    """p(x | class) over five documents, (C, X), and the logits of the Bayes model, (X, C)."""
    given = np.random.default_rng(0).dirichlet(np.ones(5), size=3)
    joint = given * (COUNTS / COUNTS.sum())[:, None]
    return given, np.log(joint / joint.sum(axis=0)).T


def balanced_error(given, decided):
    return 1 - np.mean([given[c, decided == c].sum() for c in range(3)])


def test_post_hoc_gives_the_least_balanced_error_there_is(world):
    given, logits = world
    least = min(
        balanced_error(given, np.array(rule)) for rule in itertools.product(range(3), repeat=5)
    )
    adjusted = post_hoc_adjust(logits, log_prior(COUNTS, 1000), 1.0)
    assert balanced_error(given, adjusted.argmax(axis=1)) == pytest.approx(least)
    assert balanced_error(given, logits.argmax(axis=1)) > least + 0.05


def test_several_labels_are_decided_by_their_likelihoods():
    random = np.random.default_rng(1)
    with_label, without = random.dirichlet(np.ones(40)), random.dirichlet(np.ones(40))
    share = 0.05
    logits = np.log(share * with_label / ((1 - share) * without))[:, None]
    adjusted = post_hoc_adjust(logits, log_prior([50], 1000, multi_label=True))
    expected = with_label > without
    assert (decisions(adjusted, multi_label=True)[:, 0] == expected).all()
    assert (decisions(logits, multi_label=True)[:, 0] != expected).any()


def test_a_prior_is_finite_where_no_or_every_document_has_the_label():
    assert log_prior([0, 1, 9], 10).tolist() == pytest.approx(np.log([0.1, 0.1, 0.9]))
    found = log_prior([0, 10, 5], 10, multi_label=True)
    assert found.tolist() == pytest.approx([np.log(1 / 9), np.log(10), 0])


def test_tau_is_the_best_of_the_grid_and_near_zero_among_equals():
    assert len(POST_HOC_TAUS) == 31
    assert (POST_HOC_TAUS[0], POST_HOC_TAUS[-1]) == (-1, 2)
    assert (TAU_NORM_TAUS[0], TAU_NORM_TAUS[-1]) == (0, 2)
    score = dict(zip(POST_HOC_TAUS, np.random.default_rng(0).permutation(31), strict=True))
    assert score[choose_tau(score.__getitem__, POST_HOC_TAUS)] == 30
    assert choose_tau(lambda tau: abs(tau) >= 0.45, POST_HOC_TAUS) == 0.5
    assert choose_tau(lambda tau: tau <= -0.35, POST_HOC_TAUS) == -0.4


# τ-normalisation


def test_tau_normalisation_is_the_papers_formula():
    weight, bias = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    for tau in (0.0, 0.3, 1.0, 2.0):
        found, scaled = tau_normalize(weight, bias, tau)
        for c in range(7):
            length = sum(float(w) ** 2 for w in weight[c]) ** 0.5
            torch.testing.assert_close(found[c], weight[c] / length**tau)
            torch.testing.assert_close(scaled[c], bias[c] / length**tau)
    unit, _ = tau_normalize(weight, None, 1.0)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(7, dtype=torch.float64))
    assert torch.equal(tau_normalize(weight, bias, 0.0)[0], weight)


def test_a_row_of_zeros_stays_one():
    weight, bias = tau_normalize(torch.zeros(2, 3), torch.ones(2), 1.0)
    assert torch.equal(weight, torch.zeros(2, 3))
    assert torch.equal(bias, torch.ones(2))


# Classifier re-training


@pytest.fixture(scope="module")
def tail():
    """Three overlapping classes of 36, 12 and 4, and as many held out of each."""
    random = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [36, 12, 4])
    centres = random.normal(size=(3, 6))
    made = [(centres[y] + random.normal(size=(52, 6))).astype(np.float32) for _ in range(2)]
    return torch.from_numpy(made[0]), torch.from_numpy(y), torch.from_numpy(made[1])


def centred(logits):
    return logits - logits.mean(dim=1, keepdim=True)


def test_retraining_is_cross_entropy_on_a_table_with_classes_of_one_size(tail):
    """Every document repeated until its class has 36: what class-balanced sampling draws from."""
    x, y, _ = tail
    repeated = torch.repeat_interleave(torch.arange(52), torch.tensor([1, 3, 9])[y])
    found = retrain_classifier(x, y, classes=3, score=lambda p: p.penalty)
    # On features as the probe scales them, since repeating changes their mean and deviation.
    scaled = torch.from_numpy(StandardScaler().fit(x).transform(x.numpy())).double()
    model = LogisticRegression(C=1 / (found.penalty * len(repeated)), tol=1e-8, max_iter=5000)
    model.fit(scaled[repeated].numpy(), y[repeated].numpy())
    expected = torch.from_numpy(model.decision_function(scaled.numpy())).float()
    torch.testing.assert_close(centred(found.logits(x)), centred(expected), atol=0.02, rtol=0)
    plain = fit_probe(
        x, y, build_loss("cross-entropy", class_counts=[36, 12, 4]), classes=3,
        score=lambda p: p.penalty,
    )  # fmt: skip
    assert (centred(found.logits(x)) - centred(plain.logits(x))).abs().max() > 0.3


def test_retraining_several_labels_weighs_positives_as_negatives(tail):
    x, y, _ = tail
    target = torch.stack([y == 1, y == 2], dim=1).float()
    found = retrain_classifier(x, target, classes=2, score=lambda p: p.penalty)
    scaled = StandardScaler().fit_transform(x.numpy().astype(np.float64))
    for label, n in enumerate((12, 4)):
        model = LogisticRegression(
            C=1 / (found.penalty * 52 * 2), class_weight={0: 1, 1: (52 - n) / n}, tol=1e-8,
            max_iter=5000,
        )  # fmt: skip
        model.fit(scaled, target[:, label].numpy())
        expected = model.decision_function(scaled)
        np.testing.assert_allclose(found.logits(x)[:, label], expected, atol=0.03)


def test_retraining_is_the_same_each_time(tail):
    x, y, held_out = tail
    one, two = (
        retrain_classifier(
            x, y, classes=3, score=lambda p: float((p.logits(held_out).argmax(1) == y).sum())
        )
        for _ in range(2)
    )
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)


# Temperature


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature):
    """All logits with their labels as often as softmax(z / T) says: no chance in it."""
    random = np.random.default_rng(0)
    z = np.repeat(random.normal(size=(200, 3)), 3, axis=0)
    labels = np.tile([0, 1, 2], 200)
    share = np.exp(z / temperature) / np.exp(z / temperature).sum(axis=1, keepdims=True)
    often = np.rint(1000 * share[np.arange(600), labels]).astype(int)
    found = fit_temperature(np.repeat(z, often, axis=0), np.repeat(labels, often))
    assert found == pytest.approx(temperature, rel=0.01)


@pytest.mark.parametrize("several", [False, True])
def test_no_other_temperature_has_a_higher_likelihood(several):
    random = np.random.default_rng(2)
    z = 5 * random.normal(size=(60, 4))
    labels = np.where(random.random(60) < 0.6, z.argmax(axis=1), random.integers(0, 4, 60))
    target = np.eye(4)[labels] if several else labels
    found = fit_temperature(z, target, multi_label=several)

    def loss(t):
        chances = probabilities(z / t, multi_label=several)
        if several:
            return log_loss(target.ravel(), chances.ravel())
        return log_loss(labels, chances)

    assert all(loss(found) <= loss(t) + 1e-9 for t in np.geomspace(1 / LIMIT, LIMIT, 400))
    assert np.array_equal(
        decisions(z / found, multi_label=several), decisions(z, multi_label=several)
    )


def test_where_nothing_can_be_learnt_the_temperature_is_one():
    right = [[3.0, 0.0], [0.0, 1.0]]
    assert fit_temperature(right, [0, 1]) == 1
    assert fit_temperature(right, [-1, -1]) == 1
    assert fit_temperature(right, [[1, 0], [0, 1]], multi_label=True) != 1  # a logit of 0 is no yes
    assert fit_temperature([[3.0, -1.0]], [[1, 0]], multi_label=True) == 1


def test_unknown_classes_do_not_count():
    z, labels = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 3
    more = np.concatenate([z, 9 * np.ones((5, 3))])
    assert fit_temperature(more, [*labels, *[-1] * 5]) == fit_temperature(z, labels)


# Trials and choices


def test_trials_measure_as_scikit_learn_does():
    z, labels = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 3
    trials = Trials(labels)
    trials.add("a", z, since=time.monotonic())
    row = trials.rows[0]
    assert row["macro_f1"] == pytest.approx(f1_score(labels, z.argmax(1), average="macro"))
    assert row["accuracy"] == pytest.approx((labels == z.argmax(1)).mean())
    assert row["nll"] == pytest.approx(log_loss(labels, probabilities(z, multi_label=False)))
    hot = np.eye(3)[labels]
    found = negative_log_likelihood(probabilities(z, multi_label=True), hot)
    assert found == pytest.approx(log_loss(hot.ravel(), 1 / (1 + np.exp(-z.ravel()))))
    certain = probabilities(np.array([[0.0, 5000.0]]), multi_label=False)
    assert np.isfinite(negative_log_likelihood(certain, np.array([0])))


@pytest.mark.parametrize("several", [False, True])
def test_the_loss_with_the_best_probe_is_chosen(tail, several):
    x, y, held_out = tail
    target = nn.functional.one_hot(y).float() if several else y
    losses = {
        name: build_loss(
            name, class_counts=[36, 12, 4], num_examples=52, multi_label=several
        )
        for name in candidate_losses(multi_label=several)
    }  # fmt: skip
    trials = Trials(target.numpy(), 60)
    name, probe = probe_losses(trials, losses, x, target, held_out, classes=3)
    assert [row["name"] for row in trials.rows] == list(losses)
    figures = {row["name"]: row["macro_f1"] for row in trials.rows}
    assert len(set(figures.values())) > 1, "the losses must differ"
    assert name == next(n for n in losses if figures[n] == max(figures.values()))
    predicted = decisions(probe.logits(held_out).numpy(), multi_label=several)
    expected = f1_score(target.numpy(), predicted, average="macro", zero_division=0)
    assert expected == pytest.approx(figures[name])

    hurried = Trials(target.numpy(), 0)
    name, _ = probe_losses(hurried, losses, x, target, held_out, classes=3)
    assert name == next(iter(losses))
    assert list(hurried.not_tried) == list(losses)[1:]


@pytest.fixture
def stage(tail):
    """A plain head for the three classes; ``made(**changes)`` is its second stage."""
    x, y, held_out = tail
    space = LabelSpace(("a", "b", "c"), (36, 12, 4), multi_label=False)

    def made(loss=None, seconds=60.0, training_seconds=0.0):
        loss = loss or build_loss("cross-entropy", class_counts=space.counts)
        probe = fit_probe(x, y, loss, classes=3, score=lambda p: p.penalty)
        head = nn.Linear(6, 3)
        head.load_state_dict({"weight": probe.weight, "bias": probe.bias})
        return SecondStage(
            head, held_out, Trials(y.numpy(), seconds), space=space, examples=52, loss=loss,
            training=lambda: (x, y), training_seconds=training_seconds,
        )  # fmt: skip

    return made


def test_auto_takes_the_best_and_the_head_becomes_it(stage, tail):
    _, y, held_out = tail
    made = stage()
    plain = made.head(held_out).detach().numpy()
    record = made.run("auto")
    figures = {row["name"]: row["macro_f1"] for row in record["trials"]}
    assert list(figures) == ["none", "post-hoc", "tau-norm", "crt"]
    assert figures["none"] == pytest.approx(f1_score(y, plain.argmax(1), average="macro"))
    for shift in POST_HOC_TAUS:  # the prior written out
        moved = plain - shift * np.log(np.array([36, 12, 4]) / 52)
        assert f1_score(y, moved.argmax(1), average="macro") <= figures["post-hoc"] + 1e-12
    assert figures["post-hoc"] > figures["none"]
    assert record["chosen"] == max(figures, key=figures.get)
    after = made.head(held_out).detach().numpy()
    assert f1_score(y, after.argmax(1), average="macro") == pytest.approx(max(figures.values()))
    assert record["temperature"]["nll_after"] < record["temperature"]["nll_before"]
    assert log_loss(y, probabilities(after, multi_label=False)) == pytest.approx(
        record["temperature"]["nll_after"], rel=1e-5
    )
    assert record["head_changed"]


def test_calibration_alone_divides_the_head(stage, tail):
    _, y, held_out = tail
    made = stage()
    weight, bias = made.head.weight.clone(), made.head.bias.clone()
    value = fit_temperature(made.head(held_out).detach().numpy(), y.numpy())
    record = made.run("none", calibrate=True)
    assert record["temperature"]["value"] == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(made.head.weight * value, weight)
    torch.testing.assert_close(made.head.bias * value, bias)


def test_when_time_is_up_the_head_stays_or_the_long_trial_is_left_out(stage):
    made = stage(seconds=0)
    weight = made.head.weight.clone()
    record = made.run("auto")
    assert [row["name"] for row in record["trials"]] == ["none"]
    assert set(record["not_tried"]) == {"post-hoc", "tau-norm", "crt"}
    assert record["chosen"] == "none"
    value = record["temperature"]["value"]
    torch.testing.assert_close(made.head.weight * value, weight)

    record = stage(training_seconds=900).run("auto")
    assert list(record["not_tried"]) == ["crt"]
    assert "takes about 900 s" in record["not_tried"]["crt"]
    named = stage(seconds=0, training_seconds=900).run("crt")
    assert named["chosen"] == "crt", "a recipe that was named is not up to the clock"


def test_what_is_as_good_as_nothing_is_not_done(stage, tail):
    held_out = tail[2]
    made = stage()
    made.trials.target[:] = made.head(held_out).argmax(1).numpy()  # already perfect
    weight = made.head.weight.clone()
    record = made.run("auto")
    assert record["chosen"] == "none"
    assert record["temperature"] is None
    assert not record["head_changed"]
    assert torch.equal(made.head.weight, weight)


def test_a_focal_losss_own_reading_is_kept_until_the_head_changes(stage, tail):
    _, y, held_out = tail
    loss = FocalLoss(gamma=2.0)
    made = stage(loss=loss)
    logits = made.head(held_out).detach().double()
    record = made.run("none")
    corrected = log_loss(y, focal_probabilities(logits).numpy())
    assert record["trials"][0]["nll"] == pytest.approx(corrected, rel=1e-5)
    assert corrected != pytest.approx(log_loss(y, logits.softmax(1).numpy()), rel=1e-2)
    assert not record["head_changed"]
    assert stage(loss=loss).run("crt")["head_changed"]


def test_several_labels_leave_tau_normalisation_out(tail):
    x, y, held_out = tail
    target = nn.functional.one_hot(y).float()
    space = LabelSpace(("a", "b", "c"), (36, 12, 4), multi_label=True)
    loss = build_loss(
        "binary-cross-entropy", class_counts=space.counts, num_examples=52, multi_label=True
    )
    probe = fit_probe(x, target, loss, classes=3, score=lambda p: p.penalty)
    head = nn.Linear(6, 3)
    head.load_state_dict({"weight": probe.weight, "bias": probe.bias})
    plain = head(held_out).detach().numpy()
    made = SecondStage(
        head, held_out, Trials(target.numpy(), 60), space=space, examples=52, loss=loss,
        training=lambda: (x, target),
    )  # fmt: skip
    record = made.run("auto")
    assert [row["name"] for row in record["trials"]] == ["none", "post-hoc", "crt"]
    assert "no decision" in record["not_tried"]["tau-norm"]
    tau = record["trials"][1]["tau"]
    odds = np.array([36 / 16, 12 / 40, 4 / 48])
    moved = plain - tau * np.log(odds) > 0
    assert record["trials"][1]["macro_f1"] == pytest.approx(
        f1_score(target.numpy(), moved, average="macro", zero_division=0)
    )


def test_a_head_without_bias_is_refused_where_its_bias_would_change():
    head = nn.Linear(4, 3, bias=False)
    for recipe in ("post-hoc", "crt", "auto"):
        with pytest.raises(ModelError, match=f"no bias, which --recipe {recipe}"):
            check_head(head, recipe)
    check_head(head, "tau-norm")
    check_head(nn.Linear(4, 3), "auto")
