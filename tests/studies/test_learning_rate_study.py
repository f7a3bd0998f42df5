"""The study of learning rates: it runs, measures what it says, and its claims can fail."""

from __future__ import annotations

import dataclasses
import itertools
import json
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD, Adam

from longarc.cli.study import run
from longarc.dynamics.modified_flow import ORDERS
from longarc.studies.learning_rate.figures import figures
from longarc.studies.learning_rate.findings import Mean, Measured, findings, mean_of, percent
from longarc.studies.learning_rate.flooding import (
    PAIR_RATES,
    Flooded,
    Pair,
    flood,
    step_down_and_up,
)
from longarc.studies.learning_rate.product import STARTS, Followed, follow, path_name
from longarc.studies.learning_rate.runs import (
    Trial,
    go,
    settings,
    train,
    unexplained,
    walk,
)
from longarc.studies.learning_rate.study import FULL, QUICK
from longarc.studies.shared import digits_networks as networks
from longarc.studies.shared.digits_networks import Digits, Slope

SMALL = dataclasses.replace(QUICK, seeds=3, train=40)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return networks.draw_digits(3, 40, 0.2)


@pytest.fixture(scope="module")
def start() -> torch.Tensor:
    return networks.start_weights(3)


def plain_network(weights: torch.Tensor) -> nn.Sequential:
    """The network of one row of weights, of PyTorch's modules."""
    layers, place = [], 0
    for inputs, outputs in itertools.pairwise(networks.WIDTHS):
        linear = nn.Linear(inputs, outputs)
        with torch.no_grad():
            linear.weight.copy_(weights[place : place + inputs * outputs].view(inputs, outputs).T)
            linear.bias.copy_(weights[place + inputs * outputs :][:outputs])
        place += (inputs + 1) * outputs
        layers += [linear, nn.GELU()]
    assert place == len(weights)
    return nn.Sequential(*layers[:-1])


def flat(gradients) -> torch.Tensor:
    """Gradients of a plain network's weights and biases in the order of a row."""
    return torch.cat([(g.T if g.ndim == 2 else g).reshape(-1) for g in gradients])


# The study as a whole


def test_a_quick_run_writes_the_folder(tmp_path, capsys):
    out = tmp_path / "study"
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert run(["learning-rate", "--quick", "--out", str(out), "--json"]) == 0
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are its own
    saved = json.loads(capsys.readouterr().out)
    assert len(saved["findings"]) == 18
    assert all(f["how"] and f["claim"].endswith(".") for f in saved["findings"])
    assert [f["holds"] for f in saved["findings"][:4]] == [True] * 4  # two weights are no quicker
    assert len(saved["table"]) == len(settings(QUICK))
    page = (out / "study.html").read_text(encoding="utf-8")
    assert "of 18 claims hold" in page
    names = ["adam", "flooding", "orders", "paths", "rates"]
    assert sorted(p.stem for p in out.glob("*.svg")) == names


# Two weights


@pytest.mark.parametrize("begin", STARTS, ids=lambda s: s.name)
def test_orders_of_convergence(begin):
    found = follow(dataclasses.replace(begin, drawn=20), (80, 160))
    for order in ORDERS:
        assert found.slope(order) == pytest.approx(order + 1, abs=0.1)


def test_what_is_known_of_the_paths():
    """a² − b²: the flow keeps it, a step multiplies it by 1 − γ² r²."""
    begin = dataclasses.replace(STARTS[0], drawn=12)
    found = follow(begin, (4,))
    squares = {name: path.square() @ torch.tensor([1.0, -1.0]).double() for name, path in
               found.paths.items()}  # fmt: skip
    kept = squares[path_name(0)]
    torch.testing.assert_close(kept, kept[:1].expand_as(kept), rtol=1e-8, atol=0)
    walked = found.paths["gradient descent"]
    residual = 0.6 - walked.prod(1)
    factors = squares["gradient descent"][1:] / squares["gradient descent"][:-1]
    torch.testing.assert_close(factors, 1 - (begin.lr * residual[:-1]) ** 2, rtol=1e-9, atol=0)
    assert found.sharpness("gradient descent") == pytest.approx(float(walked[-1].square().sum()))


# Networks on digits


