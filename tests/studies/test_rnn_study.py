"""The study of recurrent cells: it runs, measures what it says, and its claims can fail."""

from __future__ import annotations

import dataclasses
import json
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from longarc.cli.study import run
from longarc.studies.rnn import study
from longarc.studies.rnn.bounds import SCALES, Bounds, find_bounds
from longarc.studies.rnn.exercises import SYMBOLS, Exercise
from longarc.studies.rnn.figures import figures
from longarc.studies.rnn.findings import findings
from longarc.studies.rnn.gradients import Look, look, look_back
from longarc.studies.rnn.measured import NO_BIAS, POOLINGS, VARIANTS, Measured
from longarc.studies.rnn.readers import CELLS, GATED, Outcome, Reader, Start, Training, train
from longarc.studies.rnn.speed import speeds
from longarc.studies.rnn.texts import Read, Reading, read
from longarc.studies.shared.long_tailed_tuning import Task
from longarc.studies.shared.word_windows import PAD

CLAIMS = 37


# The study as a whole


@pytest.mark.real
def test_a_quick_run_writes_the_folder(tmp_path, capsys):
    table = tmp_path / "news-train.jsonl"
    rows = [{"text": f"word {i} of a text", "label": "ab"[i % 2]} for i in range(30)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "study"
    words = ["rnn", "--quick", "--out", str(out), "--tables", str(table), str(table)]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert run([*words, "--json"]) == 0
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are its own
    saved = json.loads(capsys.readouterr().out)
    assert len(saved["findings"]) == CLAIMS + 5  # five more on the second task
    assert all(f["how"] and f["claim"].endswith(".") for f in saved["findings"])
    assert {"licences, last", "news, max"} <= {row["what"] for row in saved["table"]}
    assert f"of {CLAIMS + 5} claims hold" in (out / "study.html").read_text(encoding="utf-8")
    assert sorted(p.stem for p in out.glob("*.svg")) == [
        "accuracy", "adding", "bounds", "gates", "growth", "shares", "starts", "terms",
    ]  # fmt: skip


# Verdicts and drawings from made-up numbers


def looked(length=8, *, place=5, **changed) -> Look:
    """Carried well from the symbol at ``place`` on, before that less."""
    numbers: dict[str, Any] = {
        "norms": (1.0,) * length,
        "parameters": (1.0,) * length,
        "growth": -0.1,
        "terms": {"carry": 0.8, "candidate": 0.2},
        "sizes": {"sum": 1.0, "kept": 0.9, "rest": 0.2},
        "carry": (0.5,) * (place + 1) + (0.9,) * (length - place - 1),
        "carried": (0.5,) * (place + 1) + (1 - 0.3 / (length - place),) * (length - place - 1),
    }
    return Look(**(numbers | changed))


def outcome(exercise, start, score=0.95, first=None, last=None) -> Outcome:
    """Seeds differ a little, so that there is an interval."""
    last = last or looked(exercise.length, place=exercise.place)
    return Outcome(
        start, exercise, 1e-3, {0: 0.2, 2: score + 0.001 * start.seed}, {0: first or last, 2: last},
        milliseconds=1.0,
    )  # fmt: skip


def measured(
    peak=0.4477,
    tanh=0.4477,
    power=1.0,
    forget=0.11,
    largest=1.0,
    before=0.5,
    idle=0.5,
    distant=None,
    rest=0.2,
    through=0.8,
    gru_rest=0.3,
    gru_range=0.2,
    relu_growth=1.0,
    reached=(0.9, 0.7, 0.8, 0.6),
    added=(0.5, 0.3, 0.9, 0.8, 0.85),
    far=0.4,
    accuracy=(0.8, 0.8),
    trained_far=0.4,
    turns=9.0,
) -> Measured:
    """All claims hold; each argument makes one kind of them fail.

    ``reached`` are LSTM, GRU, output-gated GRU, and the LSTM without bias; ``added`` in the order
    of the cells.
    """
    size = dataclasses.replace(study.QUICK, recall=(8, (0, 2, 4), 2), seeds=3, starts=3)
    seeds = range(1, 4)

    def recalled(cell, distance, seed):
        exercise = Exercise("recall", 8, distance)
        shift = 0.001 * seed
        place = exercise.place
        carry = (before + shift,) * (place + 1) + (0.9,) * (7 - place)
        if not distance:
            carry = (idle + shift,) * 8
        changed: dict[str, Any] = {
            "carry": carry,
            "terms": {"carry": through + shift, "candidate": 1 - through - shift},
            "sizes": {"sum": 1.0, "kept": 0.9, "rest": rest + shift},
        }
        if distance == 4 and distant is not None:
            changed["carried"] = (distant,) * 8
        return outcome(exercise, Start(cell, seed), last=looked(8, place=place, **changed))

    def from_start(variant, scale, seed):
        sizes = {"sum": 1.0, "rest": (gru_rest if variant == "gru" else 0.2) + 0.001 * seed}
        grown = {"gru": gru_range, "relu-rnn": relu_growth}.get(variant, 0.1) * scale
        names = ("lstm", "gru", "output-gated-gru", NO_BIAS)
        score = dict(zip(names, reached, strict=True)).get(variant, 0.5)
        first = looked(sizes=sizes, growth=grown + 0.001 * seed)
        return outcome(size.farthest, Start(variant, seed, scale), score, first=first)

    def summed(cell, seed):
        near = {"lstm": far}.get(cell, 0.1) + 0.001 * seed
        first = looked(6, place=4, parameters=(1 - near, 0, 0, near, 0, 0))
        score = dict(zip(CELLS, added, strict=True))[cell]
        return outcome(Exercise("add", 6), Start(cell, seed), score, first=first)

    target = torch.arange(200) % 4
    task = Task("texts", 4, (target[:, None], target), (target[:, None], target))

    def reads(cell, pooling, seed):
        right = {"output-gated-gru": accuracy[0], "gru": accuracy[1]}.get(cell, 0.5)
        # Seeds of the two cells differ in opposite order, so that a difference has an interval.
        wrong = torch.arange(200) >= 200 * right + (seed if cell == "gru" else -seed)
        given = torch.where(wrong, (target + 1) % 4, target)
        near = (trained_far if cell == "lstm" else 0.1) + 0.001 * seed
        last = looked(parameters=(1 - near, 0, 0, 0, near, 0, 0, 0))
        end = last if pooling == "last" else None
        return Read(cell, seed, given, end, end, 1.0)

    return Measured(
        size=size,
        bounds=Bounds(
            peak=peak,
            at=0.77,
            steps={"tanh": tanh, "relu": 1e4},
            norms={"rnn": [1.0] * len(SCALES), "relu-rnn": [s**power for s in SCALES]},
            terms={"forget gate": forget, "input gate": 0.2, "candidate": 0.9},
            states=dict.fromkeys(CELLS[1:], (largest, largest)),
        ),
        rates={kind: dict.fromkeys(CELLS, 1e-3) for kind in ("recall", "add")},
        recall={
            cell: {d: [recalled(cell, d, s) for s in seeds] for d in (0, 2, 4)} for cell in GATED
        },
        starts={
            variant: {
                scale: [from_start(variant, scale, s) for s in seeds] for scale in size.scales
            }
            for variant in VARIANTS
        },
        add={cell: {6: [summed(cell, s) for s in seeds]} for cell in CELLS},
        readings=[
            Reading(task, pooling, {c: [reads(c, pooling, s) for s in seeds] for c in CELLS})
            for pooling in POOLINGS
        ],
        speeds={cell: [10.0, 10.5, 11.0] for cell in CELLS} | {"output-gated-gru": [turns] * 3},
        device="cpu",
    )


def test_verdicts_come_from_the_numbers():
    found = findings(measured())
    assert len(found) == CLAIMS
    assert [f.claim for f in found if not f.holds] == []
    cases: tuple[tuple[dict[str, Any], list[str]], ...] = (
        ({"peak": 0.46}, ["|(1 − tanh²c) c| < 0.45"]),
        ({"tanh": 0.6}, ["For a fixed h_(t−1)"]),
        ({"power": 0.9}, ["With ReLU it is U"]),
        ({"forget": 0.12}, ["From c to c the LSTM’s path"]),
        ({"largest": 1.1}, ["|h| ≤ 1"]),
        ({"before": 0.9}, ["is larger while something has to be kept than before"] * 3),
        ({"idle": 0.9}, ["is larger than where nothing has to be kept"] * 3),
        ({"distant": 0.7}, ["The longer the distance"] * 3),
        ({"rest": 1.0}, ["outweighs all other terms"] * 3),
        ({"through": 0.4}, ["over half of the"] * 3),
        ({"gru_rest": 0.1}, ["a gate fewer each, are larger"]),
        ({"gru_range": 0.1}, ["depends more on the start"]),
        ({"relu_growth": 0.1}, ["a ReLU RNN’s gradient grows faster"]),
        ({"reached": (0.85, 0.85, 0.86, 0.6)}, ["The LSTM learns from more"] * 2),
        ({"reached": (0.9, 0.7, 0.7, 0.6)}, ["The output-gated GRU learns from more"]),
        ({"reached": (0.9, 0.7, 0.8, 0.9)}, ["A forget bias of 1"]),
        ({"added": (0.9, 0.3, 0.9, 0.8, 0.85)}, ["The LSTM adds better"]),
        ({"added": (0.5, 0.6, 0.9, 0.8, 0.85)}, ["The tanh RNN adds better"]),
        ({"added": (0.5, 0.3, 0.9, 0.8, 0.8)}, ["The output-gated GRU adds better"]),
        ({"far": 0.1}, ["Before any training more of the LSTM’s gradient"]),
        ({"accuracy": (0.7, 0.8)}, ["no less accurate than the GRU"] * 2),
        ({"accuracy": (0.4, 0.4)}, ["no less accurate than the LSTM"] * 2),
        ({"trained_far": 0.1}, ["After training on texts"]),
        ({"turns": 40.0}, ["trains at half the speed"]),
    )
    for change, failing in cases:
        failed = [f.claim for f in findings(measured(**change)) if not f.holds]
        assert len(failed) == len(failing), change
        assert all(part in claim for part, claim in zip(failing, failed, strict=True)), change


def test_every_drawing_has_its_numbers():
    drawn = {figure.name: figure for figure in figures(measured())}
    for figure in drawn.values():
        assert any(character.isdigit() for character in figure.panel.description)
        for svg in (figure.panel.wide, figure.panel.narrow):
            assert ElementTree.fromstring(str(svg)).tag.endswith("svg")
    assert "LSTM, distance 4: 0.90" in drawn["gates"].panel.description
    assert "output-gated GRU 0.80, 0.80" in drawn["starts"].panel.description
    assert "tanh RNN 0.50" in drawn["adding"].panel.description
    assert "LSTM, after training: 0.40" in drawn["shares"].panel.description


# The parts, against closed forms


def test_bounds_are_those_of_the_formulas():
    found = find_bounds(400, 60)
    c = torch.linspace(0, 3, 300_001, dtype=torch.float64)
    assert found.peak == pytest.approx(float(((1 - c.tanh() ** 2) * c).max()), abs=1e-9)
    assert found.steps["tanh"] == pytest.approx(found.peak, rel=1e-2)
    assert found.steps["tanh"] <= found.peak
    assert found.steps["relu"] > 5000  # U itself
    grown = torch.tensor(found.norms["relu-rnn"]) / torch.tensor(SCALES)
    torch.testing.assert_close(grown, grown[:1].expand_as(grown), rtol=1e-6, atol=0)
    for name, limit in (("forget gate", found.peak / 4), ("input gate", 0.25), ("candidate", 1.0)):
        assert limit / 4 < found.terms[name] <= limit
    assert found.states["gru"][0] <= 1
    assert found.states["lstm"][1] > 10


@pytest.mark.parametrize("distance", [0, 3, 7])
def test_recall_asks_for_the_symbol_at_its_distance(distance):
    exercise = Exercise("recall", 8, distance)
    x, wanted = exercise.draw(50, torch.Generator().manual_seed(0))
    assert x.shape == (50, 8, exercise.inputs)
    seen = x[..., SYMBOLS:].sum(-1)  # the symbols of its own
    assert seen.sum(1).tolist() == [1.0] * 50
    assert (seen.argmax(1) == 7 - distance).all()
    assert torch.equal(x[:, 7 - distance, SYMBOLS:].argmax(1), wanted)
    assert exercise.score(nn.functional.one_hot(wanted, SYMBOLS).float(), wanted) == 1


def test_add_asks_for_the_sum_of_what_is_marked():
    exercise = Exercise("add", 10)
    x, wanted = exercise.draw(50, torch.Generator().manual_seed(0))
    for row, total in zip(x, wanted, strict=True):
        marked = row[row[:, 1] == 1]
        assert len(marked) == 2
        assert row[:5, 1].sum() == 1
        assert float(marked[:, 0].sum()) == pytest.approx(float(total))
    assert exercise.score(wanted + 0.09, wanted) == 1
    assert exercise.score(wanted + 0.11, wanted) == 0
    x, wanted = exercise.draw(20_000, torch.Generator().manual_seed(0))
    assert exercise.score(torch.ones_like(wanted), wanted) == pytest.approx(0.19, abs=0.01)


def test_a_reader_learns_and_is_the_same_again():
    exercise = Exercise("recall", 5, 2)
    training = Training(steps=120, batch=16, hidden=12, rate=1e-2)
    found = train(Start("lstm", 1), exercise, training, scored=(60,), looked=(0,))
    assert list(found.scores) == [0, 60, 120]
    assert found.score > 0.9 > 0.5 > found.scores[0]
    assert list(found.looks) == [0, 120]
    short = Training(steps=3, batch=4, hidden=4, rate=1e-2)
    again = [train(Start("gru", 1), exercise, short) for _ in range(2)]
    assert again[0] == again[1]
    other = train(Start("gru", 2), exercise, short)
    assert other.looks != again[0].looks


def test_a_start_is_scaled_and_has_its_bias():
    def weight(start):
        cell = Reader(start, Exercise("recall", 5), 6).cell
        return dict(cell.named_parameters())

    plain, large = (weight(Start("lstm", 1, scale)) for scale in (1.0, 4.0))
    torch.testing.assert_close(large["weight_hh_l0"], 4 * plain["weight_hh_l0"])
    assert torch.equal(large["weight_ih_l0"], plain["weight_ih_l0"])
    block = plain["weight_hh_l0"][:6]
    torch.testing.assert_close(block @ block.T, torch.eye(6), atol=1e-5, rtol=0)
    assert plain["bias_ih_l0"][6:12].tolist() == [1.0] * 6
    assert weight(Start("lstm", forget_bias=0.0))["bias_ih_l0"].abs().sum() == 0


def test_a_look_weights_the_carry_by_the_gradient_that_passes():
    """Against an LSTM step by step, whose c's gradients automatic differentiation has."""
    torch.manual_seed(0)
    cell, head = nn.LSTM(4, 3, batch_first=True).double(), nn.Linear(3, SYMBOLS).double()
    exercise = Exercise("recall", 6, 2)
    x, wanted = torch.randn(5, 6, 4).double(), torch.randint(0, SYMBOLS, (5,))
    w = dict(cell.named_parameters())
    bias = w["bias_ih_l0"] + w["bias_hh_l0"]
    h = c = torch.zeros(5, 3).double()
    kept, states = [], []
    for x_t in x.unbind(1):
        sums = x_t @ w["weight_ih_l0"].T + h @ w["weight_hh_l0"].T + bias
        i, f, g, o = sums.chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        c.retain_grad()
        h = o.sigmoid() * c.tanh()
        kept.append(f.sigmoid().detach())
        states.append(c)
    exercise.loss(head(h), wanted).backward()
    found = look(cell, head, exercise, x, wanted)
    for t, (f, state) in enumerate(zip(kept, states, strict=True)):
        assert found.carry[t] == pytest.approx(float(f.mean()))
        square = state.grad.square()
        weighted = ((f * square).sum(1) / square.sum(1)).mean()
        assert found.carried[t] == pytest.approx(float(weighted), rel=1e-6)
    assert found.beyond(0) == pytest.approx(1)
    assert found.beyond(6) == 0
    assert found.sizes["kept"] > 0


def test_padding_does_not_change_a_look():
    torch.manual_seed(0)
    cell = nn.GRU(3, 4, batch_first=True)
    x, error = torch.randn(2, 5, 3), torch.randn(2, 4)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 5:] = False
    found = look_back(cell, torch.cat([x, torch.randn(2, 2, 3)], dim=1), mask, error)
    plain = look_back(cell, x, None, error)
    assert found.parameters[:5] == pytest.approx(plain.parameters, rel=1e-5)
    assert found.carried[:5] == pytest.approx(plain.carried, rel=1e-5)
    assert found.sizes == pytest.approx(plain.sizes, rel=1e-5)
    rnn = look_back(nn.RNN(3, 4, batch_first=True), x, None, error)
    assert rnn.carry == ()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_texts_are_learnt_and_looked_into(pooling):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 20, (64, 9), generator=generator)
    target = torch.arange(64) % 2
    ids[:, 1:6] = torch.where(target == 1, 20, 21)[:, None]
    ids[:, 6:][::3] = PAD
    task = Task("ones", 2, (ids, target), (ids, target))
    vectors = torch.randn(22, 12, generator=generator)
    ways: dict[str, Any] = {"hidden": 8, "epochs": 25, "seed": 1}
    found = read("lstm", pooling, task, vectors, **ways)
    assert (found.given == target).float().mean() > 0.9
    assert (found.last is not None) == (pooling == "last")
    if found.last is not None and found.first is not None:
        assert found.last.beyond(4) > 0
        assert found.last != found.first


def test_speeds_have_every_cell():
    found = speeds(2, batch=2, length=4, hidden=3)
    assert set(found) == set(CELLS)
    assert all(len(times) == 2 and min(times) > 0 for times in found.values())
