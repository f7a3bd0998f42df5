import pytest
from hypothesis import given
from hypothesis import strategies as st

from longarc.report.measures import ACCURACY, CALIBRATION, Figure, best, figure, verdict


def split(model, **baselines):
    def entry(values):
        value, low, high = values
        return {"macro_f1": {"value": value, "low": low, "high": high}}

    return {"model": entry(model), "baselines": {k: entry(v) for k, v in baselines.items()}}


def test_verdict_names_the_best_of_several_baselines():
    said = verdict(split((0.80, 0.7, 0.9), weak=(0.1, 0.0, 0.2), strong=(0.75, 0.6, 0.85)))
    assert "0.050 above that of the best baseline, strong (0.750)" in said
    assert "the 95 % intervals overlap" in said


def test_verdict_says_when_the_baseline_wins():
    said = verdict(split((0.60, 0.55, 0.65), **{"tfidf-svm": (0.75, 0.7, 0.8)}))
    assert "0.150 below that of the linear baseline, TF-IDF + linear SVM (0.750)" in said
    assert "do not overlap" in said


def test_verdict_on_equal_figures_claims_no_side():
    said = verdict(split((0.75, 0.7, 0.8), bow=(0.7502, 0.7, 0.8)))
    assert "equals that of the baseline, bow" in said


def test_verdict_without_intervals_or_baselines():
    assert verdict(split((0.8, None, None), bow=(0.7, None, None))).endswith("bow (0.700).")
    assert verdict(split((0.8, 0.7, 0.9))) is None
    assert verdict(split((None, None, None), bow=(0.7, 0.6, 0.8))) is None


@pytest.mark.parametrize("value", [None, float("nan"), "0.5", True])
def test_no_figure_from_what_is_no_number(value):
    assert figure({"accuracy": {"value": value, "low": 0, "high": 1}}, "accuracy") is None


def test_one_missing_bound_makes_no_interval():
    found = figure({"accuracy": {"value": 0.5, "low": 0.4, "high": None}}, "accuracy")
    assert (found.text, found.interval) == ("0.500", "")


def test_lowest_calibration_error_is_best():
    figures = {"a": Figure(0.1, None, None), "b": Figure(0.2, None, None)}
    assert best(figures, CALIBRATION) == {"a"}
    assert best(figures, ACCURACY) == {"b"}


@given(st.tuples(*[st.floats(0, 1)] * 4))
def test_overlap_is_symmetric_and_right(ends):
    (a, b), (c, d) = sorted(ends[:2]), sorted(ends[2:])
    one, other = Figure(a, a, b), Figure(c, c, d)
    assert one.overlaps(other) == other.overlaps(one) == (max(a, c) <= min(b, d))
