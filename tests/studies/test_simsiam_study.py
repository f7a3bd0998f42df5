"""The study of SimSiam: it runs, measures what it says, and its claims can fail."""

from __future__ import annotations

import copy
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from longarc.dynamics.collapse import CollapseMeasures
from longarc.dynamics.collapse_detector import CollapseAlarm
from longarc.studies.simsiam import scalar, study
from longarc.studies.simsiam.findings import LATE, findings
from longarc.studies.simsiam.material import Material, digits
from longarc.studies.simsiam.measured import (
    ABLATIONS,
    COLLAPSING,
    HEADS,
    HEALTHY,
    MEAN_VIEW,
    NORMS,
    Measured,
    Runs,
)
from longarc.studies.simsiam.runs import Outcome, Variant, build, gradients_of_targets, train
from longarc.studies.study import write_study


@pytest.mark.real
def test_quick(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    result = study.simsiam(quick=True)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are its own
    page = write_study(result, tmp_path / "simsiam").read_text(encoding="utf-8")
    assert f"of {len(result.findings)} claims hold" in page
    names = [figure.name for figure in result.figures]
    assert names == ["scalar", "collapse", "accuracy", "rates", "mean-view"]
    for figure in result.figures:
        for svg in (figure.panel.wide, figure.panel.narrow):
            assert ElementTree.fromstring(str(svg)).tag.endswith("svg")
    assert all(finding.holds for finding in result.findings[:4])  # of the scalar model
    rows = {(row["data"], row["variant"]): row for row in result.table}
    planned = [*ABLATIONS, *MEAN_VIEW, *HEADS]
    assert {name for _, name in rows} == {"inputs", "untrained", *(v.name for v in planned)}
    assert rows["digits", "no predictor"]["published, %"] == 0.1
    for row in rows.values():
        assert 0 <= row["neighbours"] <= 1


@pytest.mark.parametrize("branches", ["first", "both", "second"])
def test_the_scalar_models_velocity(branches):
    """Against automatic differentiation with what has no gradient detached."""
    for phi, theta in ((0.6, 0.1), (-0.3, 1.4), (2.0, -0.7)):
        p, t = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (phi, theta))
        h = p * (t.detach() if branches == "second" else t)
        target = t.detach() if branches == "first" else t
        loss = (h - target).square() / 2
        slopes = torch.autograd.grad(loss, (p, t))
        found = scalar.velocity(phi, theta, branches, speed=3.0)
        assert found == pytest.approx((-3 * float(slopes[0]), -float(slopes[1])))


def test_the_scalar_models_ends():
    """The published start: φ to 1 and θ to √0.65, or θ to 0."""
    assert scalar.end("first") == pytest.approx((1, 0.65**0.5))
    assert scalar.end("both") == pytest.approx((1 - 0.15**0.5, 0))
    assert scalar.end("second") == pytest.approx((0.605, 0))
    for branches in ("first", "both", "second"):
        for speed in (1.0, 30.0):
            flow = scalar.flow(branches, speed=speed, until=200)
            reached = flow.phi[-1], flow.theta[-1]
            assert reached == pytest.approx(scalar.end(branches, speed), abs=1e-5)


@pytest.fixture(scope="module")
def material():
    return digits(240)


def test_the_mean_view_is_the_mean_of_views(material):
    rows = material.train[:3]
    generator = torch.Generator().manual_seed(0)
    mean = torch.stack([material.draw(rows, generator) for _ in range(1000)]).mean(0)
    torch.testing.assert_close(mean, material.mean(rows), atol=0.05, rtol=0)
    assert float((material.mean(rows) - rows).abs().max()) > 0.2


