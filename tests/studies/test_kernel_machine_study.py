"""The study of kernel machines: it runs, measures what it says, and its claims can fail."""

from __future__ import annotations

import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from longarc.cli.study import run
from longarc.studies.kernel_machine import ledger, neighbours
from longarc.studies.kernel_machine.figures import figures
from longarc.studies.kernel_machine.findings import findings
from longarc.studies.kernel_machine.ledger import Binary, Edits
from longarc.studies.kernel_machine.measured import Measured
from longarc.studies.kernel_machine.neighbours import MEASURES, Found
from longarc.studies.kernel_machine.study import FULL, QUICK, _table
from longarc.studies.kernel_machine.trainings import Network, Points, items, train
from longarc.studies.kernel_machine.walks import RULES, Walked, digits_of, pulls, walk
from longarc.studies.shared.digits_networks import logits, slope_at, start_weights


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_pulls_are_the_losses_negative_gradient_and_move_the_weights():
    digits = digits_of(2, 6, 2)
    weights = start_weights(2).double()
    alpha = pulls(weights, digits)
    at = weights.clone().requires_grad_()
    scores = logits(at, digits.x)
    (gradient,) = torch.autograd.grad(scores, at, grad_outputs=alpha)
    assert torch.allclose(gradient, -slope_at(weights, digits).gradient, atol=1e-12)


def test_a_walk_is_gradient_descent_and_every_rule_closes_as_the_step_shrinks():
    digits = digits_of(2, 12, 3)
    coarse, fine = (walk(rate, 0.8, digits) for rate in (0.4, 0.1))
    weights = start_weights(2).double()
    for _ in range(8):
        weights = weights - 0.1 * slope_at(weights, digits).gradient
    assert torch.allclose(fine.loss, slope_at(weights, digits).loss, atol=1e-12)
    for rule, least in zip(RULES, (3, 10, 50), strict=True):
        assert bool((coarse.missing[rule] > least * fine.missing[rule]).all()), rule


def test_the_walks_constant_machine_is_the_library_s(tmp_path):
    """The study's own sum over S networks side by side, and longarc.KernelMachine of one."""
    digits = digits_of(1, 10, 1)
    walked = walk(0.2, 0.6, digits)
    widths = (64, 32, 32, 32, 10)
    network = Network(widths, 0)
    place, flat = 0, start_weights(1).double()[0]
    with torch.no_grad():
        for layer in network.layers:
            o, i = layer.weight.shape
            layer.weight.copy_(flat[place : place + i * o].view(i, o).T)
            place += i * o + o
    machine = train(
        tmp_path, network, Points(digits.x[0], digits.y[0]), learning_rate=0.2, max_steps=3
    )
    asked = items(digits.test_x[0])
    terms = machine.terms(asked)
    moved = np.abs(terms.final - terms.initial).mean()
    constant = np.abs(machine.predict(asked, constant=True) - terms.final).mean() / moved
    assert float(walked.missing["middle"][0]) < constant / 5  # what its one point may be off by
    assert constant == pytest.approx(
        float(walked.constant[0]), abs=3 * float(walked.missing["middle"][0])
    )


def test_training_again_with_all_examples_is_the_recorded_training(tmp_path):
    digits = digits_of(1, 12, 4)
    x, y = digits.x[0], (digits.y[0] >= 5).long()
    network = Network(ledger.WIDTHS, 0)
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    size = dataclasses.replace(QUICK.ledger, steps=3)
    machine = train(tmp_path, network, Points(x, y), learning_rate=size.rate, max_steps=3)
    weights = torch.ones(2, 12).double() / 12
    weights[1, 5] = 0
    again = ledger.retrain(network, start, x, y, weights, size)
    margins = ledger.outputs(network, again, digits.test_x[0])
    final = machine.terms(items(digits.test_x[0])).final
    assert margins[0] == pytest.approx(final[:, 1] - final[:, 0], abs=1e-10)
    assert np.abs(margins[1] - margins[0]).max() > 1e-4