def test_digits_are_drawn_by_seed():
    right, wrong = networks.draw_digits(2, 300, 0.0), networks.draw_digits(2, 300, 0.2)
    assert right.x.shape == (2, 300, 64)
    assert right.test_x.shape == (2, 1497, 64)
    assert torch.equal(right.x, wrong.x)
    assert torch.equal(right.test_y, wrong.test_y)
    assert not torch.equal(right.x[0], right.x[1])
    other = (right.y != wrong.y).float().mean(1)  # a tenth of the random ones is right by chance
    assert ((other > 0.12) & (other < 0.24)).all()
    both = torch.cat([right.x[0], right.test_x[0]])
    assert len(both.unique(dim=0)) == len(networks.load_digits().data)  # none on both sides


def test_networks_are_those_of_pytorch(digits, start):
    scores = networks.logits(start, digits.x)
    slope = networks.slope_at(start, digits)
    penalised, whole = networks.penalised_slope_at(start, digits, 0.3)
    torch.testing.assert_close(penalised.gradient, slope.gradient)
    for i, row in enumerate(start):
        model = plain_network(row)
        torch.testing.assert_close(scores[i], model(digits.x[i]), rtol=1e-4, atol=1e-5)
        loss = functional.cross_entropy(model(digits.x[i]), digits.y[i])
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        assert float(slope.loss[i]) == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(slope.gradient[i], flat(gradients), rtol=1e-3, atol=1e-6)
        squared = sum(g.square().sum() for g in gradients)
        assert float(slope.squared[i]) == pytest.approx(float(squared.detach()), rel=1e-4)
        more = torch.autograd.grad(loss + 0.3 * squared, list(model.parameters()))
        torch.testing.assert_close(whole[i], flat(more), rtol=1e-3, atol=1e-5)
    assert slope.one_norm.tolist() == slope.gradient.abs().sum(1).tolist()


def test_accuracy_with_and_without_noise(digits, start):
    found = networks.accuracy(start, digits)
    right = [
        (plain_network(row)(x).argmax(1) == y).float().mean().item()
        for row, x, y in zip(start, digits.test_x, digits.test_y, strict=True)
    ]
    assert found.tolist() == pytest.approx(right, abs=1e-3)
    noisy = networks.accuracy(start, digits, 0.2)
    assert torch.equal(noisy, networks.accuracy(start, digits, 0.2))
    assert not torch.equal(noisy, found)
    torch.testing.assert_close(networks.accuracy(start, digits, 1e-6), found, atol=1e-3, rtol=0)


@pytest.mark.parametrize("optimizer", ["descent", "adam"])
def test_a_walk_trains_each_network_by_itself(digits, start, optimizer):
    def build(weights):
        if optimizer == "descent":
            return SGD([weights], 0.2)
        return Adam([weights], 1e-2, betas=(0.9, 0.99))

    level = 1.7
    found = walk(start, digits, build, level, 100)
    for i, row in enumerate(start):
        model = plain_network(row)
        weights = list(model.parameters())
        stepping = SGD(weights, 0.2) if optimizer == "descent" else build_adam(weights)
        steps = 0
        while (loss := functional.cross_entropy(model(digits.x[i]), digits.y[i])).item() > level:
            stepping.zero_grad()
            loss.backward()
            stepping.step()
            steps += 1
        assert found.steps[i] == steps > 2
        torch.testing.assert_close(found.weights[i], flat(weights).detach(), rtol=1e-2, atol=1e-4)
    assert len(set(found.steps.tolist())) > 1  # one waits for the others, and stays where it was


def build_adam(weights):
    return Adam(weights, 1e-2, betas=(0.9, 0.99))


def test_a_walk_that_does_not_arrive_and_one_that_is_there(digits, start):
    def build(weights):
        return SGD([weights], 0.1)

    short = walk(start, digits, build, 0.0, 4)
    assert short.steps.tolist() == [4, 4, 4]
    torch.testing.assert_close(short.weights, go(digits, 0.1, 0.4, functional.gelu))
    there = walk(start, digits, build, 100.0, 4)
    assert there.steps.tolist() == [0, 0, 0]
    assert torch.equal(there.weights, start)
    wild = walk(start, digits, lambda weights: SGD([weights], 3.0), 0.0, 20)
    assert (wild.rises > 0.2).all()
    assert short.rises.tolist() == [0, 0, 0]


