"""Gradient flow of whole models, against backward passes that are taken apart by hand."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForSequenceClassification,
)

from longarc.dynamics.gradient_flow import gradient_flow
from longarc.dynamics.gradient_share import full_adjoints, parameter_gradient
from longarc.dynamics.recurrent_flow import _errors, _final, _repeat
from longarc.dynamics.watching import Watch
from longarc.errors import ModelError
from longarc.models.attention.residual_interface import set_residual_attention
from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.model import RecurrentForSequenceClassification
from longarc.models.recurrent.output_gated_gru import OutputGatedGRU
from longarc.models.rezero import set_rezero

LENGTHS = torch.tensor([9, 4, 6])
MASK = (torch.arange(9) < LENGTHS[:, None]).long()
TOKENS = torch.randint(3, 30, (3, 9), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": TOKENS, "attention_mask": MASK, "labels": torch.tensor([0, 1, 1])}
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "vocab_size": 30, "max_position_embeddings": 16, "num_labels": 2,
}  # fmt: skip


def bert(**more):
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SMALL, **more)).eval()


def prelayernorm(**more):
    torch.manual_seed(0)
    config = RobertaPreLayerNormConfig(**SMALL, pad_token_id=1, **more)
    return RobertaPreLayerNormForSequenceClassification(config).eval()


def modernbert():
    torch.manual_seed(0)
    config = ModernBertConfig(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return ModernBertForSequenceClassification(config).eval()


def distilbert():
    torch.manual_seed(0)
    config = DistilBertConfig(
        dim=16, n_layers=3, n_heads=2, hidden_dim=24, vocab_size=30, max_position_embeddings=16
    )
    return DistilBertForSequenceClassification(config).eval()


BUILDERS = {
    "bert": bert,
    "realformer": lambda: set_residual_attention(bert()),
    "rezero": lambda: set_rezero(bert()),
    "prelayernorm": prelayernorm,
    "modernbert": modernbert,
    "distilbert": distilbert,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_norms_are_those_of_a_backward_pass(name):
    model = BUILDERS[name]()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    flow = gradient_flow(model, BATCH)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    assert [(s.layer, s.part) for s in flow.sublayers] == [
        (layer, part) for layer in range(3) for part in ("attention", "feed-forward")
    ]
    out = model(**BATCH, output_hidden_states=True)
    streams = list(out.hidden_states[:3])  # what enters each layer
    gradients = torch.autograd.grad(out.loss, streams, retain_graph=True)
    found = [s for s in flow.sublayers if s.part == "attention"]
    for sublayer, stream, gradient in zip(found, streams, gradients, strict=True):
        assert sublayer.gradient == pytest.approx(float(gradient.norm()), rel=1e-4)
        rms = stream[MASK.bool()].square().mean().sqrt()
        assert sublayer.size == pytest.approx(float(rms.detach()), rel=1e-4)
    out.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    squares = {n: float(gradient.square().sum()) for n, gradient in gradients.items()}
    assert flow.loss == pytest.approx(float(out.loss))
    assert flow.gradient == pytest.approx(math.sqrt(sum(squares.values())), rel=1e-4)
    of_layers = sum(v for n, v in squares.items() if re.search(r"layers?\.\d", n))
    assert sum(s.parameters**2 for s in flow.sublayers) == pytest.approx(of_layers, rel=1e-3)
    assert flow.depth_ratio == pytest.approx(found[0].gradient / found[-1].gradient)
    assert flow.recurrent == ()


@pytest.mark.parametrize("name", ["bert", "realformer", "prelayernorm", "modernbert", "distilbert"])
@pytest.mark.parametrize("part", ["attention", "feed-forward"])
def test_the_residual_part_is_what_is_left_when_the_branch_is_cut(name, part):
    """With the branch's input detached, the stream's gradient is that of the residual alone."""
    model = BUILDERS[name]()
    flow = gradient_flow(model, BATCH)
    with Watch(model) as watch:
        model(**BATCH)
    index = next(i for i, s in enumerate(flow.sublayers) if (s.layer, s.part) == (1, part))
    entry = watch.entries[index].branch.entry
    kept = []

    def cut(_module, args):
        kept.append(args[0])
        return (args[0].detach(), *args[1:])

    hook = entry.register_forward_pre_hook(cut)
    loss = model(**BATCH).loss
    hook.remove()
    (residual,) = torch.autograd.grad(loss, kept)
    assert flow.sublayers[index].residual == pytest.approx(float(residual.norm()), rel=1e-3)
    assert flow.sublayers[index].through > 0


def test_a_branch_that_is_zero_takes_no_part():
    """ReZero at its start: every layer hands the stream on as it is."""
    for sublayer in gradient_flow(set_rezero(bert()), BATCH).sublayers:
        assert sublayer.through == 0
        assert sublayer.change == 0
        assert sublayer.similarity == pytest.approx(1)


def test_the_stream_grows_with_pre_ln_alone():
    sizes = {
        build.__name__: [
            s.size for s in gradient_flow(build(initializer_range=0.5), BATCH).sublayers
        ]
        for build in (bert, prelayernorm)
    }
    assert sizes["bert"] == pytest.approx([1.0] * 6, rel=1e-3)
    assert sizes["prelayernorm"] == sorted(sizes["prelayernorm"])


def test_layers_whose_branches_are_unknown_are_followed_as_a_whole():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.some_attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return x + self.some_attention(x, x, x)[0]

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(30, 8)
            self.layers = nn.ModuleList([Layer(), Layer()])
            self.head = nn.Linear(8, 2)

        def forward(self, ids):
            x = self.words(ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x.mean(1))

    flow = gradient_flow(
        Encoder(), TOKENS, loss=lambda model, ids: F.cross_entropy(model(ids), BATCH["labels"])
    )
    assert [(s.layer, s.part, s.through) for s in flow.sublayers] == [
        (0, "layer", None), (1, "layer", None)
    ]  # fmt: skip
    assert flow.depth_ratio > 0


def test_inputs_by_distance_from_the_end():
    model = bert()
    vectors = model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    rest = {k: v for k, v in BATCH.items() if k != "input_ids"}
    (gradient,) = torch.autograd.grad(model(inputs_embeds=vectors, **rest).loss, vectors)
    flow = gradient_flow(model, BATCH)
    for distance in range(9):
        shares = []
        for b, length in enumerate(LENGTHS.tolist()):
            norms = gradient[b, :length].norm(dim=-1)
            if distance < length:
                shares.append(float(norms[length - 1 - distance] / norms.sum()))
        assert flow.inputs.shares[distance] == pytest.approx(sum(shares) / len(shares), rel=1e-4)
    assert flow.inputs.length == 6
    assert flow.inputs.reach == 5
    assert [len(text) for text in flow.inputs.texts] == LENGTHS.tolist()
    assert flow.to_dict()["inputs"]["shares"] == flow.inputs.shares
    # A frozen table has no gradient of its own, and its vectors still do.
    frozen = bert()
    frozen.get_input_embeddings().requires_grad_(False)
    assert gradient_flow(frozen, BATCH).inputs.shares == pytest.approx(flow.inputs.shares, rel=1e-4)


class Reader(nn.Module):
    """Embeddings, a recurrent module in one of the ways that people call it, a classifier."""

    def __init__(self, kind, how, **options):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(30, 5)
        self.rnn = kind(5, 6, batch_first=how != "time first", **options)
        self.how = how
        width = 6 * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask, labels):
        x = self.words(input_ids)
        lengths = attention_mask.sum(1)
        if self.how == "final states":
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            finals = self.rnn(packed)[1]
            h = finals[0] if isinstance(finals, tuple) else finals
            codes = h[-2:].transpose(0, 1).flatten(1) if self.rnn.bidirectional else h[-1]
        elif self.how == "packed mean":
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            codes = out.sum(1) / lengths[:, None]
        elif self.how == "time first":
            out = self.rnn(x.transpose(0, 1))[0].transpose(0, 1)
            codes = (out * attention_mask[..., None]).sum(1) / lengths[:, None]
        else:  # padding is read
            codes = self.rnn(x)[0].mean(1)
        return type("Output", (), {"loss": F.cross_entropy(self.head(codes), labels)})


HOWS = ("final states", "packed mean", "time first", "padding is read")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU, OutputGatedGRU])
def test_a_recurrent_modules_gradient_is_regained(kind, how):
    """Errors that enter each layer, followed back by decomposed steps, give torch's dL/dU."""
    model = Reader(kind, how, num_layers=2, bidirectional=how != "time first").double()
    weights = dict(model.named_parameters())
    with Watch(model) as watch:
        loss = model(**BATCH).loss
    (called,) = watch.calls
    wanted = [called.data, *called.finals]
    gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    gradient_of = {id(t): g for t, g in zip(wanted, gradients, strict=True)}
    kept = slice(0, 3)
    runs = _repeat(called, MASK.bool(), kept)
    finals = [_final(f, gradient_of, kept) for f in called.finals]
    error = called.error(gradient_of[id(called.data)])
    for run, entering in zip(runs, _errors(runs, error, finals), strict=True):
        jacobians = run.jacobians()
        found = parameter_gradient(jacobians, full_adjoints(jacobians, entering)).flatten(0, 1)
        name = f"rnn.weight_hh_l{run.layer}" + "_reverse" * run.reverse
        (expected,) = torch.autograd.grad(loss, weights[name], retain_graph=True)
        torch.testing.assert_close(found, expected)
    flow = gradient_flow(model, BATCH, exact=True)
    assert len(flow.recurrent) == len(runs)
    assert flow.sublayers == ()
    for one in flow.recurrent:
        assert one.length == 9
        assert sum(one.terms.values()) == pytest.approx(1)
        assert len(one.norms) == len(one.parameters) == 9
        assert one.norms[0] == 1
        assert one.carried_by in one.terms
        assert one.parameter_reach <= 8


