"""The figure that chooses the best step, where the validation split says little."""

from __future__ import annotations

import numpy as np
import pytest

from longarc.data.examples import Examples
from longarc.data.labels import LabelSpace
from longarc.training.evaluation import macro_f1, score, score_decisions


def test_macro_f1_counts_the_classes_that_occur():
    target, predicted = np.array([0, 0, 1, -1, -100]), np.array([0, 1, 1, 1, 2])
    assert macro_f1(target, predicted) == pytest.approx(2 / 3)


def test_a_label_that_training_lacks_is_an_error_in_every_document():
    """20 documents labelled ``a; new``: whatever the classifier knows is right, and never all."""
    space = LabelSpace(("a", "b"), (9, 9), multi_label=True)
    examples = Examples("new.csv", ["x"] * 20, [["a", "new"]] * 20, [*range(20)])
    answers = np.tile([True, False], (20, 1))
    for found in (
        score(examples, space, np.where(answers, 9.0, -9.0)),
        score_decisions(examples, space, answers),
    ):
        assert found["unseen_labels"] == {"new": 20}
        assert found["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert found["micro_f1"]["value"] == pytest.approx(2 / 3)
        assert found["macro_f1"]["value"] == 1.0


@pytest.mark.parametrize("target", [np.full(3, -100), np.zeros((3, 4), dtype=np.float32)])
def test_macro_f1_of_a_split_without_a_known_label_is_0(target):
    assert macro_f1(target, np.zeros(target.shape, dtype=np.int64)) == 0.0
