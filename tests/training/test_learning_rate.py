"""The search for a learning rate: what it measures, what it makes of it, what it leaves."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EarlyStoppingCallback, EvalPrediction

from longarc.dynamics.replay import replayed
from longarc.errors import ModelError, OptionError
from longarc.objectives.losses.registry import build_loss
from longarc.training.arguments import training_arguments
from longarc.training.batches import Documents
from longarc.training.config import TrainConfig
from longarc.training.learning_rate.bounds import (
    APART,
    NARROWEST,
    TIED,
    WIDEST,
    best_of,
    learning_rate_range,
    next_rate,
    spread,
)
from longarc.training.learning_rate.search import (
    OF_A_SHORT_RUN,
    _figures_with_error,
    _Search,
    search_learning_rate,
)
from longarc.training.learning_rate.stability import FIRST, Measurement, RisingWarmup
from longarc.training.progress import Reporter

CONFIG = TrainConfig(
    data="-", out="-", max_length=48, batch_size=8, epochs=4, precision="fp32", layer_decay=0.8
)


@pytest.fixture
def parts(tiny, tokenizer, tmp_path):
    """What a search takes: a function of the options that differ from ``CONFIG``."""

    def make(rows=64, dropout=0.1, **options):
        config = dataclasses.replace(CONFIG, out=str(tmp_path / "run"), **options)
        texts, target = tiny.make_table(rows)
        held_out, held_out_target = tiny.make_table(24, seed=1)
        counts = np.bincount(target, minlength=tiny.CLASSES).tolist()
        return {
            "model": tiny.make_model(dropout),
            "args": training_arguments(config, torch.device("cpu"), rows),
            "config": config,
            "train": Documents(texts, tokenizer, 48, target),
            "validation": Documents(held_out, tokenizer, 48, held_out_target),
            "tokenizer": tokenizer,
            "loss": build_loss(config.loss, class_counts=counts),
            "sampling_weights": None,
        }

    return lambda **options: make(**{"loss": "cross-entropy"} | options)


def steps(*rows):
    """Measurements of (γ, γ_c, L, slope)."""
    return [Measurement(i + 1, *row, passes=6) for i, row in enumerate(rows)]


# The range


def test_the_ends_are_what_their_formulas_say():
    measured = steps(
        (1e-5, 3e-3, 2.0, 2e4), (1e-4, 2e-3, 1.5, 3e4), (1e-3, 1.5e-3, 1.0, 1e4),
        (1e-2, 2e-3, 4.0, -200.0),
    )  # fmt: skip
    found = learning_rate_range(measured, lost=1e-2, budget=40.0, ignorant=3.0)
    times = 1e-4  # the median of 2.0 / 2e4, 1.5 / 3e4 and 1.0 / 1e4
    assert found.high == 1.5e-3  # γ_c of the third step
    assert found.negligible == pytest.approx(0.04 * times)
    assert found.unused == pytest.approx(times / 40)
    assert found.low == max(found.negligible, found.unused)
    assert "implicit" in found.low_why
    shorter = learning_rate_range(measured, lost=1e-2, budget=15.0, ignorant=3.0)
    assert shorter.low == pytest.approx(times / 15)
    assert "end before" in shorter.low_why


def test_at_the_lower_end_the_implicit_penalty_is_a_hundredth_of_the_loss():
    (step,) = steps((1e-3, 1.0, 2.0, 3.0))
    found = learning_rate_range([step], lost=math.inf, budget=1e9, ignorant=3.0)
    there = dataclasses.replace(step, learning_rate=found.low)
    assert there.implicit_share == pytest.approx(0.01)


def test_a_limit_is_not_above_the_next_rate_measured():
    measured = steps((1e-4, 9e-2, 1.0, 1.0), (1e-3, 1e-5, 1.0, 1.0), (1e-2, 0.0, 9.0, -1.0))
    assert learning_rate_range(measured, lost=1e-2, budget=1e9, ignorant=3.0).high == 1e-3


def test_where_every_step_overshot_the_last_rate_before_the_loss_counts():
    measured = steps((1e-5, 1e-6, 0.1, -9.0), (1e-4, 1e-6, 0.1, -9.0), (1e-3, 0.0, 3.0, -9.0))
    found = learning_rate_range(measured, lost=1e-3, budget=1e9, ignorant=3.0)
    assert found.high == 1e-4


def test_next_to_a_minimum_steps_that_overshoot_are_bearable():
    """As measured on R52 from a probe that fits its documents: a loss of .006 beside one of 2."""
    measured = steps(
        (1e-6, 1.2e-4, 0.0065, 283.1), (1e-5, 1.5e-6, 0.0050, -21.6), (1e-4, 1.1e-6, 0.0052, -0.8),
        (3.2e-4, 4.6e-5, 0.0085, -30.3), (1e-3, 0.0, 0.0347, -3334.7), (3.2e-3, 1e-6, 3.0, -2385.0),
    )  # fmt: skip
    assert [step.stable for step in measured] == [True, *[False] * 5]
    found = learning_rate_range(measured, lost=3.2e-3, budget=30, ignorant=2.04)
    assert found.high == 3.2e-4
    assert "5 %" in found.high_why
    assert learning_rate_range(measured, lost=3.2e-3, budget=30, ignorant=0.1).high == 1e-4
    # A step up by 5 % of the way to ignorance is the last that counts.
    (edge,) = steps((1e-3, 0.0, 1.0, -99.0))
    assert edge.rise == pytest.approx(0.099)
    assert "no step" in learning_rate_range([edge], math.inf, 30, ignorant=2.97).high_why
    assert "5 %" in learning_rate_range([edge], math.inf, 30, ignorant=2.99).high_why


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 1), st.floats(1e-3, 10), st.floats(-1e4, 1e4, allow_subnormal=False)
        ),
        max_size=6,
    ),
    st.floats(0.5, 1e4),
)
def test_a_range_has_a_width_whatever_was_measured(rows, budget):
    measured = steps(*((FIRST * 3**i, *row) for i, row in enumerate(rows)))
    found = learning_rate_range(measured, lost=FIRST * 3 ** len(rows), budget=budget, ignorant=2.0)
    assert 0 < found.high / WIDEST * 0.999 < found.low < found.high / NARROWEST * 1.001
    rates = spread(found.low, found.high, 3)
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(found.high, rel=0.06)


# The candidates


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(1.3, 1000))
def test_the_next_rates_close_in_on_the_best(figures, width):
    low, high = 1e-5, 1e-5 * width
    rates = spread(low, high, 3)
    rows = [
        {"learning_rate": r, "macro_f1": f, "macro_f1_error": 0.05, "loss": 1.0}
        for r, f in zip(rates, figures, strict=True)
    ]
    while (rate := next_rate(rows, low, high)) is not None:
        assert low * 0.95 <= rate <= high * 1.05
        assert all(max(rate / r, r / rate) > APART * 0.9 for r in rates)
        rows.append({"learning_rate": rate, "macro_f1": 0.0, "macro_f1_error": 0.05, "loss": 1.0})
        rates.append(rate)
        assert len(rows) < 30


def test_the_best_is_by_macro_f1_and_of_equals_by_loss():
    rows = [
        {"learning_rate": 1.0, "macro_f1": 0.8, "loss": 0.9},
        {"learning_rate": 2.0, "macro_f1": 0.8 - TIED / 2, "loss": 0.5},
        {"learning_rate": 3.0, "macro_f1": 0.8 - 2 * TIED, "loss": 0.1},
        {"learning_rate": 4.0, "macro_f1": None, "loss": None},
    ]

    def chosen(error, rows=rows):
        return best_of([row | {"macro_f1_error": error} for row in rows])["learning_rate"]

    assert chosen(TIED / 5) == 2.0
    assert chosen(0.9 * TIED) == 2.0
    assert chosen(1.1 * TIED) == 3.0
    assert chosen(1.1 * TIED, rows[3:]) == 4.0


def test_the_error_of_macro_f1_is_what_other_documents_would_differ_by():
    """Against figures of documents drawn anew."""
    random = np.random.default_rng(0)

    def draw():
        target = random.choice(4, size=80, p=[0.6, 0.25, 0.1, 0.05])
        logits = random.normal(size=(80, 4)) + 2 * np.eye(4)[target]
        return EvalPrediction(logits, target)

    found = [_figures_with_error(draw()) for _ in range(200)]
    errors, figures = zip(*((f["macro_f1_error"], f["macro_f1"]) for f in found), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(figures), rel=0.15)


def test_several_labels_have_an_error_too():
    random = np.random.default_rng(0)

    def draw():
        target = random.integers(2, size=(60, 3))
        return EvalPrediction(random.normal(size=(60, 3)) + 2 * target - 1, target)

    found = [_figures_with_error(draw()) for _ in range(200)]
    errors, figures = zip(*((f["macro_f1_error"], f["macro_f1"]) for f in found), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(figures), rel=0.2)
    nothing = EvalPrediction(-np.ones((4, 3)), np.zeros((4, 3), dtype=int))
    assert _figures_with_error(nothing)["macro_f1_error"] == 0


def test_classes_that_training_lacks_do_not_count():
    random = np.random.default_rng(0)
    target = random.integers(3, size=40)
    logits = random.normal(size=(40, 3)) + np.eye(3)[target]
    known = _figures_with_error(EvalPrediction(logits, target))
    more = EvalPrediction(
        np.concatenate([logits, np.eye(3)]), np.concatenate([target, [-100, -100, -100]])
    )
    assert _figures_with_error(more)["macro_f1_error"] == known["macro_f1_error"]
    alone = EvalPrediction(np.eye(3), np.full(3, -100))
    assert _figures_with_error(alone)["macro_f1_error"] == 0


# The measurement


def test_the_warm_up_measures_the_users_optimizer(tiny, tmp_path):
    """Rates rise by the factor in every group, and at γ_c the loss is back at its start."""
    trainer = tiny.make_resumable(
        tmp_path, dropout=0.1, eval_strategy="no", eval_on_start=False, save_strategy="no",
        load_best_model_at_end=False, lr_scheduler_type="constant", warmup_steps=0, max_steps=13,
    )  # fmt: skip
    trainer.remove_callback(EarlyStoppingCallback)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    sample = replayed(lambda: trainer.loss_of([batch]), trainer.model.parameters())
    rising = RisingWarmup(sample, ignorant=1e9, steps=12)
    looked: list[tuple[float, float, float]] = []

    class Scan(tiny.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
            self.measured = state.global_step % rising.every == 0
            self.before = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
            scales = {g["lr"] / g["initial_lr"] for g in optimizer.param_groups}
            assert max(scales) == pytest.approx(min(scales))
            self.rate = args.learning_rate * max(scales)

        def on_step_end(self, args, state, control, optimizer=None, **_):
            if not self.measured:
                looked.append((self.rate, 0, 0, 0))
                return
            weights = [p for g in optimizer.param_groups for p in g["params"]]
            moved = [
                (b - w.detach()) / self.rate for b, w in zip(self.before, weights, strict=True)
            ]

            def at(rate):
                with torch.no_grad():
                    for w, b, d in zip(weights, self.before, moved, strict=True):
                        w.copy_(b - rate * d)
                return float(sample())

            last = [w.detach().clone() for w in weights]
            start, critical = at(0.0), rising.measured[-1].critical_learning_rate
            either_side = [at(critical * part) < start for part in (0.7, 1.4)]
            looked.append((self.rate, start, either_side, (start - at(self.rate)) / self.rate))
            with torch.no_grad():
                for w, value in zip(weights, last, strict=True):
                    w.copy_(value)

    trainer.add_callback(rising)
    trainer.add_callback(Scan())
    trainer.train()
    rates = [rate for rate, *_ in looked]
    assert rates == pytest.approx([FIRST * rising.factor**i for i in range(len(rates))])
    assert len(rising.measured) == math.ceil(len(rates) / rising.every) > 5
    for found in rising.measured:
        rate, loss, either_side, slope = looked[found.step - 1]
        assert found.learning_rate == pytest.approx(rate)
        assert found.loss == pytest.approx(loss, rel=1e-5)
        if found.learning_rate > 1e-4:  # below, float32 loses the difference
            assert found.slope == pytest.approx(slope, rel=0.05)
        assert found.stable == (found.critical_learning_rate > rate)
        assert either_side == [True, False]
    assert rising.passes == sum(found.passes for found in rising.measured)


def test_a_step_that_lowered_the_loss_was_below_the_critical_rate(parts):
    """Though steps before it raised the loss at whatever rate: their γ_c is a rounding error."""
    rising = _Search(**parts())._measure(Reporter(None))
    assert any(not found.stable for found in rising.measured[:-1]), "no step before overshot"
    lowered = [found for found in rising.measured if found.slope > 0]
    assert len(lowered) >= 3
    assert all(found.stable for found in lowered)


def test_the_warm_up_ends_when_the_model_has_lost_what_it_knew(parts):
    search = _Search(**parts())
    rising = search._measure(Reporter(None))
    assert math.isfinite(rising.lost)
    losses = [found.loss for found in rising.measured]
    assert losses[-1] - min(losses) > search._ignorant(search._sample()) / 5
    assert rising.steps < rising.longest


def test_the_ignorant_loss_is_the_entropy_of_the_classes(parts):
    given = parts(rows=60)
    search = _Search(**given)
    sample = search._sample()
    target = torch.cat([batch["labels"] for batch in sample])
    shares = np.bincount(given["train"].targets) + 0.5
    expected = -np.log(shares / shares.sum())[target.numpy()].mean()
    assert search._ignorant(sample) == pytest.approx(min(expected, math.log(3)), rel=1e-5)


@pytest.mark.parametrize("loss", ["logit-adjusted", "radius-margin", "focal"])
def test_every_kind_of_loss_has_one(parts, loss):
    search = _Search(**parts(loss=loss))
    assert 0 < search._ignorant(search._sample()) < 10


# The search


def test_a_search_leaves_no_trace_and_repeats(parts):
    given = parts(rows=32, regularizers=["fgm"])
    model = given["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes, training = set(vars(model)), model.training
    found = [search_learning_rate(**given, reporter=Reporter(None), candidates=2) for _ in range(2)]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(vars(model)) == attributes
    assert model.training == training
    assert all(parameter.grad is None for parameter in model.parameters())
    for record in found:
        for row in record["candidates"]:
            row["seconds"] = 0
    assert found[0] == found[1]
    rates = [row["learning_rate"] for row in found[0]["candidates"]]
    assert rates == sorted(rates)
    assert found[0]["recommended"] in rates


def test_a_candidate_is_the_run_with_fewer_steps(parts, tiny, tmp_path):
    """Figures of a short run, by a trainer put together by hand."""
    given = parts()
    found = search_learning_rate(**given, reporter=Reporter(None), candidates=3, fraction=0.5)
    row, *others = found["candidates"]  # the smallest rate: larger ones amplify rounding
    assert set(found["start"]) == set(OF_A_SHORT_RUN)
    assert row["steps"] == found["run_steps"] // 2 == 16
    args = tiny.make_arguments(
        tmp_path, optim="adamw_torch", lr_scheduler_type="linear", max_grad_norm=1.0, max_steps=16,
        warmup_steps=0.1, weight_decay=0.01, learning_rate=row["learning_rate"],
        train_sampling_strategy="group_by_length",
    )  # fmt: skip

    def made():
        return tiny.Trainer(
            tiny.make_model(0.1), args, train_dataset=given["train"],
            eval_dataset=given["validation"],
            data_collator=tiny.PaddedBatches(given["tokenizer"], 48),
            compute_metrics=tiny.accuracy, layer_decay=0.8,
            loss=given["loss"],
        )  # fmt: skip

    start, trainer = made().evaluate(), made()
    assert found["start"]["accuracy"] == pytest.approx(start["eval_accuracy"])
    assert found["start"]["loss"] == pytest.approx(start["eval_loss"], rel=1e-5)
    trainer.train()
    figures = trainer.evaluate()
    assert row["accuracy"] == pytest.approx(figures["eval_accuracy"])
    assert row["loss"] == pytest.approx(figures["eval_loss"], rel=1e-5)
    cost = found["cost_steps"] - found["stability"]["steps"] - row["steps"] * (1 + len(others))
    assert cost == pytest.approx(found["stability"]["passes"] / 3, abs=0.06)


def test_a_rate_that_diverges_is_noted_and_never_recommended(parts):
    search = _Search(**parts())
    with torch.no_grad():  # a loss that is not a number from the first step on
        search.start["classifier.weight"] *= math.nan
        search.model.classifier.weight.mul_(math.nan)
    with Reporter(None).task("short run") as advance:
        row = search._try(1e-3, 4, advance)
    assert row["macro_f1"] is None
    assert row["loss"] is None
    with pytest.raises(ModelError, match=r"diverged at each .* \(1.0e-03\)"):
        search._record(
            {},
            RisingWarmup(lambda: torch.zeros(()), ignorant=1.0, steps=24),
            learning_rate_range(steps((1e-5, 1.0, 1.0, 1.0)), math.inf, 10.0, ignorant=3.0),
            [row],
            4,
        )


@pytest.mark.parametrize(("candidates", "fraction"), [(0, 0.2), (2.5, 0.2), (3, 0.0), (3, 1.5)])
def test_options_out_of_range_are_refused(parts, candidates, fraction):
    with pytest.raises(OptionError):
        search_learning_rate(
            **parts(), reporter=Reporter(None), candidates=candidates, fraction=fraction
        )