def documents():
    """A material of documents without MiniLM: four passages round a centre each."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, 1, 384, generator=generator)
    vectors = vectors + torch.randn(40, 4, 384, generator=generator)
    from longarc.studies.simsiam.material import _layers, _one_passage

    labels = torch.arange(40) % 3
    return Material(
        "documents", vectors[:30], vectors[30:], labels[:30], labels[30:],
        draw=_one_passage, mean=lambda rows: rows.mean(1), make_encoder=_layers, batch=8,
    )  # fmt: skip


def test_a_view_of_a_document_is_a_passage():
    made = documents()
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        views = made.draw(made.train[:2], generator)
        for row, view in zip(made.train, views, strict=False):
            (place,) = (i for i in range(4) if torch.equal(row[i], view))
            seen.add(place)
    assert seen == {0, 1, 2, 3}


def test_half_the_gradient():
    cosine, ratio = gradients_of_targets(documents(), 0, lambda: torch.nn.Linear(384, 8))
    assert (cosine, ratio) == pytest.approx((1, 2), abs=1e-4)
    cosine, ratio = gradients_of_targets(documents(), 0)
    assert 0.5 < cosine < 0.999
    assert 1.2 < ratio < 3


def test_variants_start_alike_and_see_the_same(material):
    """But for what they change: encoder and projector, batches and views."""
    torch.manual_seed(5)
    one = build(Variant("a"), material)
    for variant in (Variant("b", predictor="none"), Variant("c", contrastive=True)):
        torch.manual_seed(5)
        other = build(variant, material)
        for part in ("encoder", "projector"):
            found, expected = (getattr(o, part).state_dict() for o in (other, one))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    runs = [
        train(Variant("a", stop_gradient=stop), material, 0, steps=3, every=1)
        for stop in (True, False)
    ]
    assert runs[0].loss[0] == runs[1].loss[0]
    assert runs[0].loss[2] != runs[1].loss[2]
    again = train(Variant("a"), material, 0, steps=3, every=1)
    assert again.loss == runs[0].loss
    assert train(Variant("a"), material, 1, steps=3, every=1).loss != again.loss


def test_a_run_that_collapses_and_one_that_does_not(material):
    healthy, gone = (
        train(Variant("x", stop_gradient=stop), material, 0, steps=80, every=2)
        for stop in (True, False)
    )
    assert healthy.end_spread > 0.5
    assert healthy.alarm is healthy.onset is None
    assert gone.end_spread < 0.12
    assert gone.alarm is not None
    assert gone.onset is not None
    assert gone.onset < gone.alarm.step
    assert healthy.knn > gone.knn


def test_the_rates_are_those_of_the_weights(material):
    """A predictor with ten times the rate moves ten times as far in the first step."""
    slow, quick, fixed = (
        train(variant, material, 0, steps=1, every=1).rates[0]
        for variant in (Variant("a"), Variant("b", factor=10), Variant("c", predictor="fixed"))
    )
    assert quick[0] == pytest.approx(10 * slow[0], rel=1e-3)
    assert quick[1] == pytest.approx(slow[1], rel=1e-3)
    assert fixed[0] == 0


def outcome(name, seed, *, spread=0.8, knn=0.7, alarm=None, loss=-0.8, ratio=2.0):
    """A run whose spread and rank go from the start straight to the end."""
    falls = spread < 0.5
    end = CollapseMeasures(
        spread,
        2.0 if falls else 25.0,
        0.01 if falls else 0.3,
        -0.1 if falls else -2.0,
        0.01 if falls else 0.4,
    )
    return Outcome(
        Variant(name), seed, steps=[0, 10, 20, 30], loss=[0.0, loss, loss, loss],
        measured=[CollapseMeasures(0.8, 30.0, 0.3, -2.0, 1.0), end, end, end],
        scale=[1.0, spread, spread, spread], rates=[(0.02 * ratio, 0.02)] * 4,
        alarm=CollapseAlarm("spread", 10, 30, spread, 0.8) if falls and alarm is None else alarm,
        knn=knn + 0.001 * seed, probe=knn, knn_of_means=knn + 0.1,
    )  # fmt: skip


def made_up(**changes):
    """Measured as published: what should collapse does, and nothing else; the mean view helps."""
    planned = [*ABLATIONS, *MEAN_VIEW, *HEADS]
    names = ["inputs", "untrained", *(variant.name for variant in planned)]
    defaults = {name: {"spread": 0.05, "knn": 0.3} for name in COLLAPSING}
    defaults |= {
        f"{short}, norm {norm}": {"spread": 0.05}
        for short in ("no stop-gradient", "no predictor")
        for norm in NORMS.values()
    }
    defaults |= {
        "inputs": {"knn": 0.6},
        "untrained": {"knn": 0.5},
        "predictor fixed at random": {"knn": 0.4, "loss": -0.1},
        "predictor’s rate × 0.1": {"knn": 0.6, "ratio": 0.2},
        "predictor’s rate × 10": {"knn": 0.75, "ratio": 20.0},
    }
    outcomes = {}
    for name in names:
        how = defaults.get(name, {}) | changes.get(name, {})
        starts = 1 if name == "inputs" else 3
        outcomes[name] = [outcome(name, seed, **how) for seed in range(starts)]
    flows = {b: scalar.flow(b) for b in ("first", "both", "second")}
    speeds = {speed: scalar.flow("both", speed=speed) for speed in (10.0, 25.0)}
    made = digits(30)
    return Measured(
        study.QUICK, flows, speeds,
        (Runs(made, outcomes), Runs(replace(made, name="licences"), copy.deepcopy(outcomes))),
        [(0.96, 1.9)] * 3, [(1.0, 2.0)] * 3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def names():
    return [finding.claim for finding in findings(made_up())]


def failing(**changes):
    measured = made_up(**{k: v for k, v in changes.items() if isinstance(v, dict)})
    measured = replace(measured, **{k: v for k, v in changes.items() if not isinstance(v, dict)})
    return {f.claim for f in findings(measured) if not f.holds}


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"no stop-gradient": {"spread": 0.2, "knn": 0.3}}, "Without the stop-gradient codes"),
        ({"no predictor": {"spread": 0.2, "knn": 0.3}}, "Without a predictor they collapse"),
        ({"untrained": {"knn": 0.7}}, "SimSiam’s codes are better than those of the untrained"),
        ({"inputs": {"knn": 0.75}}, "They are better than what the encoder is given"),
        ({"no stop-gradient": {"spread": 0.05, "knn": 0.75}}, "A linear probe, too"),
        ({"predictor fixed at random": {"knn": 0.7}}, "A predictor fixed at random does not"),
        ({"predictor’s rate not decayed": {"knn": 0.6}}, "Without decay of the predictor’s"),
        ({"predictor’s rate × 10": {"knn": 0.5}}, "A fast predictor is better"),
        ({"moving average 0.99": {"knn": 0.8}}, "No moving average as target is needed"),
        ({"SimSiam": {"ratio": 0.5}}, "The predictor is fast"),
        ({"neither, f(x̄)": {"spread": 0.05}}, "With f(x̄) as target codes do not collapse"),
        ({"no stop-gradient, f(x̄)": {"spread": 0.3}}, "Nor do they with a predictor"),
        ({"no predictor, f(x̄)": {"spread": 0.3}}, "Nor do they with the stop-gradient"),
        ({"neither, f(x̄), squared": {"spread": 0.3}}, "With squared distances"),
        ({"linear_gradients": [(1.0, 1.9)]}, "For a linear encoder"),
        ({"SimSiam, norm layer": {"spread": 0.05}}, "With the stop-gradient codes do not"),
        (
            {"SimSiam, f(x̄)": {"alarm": CollapseAlarm("spread", 10, 30, 0.1, 1.0)}},
            "The detector gives the alarm",
        ),
    ],
)
def test_verdicts_come_from_the_numbers(names, changes, claim):
    assert failing() == set()
    assert len(names) == 23
    failed = failing(**changes)
    assert any(name.startswith(claim) for name in failed), failed
    # What fails besides are the two claims about all runs that are healthy, or that are not.
    others = {name for name in failed if not name.startswith(claim)}
    assert all(n.startswith(("Every measure", "The detector")) for n in others), others


def test_a_late_alarm_is_no_good():
    late = CollapseAlarm("spread", 10, 10 + LATE + 1, 0.05, 0.8)
    (claim,) = failing(neither={"spread": 0.05, "knn": 0.3, "alarm": late})
    assert claim.startswith("The detector")


def test_healthy_and_collapsing_are_known():
    planned = {v.name for v in (*ABLATIONS, *MEAN_VIEW)}
    assert {*COLLAPSING, *HEALTHY} < planned
    assert not {*COLLAPSING} & {*HEALTHY}
