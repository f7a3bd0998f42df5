"""The figure that chooses the best step, where the validation split says little."""

from __future__ import annotations

import numpy as np
import pytest

from longarc.training.evaluation import macro_f1


def test_macro_f1_counts_the_classes_that_occur():
    target, predicted = np.array([0, 0, 1, -1, -100]), np.array([0, 1, 1, 1, 2])
    assert macro_f1(target, predicted) == pytest.approx(2 / 3)


@pytest.mark.parametrize("target", [np.full(3, -100), np.zeros((3, 4), dtype=np.float32)])
def test_macro_f1_of_a_split_without_a_known_label_is_0(target):
    assert macro_f1(target, np.zeros(target.shape, dtype=np.int64)) == 0.0