def test_a_trial_ends_at_the_level(digits):
    size = dataclasses.replace(SMALL, levels=(1.2, 1.2), limit=200)
    plain, fast = (train(s, digits, size) for s in settings(size)[:2])
    assert (plain.settled.loss <= 1.2).all()
    assert (plain.settled.loss > 1.1).all()
    assert (plain.arrived.loss <= 1.8).all()
    assert (fast.steps < plain.steps).all()


def test_every_setting_has_something_to_be_compared_with():
    for size in (FULL, QUICK):
        found = settings(size)
        assert len(found) == len(set(found))
        assert size.penalties[0] == pytest.approx((size.rates[-1] - size.rates[0]) / 4)


def test_an_explicit_penalty_leads_where_the_rate_does():
    size = dataclasses.replace(SMALL, follow=(0.2,), follow_time=1.6)
    ((apart, share),) = unexplained(size).values()
    assert apart > 1e-3
    assert (share < 0.15).all()
    ((_, kinked),) = unexplained(size, functional.relu).values()
    assert (kinked > 2 * share).all()


# Flooding


def test_a_step_down_and_a_step_up():
    pair = step_down_and_up(SMALL)
    moved, missed = pair.slopes
    assert moved == pytest.approx(2, abs=0.1)
    assert missed == pytest.approx(3, abs=0.1)
    assert pair.missed[-1] < 0.05 * pair.moved[-1]
    assert len(PAIR_RATES) == len(pair.moved)


def test_flooding_stays_at_the_level():
    size = dataclasses.replace(SMALL, flood_level=1.0, limit=100, flood_steps=30)
    found = flood(size, 0.1, lambda: None)
    assert found.squared[0].shape == found.losses[1].shape == (30, 3)
    flooded, plain = found.losses
    assert ((flooded - 1.0).abs() < 0.1).all()
    assert (plain[-1] < 0.8).all()
    assert found.turns > 0.8
    assert torch.equal(flooded[0], plain[0])
    assert [len(part) for part in (*found.accuracy, *found.robust)] == [3] * 6


# Verdicts and drawings from made-up numbers

ABOUT = torch.tensor([-0.001, 0.0, 0.001])


def trial(setting, accuracy=0.8, robust=0.7, squared=1.0, one=1.0) -> Trial:
    """Seeds differ a little, so that there is an interval."""
    gradient = torch.zeros(3, 4)
    gradient[:, 0] = squared**0.5 * (1 + ABOUT)
    slope = Slope(torch.ones(3), gradient)
    settled = FakeSlope(torch.ones(3), gradient, one * (1 + ABOUT))
    return Trial(
        setting, torch.full((3,), 5.0), torch.zeros(3), slope, settled,
        accuracy + ABOUT, robust + ABOUT.flip(0),
    )  # fmt: skip


class FakeSlope(Slope):
    """A slope whose norms are made up independently of each other."""

    def __init__(self, loss, gradient, one):
        super().__init__(loss, gradient)
        object.__setattr__(self, "_one", one)

    @property
    def one_norm(self):
        return self._one


def followed(slopes=(1.0, 2.0, 3.0), ends=(11.0, 8.0, 8.5, 8.0)) -> Followed:
    """Errors of these orders; second derivatives at the ends of flow, descent, the other two."""
    sizes = [0.1, 0.05]
    errors = {order: [h**s for h in sizes] for order, s in enumerate(slopes)}
    names = (path_name(0), "gradient descent", path_name(1), path_name(2))
    paths = {
        name: torch.tensor([[3.0, 3.0], [2.0, 1.0], [end**0.5, 0.01]], dtype=torch.float64)
        for name, end in zip(names, ends, strict=True)
    }
    return Followed(STARTS[0], sizes, errors, paths)


