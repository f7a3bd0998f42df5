import json
import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from longarc.data.labels import LabelSpace
from longarc.errors import DataError
from longarc.training import bootstrap
from longarc.training.bootstrap import figures_from_counts, resampled_figures
from longarc.training.metrics import COMPARED, evaluate_predictions, paired_differences

COUNTS = (300, 120, 60, 25, 8, 3)


def space_of(counts=COUNTS, *, several=False):
    return LabelSpace(tuple(f"c{i}" for i in range(len(counts))), tuple(counts), several)


def single(documents=400, classes=6, seed=0, right=0.6):
    """Target, prediction and probabilities; frequent classes first, the last never occurs."""
    random = np.random.default_rng(seed)
    target = np.minimum(random.geometric(0.45, documents) - 1, classes - 2)
    prediction = np.where(
        random.random(documents) < right, target, random.integers(classes, size=documents)
    )
    chances = random.dirichlet(np.ones(classes), documents)
    return target, prediction, chances


def several(documents=300, classes=6, seed=0):
    random = np.random.default_rng(seed)
    target = random.random((documents, classes)) < [0.5, 0.4, 0.2, 0.1, 0.03, 0.0]
    scores = random.normal(size=(documents, classes)) + 1.5 * target - 0.5
    chances = np.round(1 / (1 + np.exp(-scores)), 2)  # rounded: ties
    return target.astype(float), (chances > 0.5).astype(int), chances


def values(found):
    return {name: entry["value"] for name, entry in found.items() if is_figure(entry)}


def is_figure(entry):
    return isinstance(entry, dict) and set(entry) == {"value", "low", "high"}


