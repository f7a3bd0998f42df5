"""The performer study on the real MiniLM: its errors are errors, and its verdicts follow."""

from __future__ import annotations

import pytest
import torch

from longarc.studies import performer as study

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def result():
    return study.performer(quick=True)


def test_errors_fall_with_the_number_of_features(result):
    for row in result.table:
        few, many = (row[f"m = {m}"] for m in study.QUICK.features)
        assert 0 < many < few < 10


def test_every_claim_has_a_verdict_and_every_drawing_its_numbers(result):
    assert len(result.findings) == 6
    assert {figure.name for figure in result.figures} == {"errors", "times"}
    for figure in result.figures:
        assert "<svg" in str(figure.panel.wide)
        assert any(character.isdigit() for character in figure.panel.description)


def test_the_error_is_relative_to_what_attention_adds_to_the_mean():
    """Short queries and keys are estimated nearly exactly, whatever the values' size."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 40, 8, generator=generator).unbind()
    size = study.Size(1, 40, (4096,), 2, (), 1)
    for value in (v, 100 * v + 7):
        heads = [study.Heads(0.4 * q, 0.4 * k, value)]
        assert study.errors(heads, size, centre=True, balance=True)["iid"][4096][0] < 0.2
    blurred = [study.Heads(3 * q, 3 * k, v)]
    assert study.errors(blurred, size, centre=True, balance=True)["iid"][4096][0] > 0.5


def test_the_verdict_turns_when_the_claim_is_wrong():
    size = study.Size(1, 8, (16,), 2, (64,), 1)
    better = {draw: {16: [1.0, 1.001]} for draw in study.DRAWS}
    better |= {"orthogonal": {16: [0.5, 0.501]}}
    found = study._findings(better, better, {16: [0.99]}, 64, size)
    assert [finding.holds for finding in found] == [True, False, False, False, False, False]
    assert study._findings(better, better, {16: [0.2]}, 8192, size)[-1].holds