def measured(
    slopes=(1.0, 2.0, 3.0),
    ends=(11.0, 8.0, 8.5, 8.0),
    accuracy=(0.85, 0.85),
    robust=(0.8, 0.8),
    squared=(0.5, 0.5),
    left=(0.1, 0.1),
    explicit=0.85,
    pair=(2.0, 3.0),
    flooded=0.5,
    tests=(0.8, 0.9, 0.7),
    one=(1.5, 1.5),
    beta=0.9,
    adam=(0.85, 0.85),
) -> Measured:
    """Pairs are with wrong labels and with right ones, of the largest rate; all others have 0.8."""
    size = dataclasses.replace(FULL, seeds=3)
    trials = []
    for setting in settings(size):
        side = 0 if setting.wrong else 1
        largest = setting.rate == (size.rates if setting.beta2 is None else size.adam_rates)[-1]
        kinds = {}
        if setting.penalty:
            kinds = {"accuracy": explicit}
        elif setting.beta2 is None and largest:
            kinds = {"accuracy": accuracy[side], "robust": robust[side], "squared": squared[side]}
        elif setting.beta2 is not None and largest:
            kinds = {"accuracy": adam[side], "one": one[side]}
        elif setting.beta2 == 0.9:
            kinds = {"one": beta}
        trials.append(trial(setting, **kinds))
    runs = [
        Flooded(
            rate,
            (torch.linspace(1, flooded, 40)[:, None] * (1 + ABOUT), torch.ones(40, 3)),
            (torch.ones(40, 3), torch.ones(40, 3)),
            tuple(value + ABOUT * (i + 1) for i, value in enumerate(tests)),
            tuple(value + ABOUT for value in tests),
            0.9,
        )
        for rate in size.flood_rates
    ]
    return Measured(
        size,
        [followed(slopes, ends)] * 2,
        trials,
        {0.1: (1.0, left[0] * (1 + ABOUT))},
        {0.1: (1.0, left[1] * (1 + ABOUT))},
        Pair([h ** pair[0] for h in PAIR_RATES], [0.1 * h ** pair[1] for h in PAIR_RATES]),
        runs,
    )


def test_verdicts_come_from_the_numbers():
    assert [f.holds for f in findings(measured())] == [True] * 18
    for change, places in (
        ({"slopes": (1.15, 2.0, 3.0)}, [0]),
        ({"slopes": (1.0, 1.0, 3.0)}, [1]),
        ({"slopes": (1.0, 2.0, 2.0)}, [2]),
        ({"ends": (11.0, 12.0, 11.9, 12.0)}, [3]),  # not flatter
        ({"ends": (11.0, 8.0, 10.0, 8.0)}, [3]),  # flatter, but not as the flow says
        ({"accuracy": (0.8, 0.85), "explicit": 0.85}, [4]),
        ({"accuracy": (0.85, 0.8)}, [5]),
        ({"robust": (0.7, 0.8)}, [6]),
        ({"robust": (0.8, 0.7)}, [6]),
        ({"squared": (0.5, 1.0)}, [7]),
        ({"left": (0.6, 0.1)}, [8]),
        ({"left": (0.1, 0.6)}, [9]),
        ({"explicit": 0.82}, [10]),  # gains, but stays behind
        ({"accuracy": (0.8, 0.85), "explicit": 0.8}, [4, 10]),  # nothing gained
        ({"pair": (1.5, 3.0)}, [11]),
        ({"pair": (2.0, 2.0)}, [11]),
        ({"flooded": 1.0}, [12]),
        ({"tests": (0.8, 0.9, 0.95)}, [13]),
        ({"tests": (0.95, 0.9, 0.7)}, [14]),
        ({"one": (1.0, 1.5)}, [15]),
        ({"beta": 1.1}, [16]),
        ({"adam": (0.85, 0.8)}, [17]),
    ):
        found = [i for i, f in enumerate(findings(measured(**change))) if not f.holds]
        assert found == places, change


def test_intervals_are_those_of_student():
    """Nine values 1…9: mean 5, s = 2.739, t_8 = 2.306."""
    found = mean_of(torch.arange(1.0, 10.0))
    assert (found.value, found.half) == (5.0, pytest.approx(2.306 * 2.739 / 3, rel=1e-3))
    assert found.above
    assert not found.below
    assert percent(Mean(0.012, 0.003)) == "+1.2 ± 0.3 %"


def test_drawings():
    drawn = figures(measured())
    assert [figure.name for figure in drawn] == ["paths", "orders", "rates", "flooding", "adam"]
    for figure in drawn:
        for svg in (figure.panel.wide, figure.panel.narrow):
            assert ElementTree.fromstring(str(svg)).tag.endswith("svg")
    assert "slope 2.00" in str(drawn[1].panel.wide)
    assert "labels right, γ 1 +5.0" in drawn[2].panel.description