def test_single_label_figures_are_scikit_learns():
    target, prediction, chances = single()
    found = evaluate_predictions(
        target, prediction, space=space_of(), probabilities=chances, resamples=20
    )
    present = np.unique(target)
    recalls = reference.recall_score(target, prediction, labels=present, average=None)
    expected = {
        "accuracy": reference.accuracy_score(target, prediction),
        "macro_f1": reference.f1_score(target, prediction, labels=present, average="macro"),
        "micro_f1": reference.accuracy_score(target, prediction),
        "weighted_f1": reference.f1_score(target, prediction, average="weighted"),
        "recall_head": recalls[:2].mean(),
        "recall_mid": recalls[2:4].mean(),
        "recall_tail": recalls[4],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predictions of a class that does not occur
        expected["balanced_accuracy"] = reference.balanced_accuracy_score(target, prediction)
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name
    assert found["n"] == 400
    assert "mean_average_precision" not in found
    assert "average_precision" not in found["per_class"][0]


def test_multi_label_figures_are_scikit_learns():
    target, prediction, chances = several()
    found = evaluate_predictions(
        target, prediction, space=space_of(several=True), probabilities=chances, resamples=20
    )
    seen = slice(0, 5)
    assert not target[:, 5].any()
    expected = {
        "accuracy": (target == prediction).all(axis=1).mean(),
        "balanced_accuracy": reference.recall_score(
            target[:, seen], prediction[:, seen], average="macro"
        ),
        "macro_f1": reference.f1_score(target[:, seen], prediction[:, seen], average="macro"),
        "micro_f1": reference.f1_score(target, prediction, average="micro"),
        "weighted_f1": reference.f1_score(target, prediction, average="weighted"),
        "mean_average_precision": reference.average_precision_score(
            target[:, seen], chances[:, seen], average="macro"
        ),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name
    assert found["per_class"][5]["average_precision"] is None
    assert found["confused"] == []


def test_per_class_rows_against_a_loop():
    target, prediction, _ = single()
    target[:7] = -1
    found = evaluate_predictions(target, prediction, space=space_of(), resamples=2)
    for code, row in enumerate(found["per_class"]):
        hits = sum(t == p == code for t, p in zip(target, prediction, strict=True))
        support, predicted = (target == code).sum(), (prediction == code).sum()
        assert (row["label"], row["train_count"]) == (f"c{code}", COUNTS[code])
        assert row["group"] == ("head", "head", "mid", "mid", "tail", "tail")[code]
        assert row["support"] == support
        assert row["precision"] == pytest.approx(hits / predicted)
        assert row["recall"] == (pytest.approx(hits / support) if support else None)
        assert row["f1"] == pytest.approx(2 * hits / (support + predicted))


def test_unseen_labels_count_as_errors():
    target, prediction = np.array([0, 0, 1, -1]), np.array([0, 0, 1, 0])
    found = evaluate_predictions(
        target, prediction, space=space_of((5, 5)), unseen={"new": 1}, resamples=50
    )
    assert found["accuracy"]["value"] == found["micro_f1"]["value"] == 0.75
    assert found["balanced_accuracy"]["value"] == 1.0
    assert found["per_class"][0]["precision"] == pytest.approx(2 / 3)
    assert found["weighted_f1"]["value"] == pytest.approx((2 * 0.8 + 1 * 1.0 + 0) / 4)
    assert found["unseen_labels"] == {"new": 1}
    assert found["confused"] == []

    nothing = evaluate_predictions([-1, -1], [0, 1], space=space_of((5, 5)), resamples=50)
    assert nothing["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert nothing["macro_f1"] == {"value": None, "low": None, "high": None}


def test_unseen_labels_of_several_are_missed():
    """Whatever a classifier says of the labels that it knows, one that it lacks is not found."""
    target, prediction, chances = several(60)
    outside = np.random.default_rng(1).integers(0, 3, 60)
    columns = np.arange(2) < outside[:, None]  # the labels it lacks, as if it had them
    whole = np.hstack([target, columns])
    answers = np.hstack([prediction, np.zeros_like(columns)])
    arguments = {"space": space_of(several=True), "probabilities": chances, "resamples": 30}
    found = evaluate_predictions(target, prediction, outside=outside, **arguments)
    known = evaluate_predictions(target, prediction, **arguments)
    expected = values(known) | {
        "accuracy": (whole == answers).all(axis=1).mean(),
        "micro_f1": reference.f1_score(whole, answers, average="micro"),
        "weighted_f1": reference.f1_score(whole, answers, average="weighted", zero_division=0),
    }
    assert values(found) == pytest.approx(expected, abs=1e-12)
    assert found["per_class"] == known["per_class"]
    for name in ("accuracy", "micro_f1", "weighted_f1"):
        assert expected[name] < known[name]["value"]

    drawn = resampled_figures(
        target > 0, prediction > 0, outside=outside, groups=space_of().groups, resamples=10, seed=5
    )
    for r, rows in enumerate(drawn_rows(60, 10, 5)):
        again = evaluate_predictions(
            target[rows], prediction[rows], outside=outside[rows],
            space=space_of(several=True), resamples=1,
        )  # fmt: skip
        for name, each in drawn.items():
            assert each[r] == pytest.approx(again[name]["value"], abs=1e-6), name

    nothing = evaluate_predictions(
        [[0, 0]], [[0, 0]], space=space_of((5, 5), several=True), outside=[1], resamples=2
    )
    for name in ("accuracy", "micro_f1", "weighted_f1"):
        assert nothing[name] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_what_does_not_exist_is_null_and_json_takes_everything():
    target, prediction, _ = single()
    found = evaluate_predictions(target, prediction, space=space_of((500,) * 6), resamples=20)
    absent = {"value": None, "low": None, "high": None}
    assert found["recall_tail"] == found["recall_mid"] == found["calibration_error"] == absent
    assert found["reliability"] == []
    empty = evaluate_predictions(
        np.zeros((3, 6)),
        np.zeros((3, 6)),
        space=space_of(several=True),
        probabilities=np.zeros((3, 6)),
        resamples=20,
    )
    assert empty["accuracy"]["value"] == 1.0
    assert empty["weighted_f1"] == empty["micro_f1"] == absent
    assert empty["mean_average_precision"] == absent
    for each in (found, empty):
        assert json.loads(json.dumps(each, allow_nan=False)) == each


def test_keys_are_those_of_the_run_folder():
    target, prediction, chances = several()
    found = evaluate_predictions(
        target, prediction, space=space_of(several=True), probabilities=chances, resamples=2
    )
    assert list(found) == [
        "n", "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "weighted_f1",
        "recall_head", "recall_mid", "recall_tail", "calibration_error", "mean_average_precision",
        "per_class", "confused", "reliability", "unseen_labels",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["single", "several"])
def test_calibration_error_against_a_loop(kind):
    target, prediction, chances = single() if kind == "single" else several()
    chances[0] = 1.0 if kind == "several" else np.eye(6)[prediction[0]]  # the last bin's upper end
    space = space_of(several=kind == "several")
    found = evaluate_predictions(
        target, prediction, space=space, probabilities=chances, resamples=2
    )
    if kind == "single":
        pairs = [(chances[i, p], target[i] == p) for i, p in enumerate(prediction)]
    else:
        pairs = list(zip(chances.ravel(), target.ravel(), strict=True))
    error = 0.0
    for b, row in enumerate(found["reliability"]):
        held = [x for x in pairs if b / 15 <= x[0] < (b + 1) / 15 or (b == 14 and x[0] == 1)]
        assert row["n"] == len(held)
        if held:
            confidence, accuracy = np.mean(held, axis=0)
            assert row["confidence"] == pytest.approx(confidence)
            assert row["accuracy"] == pytest.approx(accuracy)
            error += len(held) / len(pairs) * abs(confidence - accuracy)
        else:
            assert row["confidence"] is row["accuracy"] is None
    assert found["calibration_error"]["value"] == pytest.approx(error)
    assert (found["reliability"][0]["low"], found["reliability"][14]["high"]) == (0.0, 1.0)


def test_confused_lists_the_twenty_most_frequent_pairs():
    random = np.random.default_rng(1)
    target, prediction = random.integers(-1, 6, 500), random.integers(0, 6, 500)
    found = evaluate_predictions(target, prediction, space=space_of(), resamples=2)["confused"]
    counts = {}
    for t, p in zip(target.tolist(), prediction.tolist(), strict=True):
        if t not in (-1, p):
            counts[t, p] = counts.get((t, p), 0) + 1
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20]
    assert found == [
        {"label": f"c{t}", "prediction": f"c{p}", "count": n} for (t, p), n in expected
    ]


# The bootstrap


def drawn_rows(documents, resamples, seed):
    """The documents of each resample, as the bootstrap draws them when one chunk holds all."""
    return np.random.default_rng(seed).integers(documents, size=(resamples, documents))


def test_each_resample_has_the_figures_of_the_documents_drawn():
    target, prediction, _ = single(documents=60)
    target[:3] = -1
    space = space_of()
    found = resampled_figures(
        target, prediction, groups=space.groups, gaps=None, resamples=30, seed=5
    )
    for r, rows in enumerate(drawn_rows(60, 30, 5)):
        again = evaluate_predictions(target[rows], prediction[rows], space=space, resamples=1)
        for name, value in values(again).items():
            if name != "calibration_error":
                expected = math.nan if value is None else value
                assert found[name][r] == pytest.approx(expected, abs=1e-9, nan_ok=True), name


def test_each_multi_label_resample_has_the_figures_of_the_documents_drawn(monkeypatch):
    target, prediction, chances = several(documents=60)
    space = space_of(several=True)
    arguments = {"space": space, "resamples": 1}
    one = evaluate_predictions(target, prediction, probabilities=chances, **arguments)
    found = resampled_figures(
        target > 0, prediction > 0, groups=space.groups, scores=chances, resamples=30, seed=5
    )
    monkeypatch.setattr(bootstrap, "CHUNK", 60 * 7)  # the same draws in five chunks
    chunked = resampled_figures(
        target > 0, prediction > 0, groups=space.groups, scores=chances, resamples=30, seed=5
    )
    for r, rows in enumerate(drawn_rows(60, 30, 5)):
        again = values(
            evaluate_predictions(
                target[rows], prediction[rows], probabilities=chances[rows], **arguments
            )
        )
        for name in values(one):
            if name != "calibration_error":
                expected = math.nan if again[name] is None else again[name]
                assert found[name][r] == pytest.approx(expected, abs=1e-6, nan_ok=True), name
    for name, each in found.items():
        assert each.shape == chunked[name].shape == (30,)
        np.testing.assert_allclose(each, chunked[name], err_msg=name)


@pytest.mark.parametrize("kind", ["single", "several"])
def test_interval_of_the_calibration_error(kind):
    target, prediction, chances = single(200) if kind == "single" else several(200)
    space = space_of(several=kind == "several")
    arguments = {"space": space, "resamples": 40}
    found = evaluate_predictions(target, prediction, probabilities=chances, seed=3, **arguments)
    errors = [
        evaluate_predictions(
            target[rows], prediction[rows], probabilities=chances[rows], space=space, resamples=1
        )["calibration_error"]["value"]
        for rows in drawn_rows(200, 40, 3)
    ]
    value = found["calibration_error"]["value"]
    low, high = np.percentile(errors, [2.5, 97.5])
    assert found["calibration_error"]["low"] == pytest.approx(min(low, value), abs=1e-6)
    assert found["calibration_error"]["high"] == pytest.approx(max(high, value), abs=1e-6)


def test_interval_of_accuracy_is_the_binomials():
    documents, right, resamples = 2000, 1400, 1000
    target = np.zeros(documents, dtype=int)
    prediction = (np.arange(documents) >= right).astype(int)
    found = evaluate_predictions(
        target, prediction, space=space_of((9, 9)), resamples=resamples, seed=0
    )["accuracy"]
    p = right / documents
    error = math.sqrt(p * (1 - p) / documents)
    # A sample quantile q of R normal draws has standard error √(q(1 − q)/R) / density(q).
    density = math.exp(-(1.96**2) / 2) / math.sqrt(2 * math.pi)
    tolerance = 4 * error * math.sqrt(0.025 * 0.975 / resamples) / density + 1 / documents
    assert found["low"] == pytest.approx(p - 1.96 * error, abs=tolerance)
    assert found["high"] == pytest.approx(p + 1.96 * error, abs=tolerance)
    assert tolerance < error / 2  # so that a wrong width would show


def test_intervals_hold_the_value_and_repeat():
    target, prediction, chances = single()
    arguments = {"space": space_of(), "probabilities": chances, "resamples": 200}
    found = evaluate_predictions(target, prediction, **arguments)
    for name, entry in found.items():
        if is_figure(entry):
            assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1, name
    assert found == evaluate_predictions(target, prediction, **arguments)
    assert found != evaluate_predictions(target, prediction, **arguments, seed=1)


def test_ranking_uses_fewer_resamples_where_it_would_take_long(monkeypatch):
    target, prediction, chances = several(documents=50)
    monkeypatch.setattr(bootstrap, "RANKING_WORK", 1)
    monkeypatch.setattr(bootstrap, "FEWEST", 12)
    monkeypatch.setattr(bootstrap, "CHUNK", 50 * 5)
    found = resampled_figures(
        target > 0, prediction > 0, groups=("tail",) * 6, scores=chances, resamples=30
    )
    assert len(found["mean_average_precision"]) == 12
    assert len(found["macro_f1"]) == 30


def test_ten_thousand_documents_of_450_classes_take_seconds():
    random = np.random.default_rng(0)
    target, prediction = random.integers(450, size=(2, 10_000))
    start = time.process_time()
    evaluate_predictions(target, prediction, space=space_of((30,) * 450))
    assert time.process_time() - start < 10  # 0.6 s when this was written


# Invariants

cases = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.tuples(st.integers(-1, classes - 1), st.integers(0, classes - 1)),
            min_size=1,
            max_size=40,
        ),
        st.randoms(use_true_random=False),
    )
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_order_of_documents_does_not_matter(case):
    classes, pairs, random = case
    space = space_of((150, 50, 30, 9, 5, 1)[:classes])
    first = evaluate_predictions(*zip(*pairs, strict=True), space=space, resamples=1)
    random.shuffle(pairs)
    second = evaluate_predictions(*zip(*pairs, strict=True), space=space, resamples=1)
    assert values(first) == pytest.approx(values(second))
    assert first["per_class"] == second["per_class"]
    assert first["confused"] == second["confused"]