def test_edits_are_judged():
    told = np.array([[1.0, -2.0, 3.0]])
    assert Edits(told, told / 2).correlation == pytest.approx(1)
    assert Edits(told, told / 2).slope == pytest.approx(0.5)
    assert Edits(told, told / 2).error == pytest.approx(1)
    assert Edits(told, -told).correlation == pytest.approx(-1)


def test_precision_counts_the_nearest():
    scores = np.array([[6.0, 5, 4, 3, 2, 1]])
    kinds = np.array([1, 0, 1, 0, 0, 1])
    assert neighbours._precision(scores, np.array([1]), kinds) == pytest.approx(0.4)
    assert neighbours._precision(-scores, np.array([1]), kinds) == pytest.approx(0.4)
    assert neighbours._precision(scores, np.array([2]), kinds) == 0


def made_up(*, good: bool) -> Measured:
    """Measurements under which every claim holds, or none."""
    seeds, wobble = 3, torch.tensor([1.0, 1.01, 0.99]).double()
    walks = [
        Walked(
            rate,
            wobble,
            {
                rule: (rate**order if good else rate**0.5) * wobble
                for rule, order in (("start of the step", 1), ("middle", 2), ("two points", 4))
            },
            (0.01 if good else 2.0) * wobble,
            (0.98 if good else 0.6) * wobble.clamp(max=1),
            (0.9 * wobble, 0.8 * wobble),
        )
        for rate in (0.4, 0.2)
    ]
    generator = np.random.default_rng(0)
    edits, far = generator.normal(size=(4, 5)), generator.normal(size=(4, 5))
    binary = [
        Binary(
            {"network": 0.9, ledger.PATH: (0.9 if good else 0.7) + 0.01 * s, ledger.GAUSSIANS: 0.8},
            {ledger.PATH: (0.95 if good else 0.6) + 0.01 * s, ledger.GAUSSIANS: 0.8},
            *(
                {n: Edits(edits, edits + (0.1 * (s + 1) if good else 9) * far) for n in (1, 2)}
                for _ in range(2)
            ),
        )
        for s in range(seeds)
    ]
    best = {"contribution": 0.2, "path kernel": 0.8 if good else 0.2}
    found = [
        Found(
            *({**best, "embedding": 0.4 + 0.01 * s, "TF-IDF": 0.5} for _ in range(2)),
            (0.1, 0.2),
            0.8,
        )
        for s in range(seeds)
    ]
    size = dataclasses.replace(QUICK, seeds=seeds, few_seeds=seeds)
    missing = {"descent": 1e-12 if good else 1e-3}
    return Measured(size, walks, missing, binary, found)


@pytest.mark.parametrize("good", [True, False])
def test_every_claim_can_hold_and_fail(good):
    for finding in findings(made_up(good=good)):
        assert finding.holds is good, finding
        assert finding.how


def test_figures_draw_what_was_measured():
    measured = made_up(good=True)
    drawn = figures(measured)
    assert [figure.name for figure in drawn] == ["rebuilt", "ledger", "neighbours"]
    for figure in drawn:
        for svg in (figure.panel.wide, figure.panel.narrow):
            ElementTree.fromstring(str(svg))
    assert {row["part"] for row in _table(measured)} == {"walk", "SVM", "ledger", "neighbours"}
    assert len({row["what"] for row in _table(measured)} & set(MEASURES)) == 4
    assert FULL.seeds >= 5


@pytest.mark.real
def test_the_quick_study_runs(tmp_path, capsys):
    status = run(["kernel-machine", "--quick", "--json", "--out", str(tmp_path / "s")])
    assert status == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["findings"]) == 15
    assert (tmp_path / "s" / "rebuilt.svg").is_file()
    missing = told["findings"][3]["measured"]
    assert all(float(value) < 1e-9 for value in missing.split(", "))
