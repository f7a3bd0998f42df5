"""What is kept of the baselines, and the model's figures beside theirs."""

from __future__ import annotations

import numpy as np
import pytest

from longarc.data.examples import Examples
from longarc.data.labels import LabelSpace
from longarc.training.evaluation import score_decisions
from longarc.training.measured_baselines import MeasuredBaselines


def examples(labels):
    numbers = range(len(labels))
    return Examples("made up", [f"text {i}" for i in numbers], labels, list(numbers))


def single():
    labels = ["a", "b", "a", "c", "new"] * 4
    space = LabelSpace(("a", "b", "c"), (9, 5, 2), multi_label=False)
    random = np.random.default_rng(0)
    return examples(labels), space, *random.integers(3, size=(2, 20))


def several():
    labels = [["a"], ["b", "c"], [], ["a", "new"], ["c"]] * 4
    space = LabelSpace(("a", "b", "c"), (9, 5, 2), multi_label=True)
    random = np.random.default_rng(0)
    # Column by column in memory, as argmax and transposes may leave an array.
    model, other = (np.asfortranarray(random.integers(2, size=(20, 3))) for _ in range(2))
    return examples(labels), space, model, other


@pytest.mark.parametrize("make", [single, several])
def test_figures_and_differences_of_each_split_before_and_after_saving(make, tmp_path):
    part, space, model, other = make()
    ours, theirs = (score_decisions(part, space, each) for each in (model, other))
    measured = MeasuredBaselines()
    measured.add("frozen-probe", "validation", ours, model)
    measured.add("frozen-probe", "test", theirs, other)
    measured.add("tfidf-svm", "test", ours, model)
    measured.save(tmp_path)
    loaded = MeasuredBaselines.load(tmp_path)
    found = loaded.beside("test", part, space, model)
    assert found == measured.beside("test", part, space, model)
    assert found["baselines"] == {"frozen-probe": theirs, "tfidf-svm": ours}
    probe, linear = found["differences"]["frozen-probe"], found["differences"]["tfidf-svm"]
    for name in ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "recall_tail"):
        expected = ours[name]["value"] - theirs[name]["value"]
        assert probe[name]["value"] == pytest.approx(expected, abs=1e-12)
        assert linear[name]["value"] == 0
    assert linear["differing"] == 0 < probe["differing"]
    only = loaded.beside("validation", part, space, other)
    assert list(only["baselines"]) == list(only["differences"]) == ["frozen-probe"]


def test_without_baselines_there_is_nothing_beside_the_model(tmp_path):
    part, space, model, _ = single()
    MeasuredBaselines().save(tmp_path)
    found = MeasuredBaselines.load(tmp_path).beside("test", part, space, model)
    assert found == {"baselines": {}, "differences": {}}


def test_an_older_checkpoint_has_figures_alone(tmp_path):
    part, space, model, other = single()
    assert MeasuredBaselines.load(tmp_path) is None
    measured = MeasuredBaselines()
    measured.add("tfidf-svm", "test", score_decisions(part, space, other), other)
    measured.save(tmp_path)
    (tmp_path / "baselines.safetensors").unlink()
    found = MeasuredBaselines.load(tmp_path).beside("test", part, space, model)
    assert list(found["baselines"]) == ["tfidf-svm"]
    assert found["differences"] == {}
