"""Intervals over seeds: Student's t."""

from __future__ import annotations

import pytest

from longarc.studies.shared.intervals import interval


def test_intervals_are_students():
    """Three values: t = 4.303 for 95 %."""
    mean, half = interval([0.1, 0.2, 0.3])
    assert (mean, half) == pytest.approx((0.2, 4.30265 * 0.1 / 3**0.5), rel=1e-4)
    assert interval([0.4]) == (0.4, 0.0)
