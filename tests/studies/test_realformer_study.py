"""The study of RealFormer: it runs, measures what it says, and its claims can fail."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from longarc.cli.study import run
from longarc.errors import DataError, OptionError
from longarc.studies.realformer import study
from longarc.studies.realformer.attention_patterns import (
    attention_weights,
    entropy,
    likeness,
    neighbours,
)
from longarc.studies.realformer.figures import figures
from longarc.studies.realformer.findings import difference, findings
from longarc.studies.realformer.measured import COMPARED, Measured, Tuned
from longarc.studies.realformer.residual_minilm import Introduced
from longarc.studies.realformer.scratch_training import (
    Cell,
    Outcome,
    draw_batch,
    gradient_norms,
    restored,
    train_cell,
)
from longarc.studies.registry import run_study
from longarc.studies.shared.long_tailed_tuning import Task, fine_tune, gain
from longarc.studies.shared.scratch_encoders import ARCHITECTURES, Shape, build_encoder, layers_of
from longarc.studies.shared.word_windows import (
    FIRST,
    LAST,
    MASK,
    SPECIAL,
    UNKNOWN,
    Corpus,
    mask_tokens,
    read_corpus,
)

SHAPE = Shape(layers=3, width=32, words=40, length=12)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Windows of words that follow each other: each word is the one before plus 1."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 20, (48, 1), generator=generator)
    tokens = SPECIAL + (start + torch.arange(10)) % 35
    words: Any = None  # the tokenizer, which nothing here asks for
    return Corpus(words, tokens[:40], tokens[40:], torch.randn(40, 48, generator=generator))


# The study as a whole


@pytest.mark.real
def test_a_quick_run_writes_the_folder(tmp_path, capsys):
    table = tmp_path / "news.jsonl"
    rows = [{"text": f"word {i} of a text", "label": "ab"[i % 2]} for i in range(30)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "study"
    words = ["realformer", "--quick", "--out", str(out), "--tables", str(table), str(table)]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert run([*words, "--json"]) == 0
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are its own
    saved = json.loads(capsys.readouterr().out)
    assert len(saved["findings"]) == 11
    assert all(f["how"] and f["claim"].endswith(".") for f in saved["findings"])
    cells = [row for row in saved["table"] if row["what"] == "masked tokens"]
    quick = study.QUICK
    assert len(cells) == len(ARCHITECTURES) * (2 * len(quick.rates) + quick.seeds) + 6
    assert any(row["what"] == "news, 2 classes" for row in saved["table"])
    page = (out / "study.html").read_text(encoding="utf-8")
    assert "of 11 claims hold" in page
    assert sorted(p.stem for p in out.glob("*.svg")) == [
        "classes", "curves", "entropy", "gradients", "likeness", "minilm",
    ]  # fmt: skip


def test_tables_are_refused_where_nothing_reads_them(tmp_path):
    with pytest.raises(OptionError, match=r"'imbalance' takes no tables.*realformer"):
        run_study("imbalance", tmp_path / "x", tables=("a", "b"))
    assert list(tmp_path.iterdir()) == []


# Verdicts and drawings from made-up numbers


def outcome(architecture, share, *, rate=1e-3, warm_up=True, seed=0) -> Outcome:
    """Two points; texts and seeds differ a little, so that there is an error."""
    shares = share + 0.01 * torch.tensor([-1.0, 0.0, 1.0]) + 0.001 * seed
    shares = shares + 0.001 * torch.randn(3, generator=torch.Generator().manual_seed(seed))
    model: Any = None
    return Outcome(Cell(architecture, rate, warm_up, seed), model, {5: shares / 2, 10: shares})


def measured(
    shares=(0.4, 0.3, 0.5, 0.45),
    cold=(0.2, 0.28, 0.5, 0.45),
    first=(0.5, 1.5),
    alike=(0.9, 0.5),
    entropies=(0.4, 0.6),
    right=((0.9, 0.5), (0.5, 0.5)),
    plain=(0.1, 0.3),
    gate=(0.5, 0.5),
) -> Measured:
    """Shares are of PostLN, PreLN, RealFormer, ReZero; other pairs of RealFormer and PostLN."""
    size = dataclasses.replace(study.QUICK, shape=SHAPE, steps=10, seeds=3)
    seeds = range(1, 4)
    by_name = dict(zip(ARCHITECTURES, shares, strict=True))
    grid = [outcome(name, share) for name, share in by_name.items()]
    grid += [
        outcome(name, share, warm_up=False) for name, share in zip(ARCHITECTURES, cold, strict=True)
    ]

    def layers(values, count=3):
        pair = {"RealFormer": values[0], "PostLN": values[1]}
        return {
            name: [[pair.get(name, 0.7) + 0.001 * seed] * count for seed in seeds]
            for name in ARCHITECTURES
        }

    tuned = []
    for classes, accuracies in zip((3, 40), right, strict=True):
        target = torch.arange(200) % classes
        task = Task(f"of {classes}", classes, (target[:, None], target), (target[:, None], target))
        given = {}
        for name, accuracy in zip(("RealFormer", "PostLN"), accuracies, strict=True):
            wrong = torch.arange(200) >= 200 * accuracy
            given[name] = [torch.where(wrong, (target + 1) % classes, target) for _ in seeds]
        tuned.append(Tuned(task, given))
    about = torch.tensor([-0.01, 0.0, 0.01])
    same = torch.tensor([0.01, 0.0, -0.01])  # the other way round: a difference has an error
    ratios = {"PostLN": first[0], "PreLN": first[1]}
    return Measured(
        size=size,
        grid=grid,
        runs={n: [outcome(n, share, seed=s) for s in seeds] for n, share in by_name.items()},
        gradients={
            n: [[ratios.get(n, 1.0) + 0.01 * s, 1.0, 1.0] for s in seeds] for n in ARCHITECTURES
        },
        entropies=layers(entropies),
        alike=layers(alike, 2),
        alike_by_number=layers((0.8, 0.2), 2),
        tuned=tuned,
        minilm=[
            Introduced("none", 0.5 + about, 0.5 + about),
            Introduced("plain", plain[0] + about, plain[1] + same),
            Introduced("gate", gate[0] + about, gate[1] + same),
        ],
    )  # fmt: skip


def test_verdicts_come_from_the_numbers():
    assert [f.holds for f in findings(measured())] == [True] * 11
    for change, place in (
        ({"shares": (0.4, 0.3, 0.4, 0.45)}, 0),
        ({"shares": (0.4, 0.45, 0.5, 0.45), "cold": (0.2, 0.43, 0.5, 0.45)}, 1),
        ({"cold": (0.4, 0.28, 0.5, 0.45)}, 2),
        ({"first": (0.5, 0.4)}, 3),
        ({"first": (1.2, 1.5)}, 3),
        ({"alike": (0.4, 0.5)}, 4),
        ({"entropies": (0.7, 0.6)}, 5),
        ({"right": ((0.9, 0.5), (0.9, 0.5))}, 6),
        ({"plain": (0.5, 0.3)}, 7),
        ({"gate": (0.6, 0.5)}, 8),
        ({"plain": (0.1, 0.5)}, 9),
        ({"gate": (0.5, 0.3)}, 10),
    ):
        found = findings(measured(**change))
        assert [i for i, f in enumerate(found) if not f.holds] == [place], change


def test_the_error_of_a_difference_has_texts_and_seeds():
    a, b = torch.tensor([[0.1, 0.3], [0.3, 0.7]]), torch.zeros(2, 2)
    model: Any = None

    def outcomes(shares):
        return [Outcome(Cell("PostLN", 1e-3, True, s), model, {1: shares[s]}) for s in (0, 1)]

    mean, error = difference(outcomes(a), outcomes(b))
    assert mean == pytest.approx(0.35)
    # means of texts .2 and .5, of seeds .2 and .5: variance .045 each, over two
    assert error == pytest.approx((2 * 0.045 / 2) ** 0.5)


def test_every_drawing_has_its_numbers():
    drawn = {figure.name: figure for figure in figures(measured())}
    for figure in drawn.values():
        assert any(character.isdigit() for character in figure.panel.description)
        for svg in (figure.panel.wide, figure.panel.narrow):
            assert ElementTree.fromstring(str(svg)).tag.endswith("svg")
    for name in ("curves", "gradients", "entropy", "likeness"):
        assert all(architecture in str(drawn[name].panel.wide) for architecture in ARCHITECTURES)
    assert "of 40, 40 classes, accuracy +0.0 (+0.0 to +0.0)" in drawn["classes"].panel.description
    assert "of 3, 3 classes, accuracy +40.0" in drawn["classes"].panel.description


# The parts, against closed forms


def test_entropy_and_likeness():
    uniform, sharp = torch.full((2, 3, 4, 4), 0.25), torch.eye(4).expand(2, 3, 4, 4)
    assert entropy(uniform) == pytest.approx(1)
    assert entropy(sharp) == pytest.approx(0)
    assert likeness(sharp, sharp) == pytest.approx(1)
    assert likeness(sharp, sharp.flip(-1)) == pytest.approx(0)
    # Jensen-Shannon: the mixture (5, 1, 1, 1)/8 has 1.549 bits, the sides have 0 and 2.
    mixture = -(5 / 8) * math.log2(5 / 8) + 3 * (3 / 8)
    assert likeness(uniform, sharp) == pytest.approx(1 - (mixture - 1), abs=1e-6)
    halves = torch.stack([sharp[:, 0], uniform[:, 0]], dim=1)
    assert neighbours([halves, halves.flip(1)]) == pytest.approx([1.0])
    assert neighbours([halves, halves.flip(1)], matched=False) == pytest.approx(
        [1 - (mixture - 1)], abs=1e-6
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_are_those_the_encoder_attends_with(architecture, corpus):
    """The values, averaged by them, give what the attention layer gives."""
    model = build_encoder(architecture, SHAPE, seed=1, words=corpus.vectors).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "query" in name or "key" in name:
                weight.mul_(3)  # far from uniform, and so from another layer's
            if "alpha" in name:
                weight.fill_(0.5)
    ids, _ = mask_tokens(corpus.held_out, 0)
    weights = attention_weights(model, ids, summed=architecture == "RealFormer")
    seen = []
    for layer in layers_of(model):
        attention: Any = layer
        attention.attention.self.register_forward_hook(
            lambda module, args, out: seen.append((module.value(args[0]), out[0]))
        )
    model.base_model(input_ids=ids)
    assert len(weights) == len(seen) == SHAPE.layers
    for weight, (value, out) in zip(weights, seen, strict=True):
        heads = value.unflatten(-1, (weight.shape[1], -1)).transpose(1, 2)
        expected = (weight @ heads).transpose(1, 2).flatten(2)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_gradient_norms_are_those_of_the_loss(corpus):
    """Against a finite difference of the loss along the gradient of one layer."""
    model = build_encoder("PostLN", SHAPE, words=corpus.vectors).double()
    norms = gradient_norms(model, corpus, 4, seed=0)
    assert len(norms) == SHAPE.layers
    ids, masked, truth = draw_batch(corpus, 4, 1, 0)
    network: Any = model

    def loss():
        return network(input_ids=ids, labels=torch.where(masked, _at(masked, truth), -100)).loss

    loss().backward()
    weights = list(layers_of(model)[1].parameters())
    slopes = [weight.grad for weight in weights]
    with torch.no_grad():
        found = []
        for step in (1e-5, -1e-5):
            for weight, slope in zip(weights, slopes, strict=True):
                weight.add_(step * slope / norms[1])
            found.append(float(loss()))
            for weight, slope in zip(weights, slopes, strict=True):
                weight.sub_(step * slope / norms[1])
    assert (found[0] - found[1]) / 2e-5 == pytest.approx(norms[1], rel=1e-5)
    rezero = gradient_norms(build_encoder("ReZero", SHAPE), corpus, 4, seed=0)
    assert all(norm > 0 for norm in rezero)  # of α alone


def _at(masked, truth):
    places = torch.zeros(masked.shape, dtype=truth.dtype)
    places[masked] = truth
    return places


def test_the_four_have_the_same_size_and_the_same_start():
    """Up to LayerNorms and gates."""
    models = {name: build_encoder(name, SHAPE, seed=2) for name in ARCHITECTURES}

    def weights(model):
        return {
            name: weight for name, weight in model.named_parameters()
            if not any(part in name for part in ("LayerNorm", "layer_norm", "alpha", "gates"))
        }  # fmt: skip

    sizes = {
        name: sum(w.numel() for w in weights(model).values()) for name, model in models.items()
    }
    assert len(set(sizes.values())) == 1
    first = [weight for name, weight in weights(models["PostLN"]).items() if "layer." in name]
    for model in models.values():
        others = [weight for name, weight in weights(model).items() if "layer." in name]
        assert len(others) == len(first)
        assert all(torch.equal(a, b) for a, b in zip(first, others, strict=True))


def test_a_training_learns_and_is_the_same_again(corpus):
    """Windows of one word each: what is masked stands beside it."""
    words = SPECIAL + torch.arange(48) % 6
    one = dataclasses.replace(
        corpus, train=words[:, None].expand(-1, 10), held_out=words[:6, None].expand(-1, 10)
    )
    cell = Cell("RealFormer", 3e-3, True, seed=1)
    found = train_cell(cell, SHAPE, one, steps=40, batch=8, points=2)
    assert list(found.shares) == [20, 40]
    start = restored(build_encoder("RealFormer", SHAPE, 1, corpus.vectors), one.held_out)
    assert found.final.mean() > 0.9 > 0.5 > start.mean()
    short = [train_cell(cell, SHAPE, corpus, steps=3, batch=8, points=1) for _ in range(2)]
    weights = [torch.cat([w.flatten() for w in each.model.parameters()]) for each in short]
    assert torch.equal(*weights)


def test_batches_and_masks(corpus):
    ids, masked, truth = draw_batch(corpus, 8, 3, seed=1)
    assert (masked.sum(1) == 3).all()  # 30 % of 10
    assert (ids[masked] == MASK).all()
    assert (ids[:, 0] == FIRST).all()
    assert (ids[:, -1] == LAST).all()
    assert len(truth) == 24
    assert (truth >= SPECIAL).all()
    assert all(
        torch.equal(a, b) for a, b in zip((ids, masked), draw_batch(corpus, 8, 3, 1), strict=False)
    )
    assert not torch.equal(masked, draw_batch(corpus, 8, 4, 1)[1])
    # An epoch has every window once: 40 in five batches of 8.
    seen = torch.cat([_whole(corpus, step) for step in range(1, 6)])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, corpus.train.tolist()))
    unknown = torch.full((3, 10), UNKNOWN)
    unknown[:, :3] = SPECIAL
    _, masked = mask_tokens(unknown, 0)
    assert masked[:, 1:4].all()  # only what is known is asked for
    assert masked.sum() == 9


def _whole(corpus, step):
    ids, masked, truth = draw_batch(corpus, 8, step, seed=0)
    ids[masked] = truth
    return ids[:, 1:-1]


def test_the_better_of_two_gains_what_it_is_better_by():
    target = torch.arange(100) % 4
    task = Task("x", 4, (target[:, None], target), (target[:, None], target))
    worse = torch.where(torch.arange(100) < 30, (target + 1) % 4, target)
    found = gain(task, [target, target], [worse, target], "accuracy")
    assert found.difference == pytest.approx(0.15)
    low, high = found.interval
    assert low < 0.15 < high
    # Of a share of .3 of 100: standard error .0458, halved in the mean of two runs.
    assert np.std(found.drawn) == pytest.approx(0.0229, rel=0.1)


def test_fine_tuning_leaves_the_encoder_and_learns(corpus):
    model = build_encoder("PostLN", SHAPE, words=corpus.vectors)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    ids, _ = mask_tokens(corpus.train, 0)
    target = (corpus.train[:, 0] > SPECIAL + 10).long()
    task = Task("late or early", 2, (ids, target), (ids, target))
    given = fine_tune(model, task, epochs=8, batch=8, seed=1)
    assert (given == target).float().mean() > 0.9
    assert torch.equal(given, fine_tune(model, task, epochs=8, batch=8, seed=1))
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert set(COMPARED) <= set(ARCHITECTURES)


@pytest.mark.real
def test_the_corpus_has_no_text_on_both_sides():
    found = read_corpus(16, 100, held_out=5, texts=20)
    assert 0 < len(found.held_out) <= 5  # texts in other letters are all unknown
    assert found.vectors.shape == (100, 384)
    assert found.train.shape[1] == 14
    assert int(found.train.max()) < 100
    assert ((found.train == UNKNOWN).float().mean(1) <= 0.2).all()
    assert torch.equal(read_corpus(16, 100, held_out=5, texts=20).train, found.train)
    with pytest.raises(DataError, match="expected over 50"):
        read_corpus(16, 100, held_out=50, texts=20)