@settings(max_examples=60, deadline=None)
@given(cases)
def test_renaming_classes_only_renames(case):
    classes, pairs, random = case
    space = space_of((150, 50, 30, 9, 5, 1)[:classes])
    moved = list(range(classes))
    random.shuffle(moved)
    back = [moved.index(code) for code in range(classes)]
    again = LabelSpace(
        tuple(space.names[c] for c in back), tuple(space.counts[c] for c in back), False
    )
    target, prediction = zip(*pairs, strict=True)
    first = evaluate_predictions(target, prediction, space=space, resamples=1)
    second = evaluate_predictions(
        [-1 if t < 0 else moved[t] for t in target],
        [moved[p] for p in prediction],
        space=again,
        resamples=1,
    )
    assert values(first) == pytest.approx(values(second))
    rows = {row["label"]: row for row in second["per_class"]}
    assert all(rows[row["label"]] == row for row in first["per_class"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_a_perfect_prediction_gives_one(target):
    space = space_of((150, 50, 30, 9))
    one_hot = np.eye(4)[target]
    for found in (
        evaluate_predictions(target, target, space=space, probabilities=one_hot, resamples=10),
        evaluate_predictions(
            one_hot,
            one_hot,
            space=space_of((150, 50, 30, 9), several=True),
            probabilities=one_hot,
            resamples=10,
        ),
    ):
        assert found["calibration_error"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        for name, entry in found.items():
            if is_figure(entry) and name != "calibration_error" and entry["value"] is not None:
                assert entry == {"value": 1.0, "low": 1.0, "high": 1.0}, name


def test_figures_from_counts_with_nothing_predicted():
    zeros, support = np.zeros((1, 2)), np.array([[3, 0]])
    found = figures_from_counts(zeros, support, zeros, groups=("head", "tail"))
    assert found["macro_f1"] == found["recall_head"] == 0
    assert np.isnan(found["recall_tail"])


# Refusals


@pytest.mark.parametrize(
    ("target", "prediction", "kind", "message"),
    [
        ([0, 1], [0, 1, 1], False, "3 predictions for 2 documents"),
        ([0, 2], [0, 1], False, "1 values such as 2. Expected whole numbers from -1 to 1"),
        ([0, 1], [0, -1], False, "prediction holds 1 values such as -1.*from 0 to 1"),
        ([0, 1], [0.2, 0.8], False, "such as 0.2"),
        (["a", "b"], [0, 1], False, "such as 'a'.*codes of the label space"),
        ([], [], False, "target is empty. Expected at least one document"),
        ([[0, 1]], [0], False, r"shape \(1, 2\). Expected \(N,\).*argmax"),
        ([0, 1], [0, 1], True, r"shape \(2,\). Expected \(N, 2\)"),
        ([[0, 1]], [[0.2, 0.7]], True, "such as 0.2. Expected 0 and 1 only; threshold"),
    ],
)
def test_refuses_what_does_not_fit(target, prediction, kind, message):
    with pytest.raises(DataError, match=message):
        evaluate_predictions(target, prediction, space=space_of((5, 5), several=kind))


@pytest.mark.parametrize(
    ("chances", "message"),
    [
        ([[0.5, 0.5]], r"shape \(1, 2\). Expected \(2, 2\)"),
        ([[0.5, 0.5], [3.0, -2.0]], "go from -2.0 to 3.0.*softmax"),
        ([[0.5, 0.5], [math.nan, 1.0]], "broke down in training"),
    ],
)
def test_refuses_what_are_no_probabilities(chances, message):
    with pytest.raises(DataError, match=message):
        evaluate_predictions([0, 1], [0, 1], space=space_of((5, 5)), probabilities=chances)


@pytest.mark.parametrize("outside", [[1], [0.5, 0.0], [-1, 0]])
def test_refuses_what_are_no_numbers_of_labels(outside):
    with pytest.raises(DataError, match=r"Expected \(2,\): how many each document has"):
        evaluate_predictions(
            np.eye(2), np.eye(2), space=space_of((5, 5), several=True), outside=outside
        )


def test_refuses_no_resamples():
    with pytest.raises(DataError, match="0 resamples"):
        evaluate_predictions([0, 1], [0, 1], space=space_of((5, 5)), resamples=0)


def two_systems(seed=0, documents=300):
    """A target, a system, and one that differs from it in few documents."""
    target, one, _ = single(documents, seed=seed, right=0.7)
    random = np.random.default_rng(seed + 1)
    other = np.where(random.random(documents) < 0.05, random.integers(6, size=documents), one)
    return target, one, other


def differences(target, one, other, **options):
    return paired_differences(target, one, {"other": other}, **options)["other"]


def test_paired_differences_against_a_loop_over_the_same_resamples():
    target, one, other = two_systems()
    found = differences(target, one, other, space=space_of(), resamples=60, seed=3)
    drawn = np.random.default_rng(3).integers(300, size=(60, 300))
    gaps = []
    for rows in drawn:
        present = np.unique(target[rows])
        ours, theirs = (
            reference.f1_score(target[rows], each[rows], labels=present, average="macro")
            for each in (one, other)
        )
        gaps.append(ours - theirs)
    low, high = np.percentile(gaps, [2.5, 97.5])
    assert found["macro_f1"]["low"] == pytest.approx(low, abs=1e-12)
    assert found["macro_f1"]["high"] == pytest.approx(high, abs=1e-12)
    assert found["differing"] == (one != other).sum()


def test_paired_differences_are_those_of_the_systems_figures():
    single_label, multi_label = two_systems(), (*several()[:2], several(seed=1)[1])
    unseen = np.where(np.arange(300) % 9, single_label[0], -1), *single_label[1:]
    outside = np.arange(300) % 3
    for (target, one, other), space, more in (
        (single_label, space_of(), {}),
        (unseen, space_of(), {}),
        (multi_label, space_of(several=True), {}),
        (multi_label, space_of(several=True), {"outside": outside}),
    ):
        found = differences(target, one, other, space=space, resamples=20, **more)
        ours, theirs = (
            values(evaluate_predictions(target, each, space=space, resamples=2, **more))
            for each in (one, other)
        )
        for name in COMPARED:
            entry = found[name]
            assert entry["value"] == pytest.approx(ours[name] - theirs[name], abs=1e-12), name
            assert entry["low"] <= entry["value"] <= entry["high"]


def test_paired_differences_change_sign_with_the_order():
    target, one, other = two_systems()
    found = differences(target, one, other, space=space_of(), resamples=50)
    back = differences(target, other, one, space=space_of(), resamples=50)
    for name in COMPARED:
        entry, turned = found[name], back[name]
        assert (-turned["value"], -turned["high"], -turned["low"]) == pytest.approx(
            (entry["value"], entry["low"], entry["high"]), abs=1e-12
        )


def test_many_systems_at_once_are_as_one_at_a_time():
    target, one, other = two_systems()
    third = two_systems(seed=7)[1]
    both = paired_differences(target, one, {"a": other, "b": third}, space=space_of())
    assert both == {
        "a": differences(target, one, other, space=space_of()),
        "b": differences(target, one, third, space=space_of()),
    }


def test_few_documents_that_differ_make_no_interval():
    target = np.zeros(1000, int)
    worse = np.where(np.arange(1000) < 5, 1, 0)
    found = differences(target, target, worse, space=space_of((9, 9)))
    assert found["differing"] == 5
    assert found["accuracy"] == {"value": pytest.approx(0.005), "low": None, "high": None}
    worse[5] = 1
    found = differences(target, target, worse, space=space_of((9, 9)))
    assert 0 < found["accuracy"]["low"] < 0.006 < found["accuracy"]["high"]
    same = differences(target, target, target, space=space_of((9, 9)))
    assert (same["differing"], same["macro_f1"]["value"]) == (0, 0.0)


def test_equal_systems_are_seldom_told_apart():
    """Both err on a twentieth of the documents, other ones."""
    random = np.random.default_rng(0)
    told = 0
    for _ in range(200):
        one, other = (random.random((2, 400)) < 0.05).astype(int)
        found = differences(np.zeros(400, int), one, other, space=space_of((9, 9)), resamples=200)
        gap = found["accuracy"]
        told += gap["low"] is not None and not gap["low"] <= 0 <= gap["high"]
    assert 0.01 < told / 200 < 0.1


def test_systems_that_err_alike_differ_more_surely_than_their_own_intervals_say():
    target, one, other = two_systems(documents=2000)
    found = differences(target, one, other, space=space_of())["accuracy"]
    ours, theirs = (
        evaluate_predictions(target, each, space=space_of())["accuracy"] for each in (one, other)
    )
    assert ours["low"] < theirs["high"]
    assert found["low"] > 0


def test_paired_differences_refuse_what_does_not_fit():
    with pytest.raises(DataError, match="2 predictions for 3 documents"):
        differences([0, 1, 1], [0, 1, 1], [0, 1], space=space_of())
    with pytest.raises(DataError, match="0 resamples"):
        differences([0, 1], [0, 1], [0, 1], space=space_of(), resamples=0)
