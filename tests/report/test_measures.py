import pytest

from longarc.report.measures import ACCURACY, CALIBRATION, Figure, best, figure, verdict


def split(model, **baselines):
    def entry(values):
        value, low, high = values
        return {"macro_f1": {"value": value, "low": low, "high": high}}

    return {"model": entry(model), "baselines": {k: entry(v) for k, v in baselines.items()}}


def with_difference(found, name, low, high):
    value = found["model"]["macro_f1"]["value"] - found["baselines"][name]["macro_f1"]["value"]
    difference = {"macro_f1": {"value": value, "low": low, "high": high}}
    return {**found, "differences": {name: difference}}


def test_verdict_says_when_too_few_documents_differ_or_none():
    found = with_difference(split((0.80, 0.7, 0.9), bow=(0.78, 0.6, 0.85)), "bow", None, None)
    found["differences"]["bow"]["differing"] = 3
    assert verdict(found).endswith("differently on 3 documents only, too few to settle it.")
    found["differences"]["bow"]["differing"] = 0
    assert verdict(found) == "The model decides as the baseline, bow, does on every document."


def test_a_small_difference_that_is_certain_is_no_equality():
    found = split((0.8001, 0.7, 0.9), bow=(0.8, 0.7, 0.9))
    said = verdict(with_difference(found, "bow", 0.00004, 0.0003))
    assert "is hardly above that of the baseline, bow (0.800)" in said
    assert said.endswith("difference, +0.00004 to +0.0003, excludes 0.")
    said = verdict(with_difference(found, "bow", 0.0, 0.0003))
    assert "equals that of the baseline" in said
    assert "0 to +0.0003, has 0 in it" in said


def test_verdict_names_the_best_of_several_baselines():
    found = split((0.80, 0.7, 0.9), weak=(0.1, 0.0, 0.2), strong=(0.75, 0.6, 0.85))
    said = verdict(with_difference(found, "strong", -0.0104, 0.11))
    assert "0.050 above that of the best baseline, strong (0.750)" in said
    assert "difference, −0.010 to +0.110, has 0 in it, so this split alone does not settle" in said


def test_overlapping_intervals_may_hide_a_certain_difference():
    found = split((0.80, 0.75, 0.85), bow=(0.78, 0.73, 0.83))
    said = verdict(with_difference(found, "bow", 0.012, 0.029))
    assert said.endswith("the 95 % interval of the difference, +0.012 to +0.029, excludes 0.")


def test_verdict_says_when_the_baseline_wins():
    found = split((0.60, 0.55, 0.65), **{"tfidf-svm": (0.75, 0.7, 0.8)})
    said = verdict(with_difference(found, "tfidf-svm", -0.2, -0.1))
    assert "0.150 below that of the linear baseline, TF-IDF + linear SVM (0.750)" in said
    assert said.endswith("difference, −0.200 to −0.100, excludes 0.")


def test_verdict_on_equal_figures_claims_no_side():
    said = verdict(split((0.75, 0.7, 0.8), bow=(0.7502, 0.7, 0.8)))
    assert "equals that of the baseline, bow" in said


def test_verdict_without_an_interval_of_the_difference_claims_nothing_more():
    said = verdict(split((0.80, 0.79, 0.81), bow=(0.70, 0.69, 0.71)))
    assert said.endswith("bow (0.700).")


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
