"""The budget's arithmetic: what one is worth in steps, and steps in epochs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longarc.comparison.budget import Budget, epochs_for, steps_of_epoch
from longarc.comparison.config import CompareConfig
from longarc.errors import OptionError
from longarc.training.config import TrainConfig


@given(
    steps=st.integers(1, 100_000),
    documents=st.integers(1, 1_000_000),
    batch=st.integers(1, 512),
    accumulation=st.integers(1, 64),
)
def test_epochs_are_exactly_the_steps_as_transformers_counts(steps, documents, batch, accumulation):
    """transformers: ceil(epochs × max(batches // accumulation + (rest > 0), 1))."""
    batches = math.ceil(documents / batch)
    of_epoch = max(batches // accumulation + int(batches % accumulation > 0), 1)
    assert steps_of_epoch(documents, batch, accumulation) == of_epoch
    epochs = epochs_for(steps, documents, batch, accumulation)
    assert math.ceil(epochs * of_epoch) == steps
    assert epochs == pytest.approx(steps / of_epoch)


def test_the_same_examples_are_fewer_steps_of_larger_batches():
    budget = Budget("examples", 320)
    of = {size: budget.steps(TrainConfig(batch_size=size)) for size in (8, 16, 32, 1000)}
    assert of == {8: 40, 16: 20, 32: 10, 1000: 1}
    assert budget.steps(TrainConfig(batch_size=8, accumulation=4)) == 10


def test_minutes_are_steps_at_the_measured_speed():
    assert Budget("minutes", 2).steps(TrainConfig(), seconds_per_step=0.5) == 240
    assert Budget("minutes", 0.001).steps(TrainConfig(), seconds_per_step=10) == 1


@pytest.mark.parametrize("kind", ["steps", "examples", "minutes"])
def test_a_probe_takes_no_steps(kind):
    assert Budget(kind, 100).steps(TrainConfig(freeze=True)) == 0


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget("steps", 1), "1 step for each candidate"),
        (Budget("examples", 12000), "12\u202f000 training examples for each candidate"),
        (Budget("minutes", 2.5), "2.5 minutes of steps for each candidate"),
    ],
)
def test_a_budget_in_words(budget, words):
    assert str(budget) == words


def options(**more) -> CompareConfig:
    return CompareConfig(data="t.csv", candidates="attention", out="runs/c", **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"budget_steps": 5, "budget_minutes": 1.0}, "name one budget"),
        ({"budget_steps": 0}, "--budget-steps is 0: expected at least 1"),
        ({"budget_minutes": 0.0}, "--budget-minutes is 0"),
        ({"budget_minutes": -1.0}, "expected at least 0"),
        ({"seeds": [0, 0]}, "names one twice"),
        ({"seeds": [0.5]}, "whole number"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"resume": True, "overwrite": True}, "Drop one of them"),
        ({"limit": "many"}, "--limit is 'many'"),
    ],
)
def test_options_that_cannot_be_are_refused(more, message):
    with pytest.raises(OptionError, match=message):
        options(**more).validate()


def test_one_budget_of_three():
    assert options(budget_minutes=1.5).budget == Budget("minutes", 1.5)
    assert options().budget is None
    assert options(seeds=[3, 1]).every_seed == [3, 1]