@pytest.mark.parametrize("cell", ["rnn", "relu-rnn", "lstm", "gru", "output-gated-gru"])
def test_a_recurrent_encoder_wherever_its_padding_lies(cell):
    """longarc's own reads both ends and moves tokens to the front: the same flow either way."""
    torch.manual_seed(0)
    model = RecurrentForSequenceClassification(
        RecurrentConfig(
            cell=cell, vocab_size=30, embedding_size=6, cell_size=5, num_hidden_layers=2,
            pooling="last", num_labels=2,
        )
    ).eval()  # fmt: skip

    def loss(model, batch):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return F.cross_entropy(model(**inputs).logits, batch["labels"])

    right = gradient_flow(model, BATCH, loss=loss, exact=True)
    names = [f"recurrent.layers.{i}.{way}" for i in (0, 1) for way in ("onward", "returning")]
    assert [one.name for one in right.recurrent] == names
    assert {one.cell for one in right.recurrent} == {cell}
    left = [torch.cat([row[n:], row[:n]]) for row, n in zip(TOKENS, LENGTHS, strict=True)]
    mask = torch.stack(
        [torch.cat([row[n:], row[:n]]) for row, n in zip(MASK, LENGTHS, strict=True)]
    )
    moved = {"input_ids": torch.stack(left), "attention_mask": mask, "labels": BATCH["labels"]}
    other = gradient_flow(model, moved, loss=loss, exact=True)
    assert other.inputs.shares == pytest.approx(right.inputs.shares, rel=1e-3)
    for one, two in zip(right.recurrent, other.recurrent, strict=True):
        assert one.norms == pytest.approx(two.norms, rel=1e-3)
        assert one.parameters == pytest.approx(two.parameters, rel=1e-3)


def test_growth_shows_what_vanishes_and_what_explodes():
    for scale, sign in ((0.2, -1), (3.0, 1)):
        model = Reader(nn.RNN, "final states", nonlinearity="relu")
        with torch.no_grad():
            nn.init.eye_(model.rnn.weight_hh_l0).mul_(scale)
            nn.init.ones_(model.rnn.bias_ih_l0)
        (flow,) = gradient_flow(model, BATCH).recurrent
        assert flow.cell == "relu-rnn"
        assert flow.name == "rnn"
        # At the start of a text some units may not be on: the rate is the scale's, or nearly.
        assert flow.growth == pytest.approx(math.log(scale), abs=0.3)
        assert math.copysign(1, flow.growth) == sign
        assert (flow.reach < 4) == (sign < 0)


def test_bad_input_is_refused():
    with pytest.raises(ModelError, match="requires a gradient"):
        gradient_flow(bert().requires_grad_(False), BATCH)
    with pytest.raises(ModelError, match="returned no loss"):
        gradient_flow(bert(), {k: v for k, v in BATCH.items() if k != "labels"})
    with pytest.raises(ModelError, match="no scalar tensor"):
        gradient_flow(bert(), BATCH, loss=lambda model, batch: model(**batch).logits)
    training = bert().train()
    training.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ModelError, match="gradient checkpointing"):
        gradient_flow(training, BATCH)
