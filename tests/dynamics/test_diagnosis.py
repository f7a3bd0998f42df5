"""Verdicts on models whose gradient is known, and how several documents become one diagnosis."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForSequenceClassification,
)

from longarc.dynamics.diagnosis import diagnose, summarize
from longarc.dynamics.findings import Finding, branch_shares, findings_of, verdict_of
from longarc.dynamics.gradient_flow import GradientFlow, InputShares, SubLayer, gradient_flow
from longarc.errors import DataError, ModelError
from longarc.models.attention.residual_interface import set_residual_attention
from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.model import RecurrentForSequenceClassification
from longarc.models.rezero import set_rezero

STEPS = 60


class Reader(nn.Module):
    """A recurrent module on given vectors; the loss reads its last state, or the mean of all."""

    def __init__(self, rnn, mean=False):
        super().__init__()
        self.rnn, self.mean = rnn, mean

    def forward(self, x):
        out = self.rnn(x)[0]
        return (out.mean(1) if self.mean else out[:, -1]).sum()


def loss(model, x):
    return model(x)


def scaled(kind, factor, **options):
    """A layer whose U is a multiple of the identity and that reads nothing."""
    rnn = kind(2, 4, batch_first=True, **options)
    with torch.no_grad():
        for weight in rnn.parameters():
            weight.zero_()
        rnn.weight_hh_l0.copy_(factor * torch.eye(4).repeat(len(rnn.weight_hh_l0) // 4, 1))
    return rnn


def found_for(model, batches=1):
    return diagnose(model.double(), [torch.ones(1, STEPS, 2).double()] * batches, loss=loss)


def test_what_vanishes():
    """At h = 0 tanh is the identity, so that ½ is left a step: 1 % within 6."""
    found = found_for(Reader(scaled(nn.RNN, 0.5)))
    (layer,) = found.recurrent
    assert layer.reach == 6
    assert layer.growth == pytest.approx(math.log(0.5))
    assert layer.norms == pytest.approx([0.5**k for k in range(STEPS)], rel=1e-5)
    (finding,) = found.findings
    assert (finding.part, finding.verdict) == ("rnn", "vanishes")
    assert "more than 6 steps back, of 60" in found.verdict
    assert "100 % of it comes back by the candidate" in found.verdict
    assert "lstm or gru" in finding.advice[0]


def test_texts_that_are_too_short_are_said_to_be_so_once():
    """Of two layers in two directions and of the inputs; with what is not too short beside it."""
    config = RecurrentConfig(
        cell="lstm", vocab_size=30, embedding_size=4, cell_size=6, num_hidden_layers=2
    )
    model = RecurrentForSequenceClassification(config).eval()

    def score(model, ids):
        return model(input_ids=ids).logits.square().sum()

    found = diagnose(model, [torch.randint(3, 30, (1, 4))], loss=score)
    assert len(found.recurrent) == 4
    (finding,) = found.findings
    assert finding.part.split(", ") == [*(layer.name for layer in found.recurrent), "inputs"]
    assert finding.verdict == "unknown"
    assert finding.said.startswith("The texts have 4 tokens, too few to say how far back the gradi")
    assert finding.said.count("(lstm)") == 4
    assert str(found) == found.verdict == finding.said
    reader = diagnose(Reader(scaled(nn.RNN, 0.5)), [torch.ones(1, 3, 2)], loss=loss)
    assert reader.verdict == (
        "The texts have 3 steps, too few to say how far back the gradient comes in rnn (rnn)."
    )


def test_what_explodes():
    rnn = scaled(nn.RNN, 1.1, nonlinearity="relu")
    nn.init.ones_(rnn.bias_ih_l0)
    found = found_for(Reader(rnn))
    assert found.recurrent[0].peak == pytest.approx(1.1 ** (STEPS - 1), rel=1e-4)
    (finding,) = found.findings
    assert finding.verdict == "explodes"
    assert "Clip" in finding.advice[0]
    assert "10.0% a step" in finding.advice[-1]
    assert f"{1 / 1.1:.2f}" in finding.advice[-1]


@pytest.mark.parametrize(
    ("kept", "verdict"), [(0.999, "steady"), (0.92, "fades"), (0.5, "vanishes")]
)
def test_what_a_forget_gate_keeps(kept, verdict):
    """Without any U the LSTM's c fades by its forget gate alone."""
    rnn = scaled(nn.LSTM, 0.0)
    with torch.no_grad():
        rnn.bias_hh_l0[4:8] = math.log(kept / (1 - kept))
    found = found_for(Reader(rnn))
    (layer,) = found.recurrent
    assert layer.carry == pytest.approx(kept, rel=1e-4)
    assert layer.carried_by == "carry"
    (finding,) = found.findings
    assert finding.verdict == verdict
    if verdict == "steady":
        assert found.verdict == "The gradient neither vanishes nor explodes."
        assert not finding.advice
        return
    # The bias b that the advice names keeps 1 %: σ(b)^59 = .01.
    (advice,) = (each for each in finding.advice if "bias" in each)
    named = float(advice.split("bias at ")[1].split(" ")[0])
    assert (1 / (1 + math.exp(-named))) ** (STEPS - 1) == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize(("kind", "name"), [(nn.LSTM, "lstm"), (nn.GRU, "gru")])
def test_a_subclass_is_the_cell_that_it_is_made_of(kind, name):
    own = type("Own", (kind,), {})
    plain, found = (found_for(Reader(scaled(each, 0.1))) for each in (kind, own))
    assert found.recurrent[0].cell == name
    assert found.to_dict() == plain.to_dict()
    assert found.findings[0].verdict == "vanishes"


def test_pooling_gives_far_inputs_a_short_way():
    class Embedded(nn.Module):
        def __init__(self, mean):
            super().__init__()
            torch.manual_seed(0)
            self.words = nn.Embedding(9, 2)
            self.reader = Reader(nn.RNN(2, 4, batch_first=True), mean=mean)
            with torch.no_grad():
                self.reader.rnn.weight_hh_l0.mul_(0.3)

        def forward(self, ids):
            return self.reader(self.words(ids))

    ids = torch.arange(STEPS)[None] % 9
    last, mean = (diagnose(Embedded(mean), [ids], loss=loss) for mean in (False, True))
    verdicts = {f.part: f.verdict for f in last.findings}
    assert verdicts == {"reader.rnn": "vanishes", "inputs": "vanishes"}
    assert last.inputs.tenths[-1] == pytest.approx(1, abs=0.05)
    verdicts = {f.part: f.verdict for f in mean.findings}
    assert verdicts == {"reader.rnn": "vanishes", "inputs": "steady"}
    assert "short way to the loss" in mean.findings[0].advice[0]


def test_documents_become_medians():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8,
        vocab_size=30,
    )  # fmt: skip
    model = set_rezero(BertForSequenceClassification(config)).eval()
    batches = [
        {"input_ids": torch.randint(3, 30, (1, n)), "labels": torch.tensor([n % 2])}
        for n in (12, 20, 31)
    ]
    done = []
    found = diagnose(model, batches, advance=done.append)
    flows = [gradient_flow(model, batch) for batch in batches]
    assert done == [1, 1, 1]
    assert found.loss == statistics.median(f.loss for f in flows)
    for place, sublayer in enumerate(found.sublayers):
        each = [f.sublayers[place].gradient for f in flows]
        assert sublayer.gradient == statistics.median(each)
    # ReZero's branches are shut at the start: the stream goes through as it is.
    assert found.depth_ratio == pytest.approx(1)
    (depth,) = (f for f in found.findings if f.part == "depth")
    assert depth.verdict == "steady"
    assert "the residual path carries most of it, 0.0 % through attention" in depth.said
    assert "6 of 6 sub-layers change the stream by less than 5 %" in depth.advice[0]
    assert found.inputs.length == 20
    assert sum(found.inputs.tenths) == pytest.approx(1, rel=1e-5)
    assert found.inputs.within[-1] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("own", [False, True])
def test_padding_changes_nothing_where_the_batch_has_a_mask(own):
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        vocab_size=30,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()

    def from_logits(model, batch):
        return nn.functional.cross_entropy(model(**batch).logits, torch.tensor([1]))

    ids, more = torch.randint(3, 30, (1, 12)), {} if own else {"labels": torch.tensor([1])}
    padded = nn.functional.pad(ids, (0, 9))
    found, alone, unmasked = (
        diagnose(model, [batch | more], loss=from_logits if own else None)
        for batch in (
            {"input_ids": padded, "attention_mask": (padded > 0).long()},
            {"input_ids": ids},
            {"input_ids": padded},
        )
    )
    assert found.inputs.length == alone.inputs.length == 12
    for part in ("within", "tenths"):
        one, other = getattr(found.inputs, part), getattr(alone.inputs, part)
        assert one == pytest.approx(other, rel=1e-3)
    for one, other in zip(found.sublayers, alone.sublayers, strict=True):
        assert one.size == pytest.approx(other.size, rel=1e-4)
        assert one.change == pytest.approx(other.change, rel=1e-3)
    assert unmasked.inputs.length == 21


def test_post_ln_loses_gradient_on_its_way_down_and_pre_ln_gains_it():
    """Twelve layers at a start at which branches count: the published difference."""
    shape = {
        "hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2,
        "intermediate_size": 64, "vocab_size": 60, "max_position_embeddings": 40,
        "initializer_range": 32**-0.5,
    }  # fmt: skip
    builds = {
        "post": lambda: BertForSequenceClassification(BertConfig(**shape)),
        "residual": lambda: set_residual_attention(
            BertForSequenceClassification(BertConfig(**shape))
        ),
        "pre": lambda: RobertaPreLayerNormForSequenceClassification(
            RobertaPreLayerNormConfig(**shape, pad_token_id=1)
        ),
    }
    found = {}
    for name, build in builds.items():
        torch.manual_seed(0)
        model = build().eval()
        batch = {"input_ids": torch.randint(5, 60, (4, 24)), "labels": torch.tensor([0, 1, 0, 1])}
        found[name] = diagnose(model, [batch])
    assert found["post"].depth_ratio < found["residual"].depth_ratio < 1 < found["pre"].depth_ratio
    growth = {
        name: each.sublayers[-1].size / each.sublayers[0].size for name, each in found.items()
    }
    assert growth["post"] == pytest.approx(1, rel=1e-3)
    assert growth["pre"] > 2
    assert found["pre"].sublayers[-1].change < 0.5 * found["post"].sublayers[-1].change


def of_depth(gradients):
    sublayers = tuple(
        SubLayer(i, "attention", g, 0.8 * g, 0.6 * g, 1.0, 1.0, 0.5, 0.9)
        for i, g in enumerate(gradients)
    )
    return GradientFlow(1.0, 1.0, None, sublayers, ())


@pytest.mark.parametrize(
    ("gradients", "verdict", "said"),
    [
        ((0.001, 0.005, 0.5, 1.0), "vanishes", "below 1 % of it 2 layers down"),
        ((0.05, 0.4, 1.0), "fades", "it is 0.05 times that of the last"),
        ((0.5, 0.9, 1.0), "steady", "is even"),
        ((30.0, 4.0, 1.0), "grows", "it is 30.0 times that of the last"),
        ((400.0, 4.0, 1.0), "explodes", "it is 400 times that of the last"),
    ],
)
def test_verdicts_over_depth(gradients, verdict, said):
    (finding,) = summarize([of_depth(gradients)]).findings
    assert finding.verdict == verdict
    assert said in finding.said
    assert "attention carries most of it, 64 %" in finding.said
    assert bool(finding.advice) == (verdict != "steady")


def test_shares_of_branches():
    flow = of_depth((2.0, 1.0))
    assert branch_shares(flow.sublayers) == {"attention": pytest.approx(0.64)}
    unknown = [SubLayer(0, "layer", 1.0, None, None, 1.0, 1.0, 0.5, 0.9)]
    assert branch_shares(unknown) == {}


@pytest.mark.parametrize("length", [1, 4, 10, 23])
def test_tenths_of_even_shares_are_even(length):
    even = InputShares(((1 / length,) * length,))
    found = summarize([GradientFlow(1.0, 1.0, even, (), ())])
    assert found.inputs.tenths == pytest.approx([0.1] * 10, abs=1e-6)


def test_tenths_by_hand():
    """Of five tokens, the last first: each is two tenths."""
    shares = (0.4, 0.3, 0.2, 0.1, 0.0)
    found = summarize([GradientFlow(1.0, 1.0, InputShares((shares,)), (), ())])
    wanted = [0.0, 0.0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2]
    assert found.inputs.tenths == pytest.approx(wanted, abs=1e-6)
    assert found.inputs.within == pytest.approx([0.4, 0.7, 0.9, 1.0, 1.0], abs=1e-6)
    assert (found.inputs.reach, found.inputs.length) == (3, 5)
    assert found.findings[0].verdict == "unknown"


def test_texts_of_one_batch_count_as_texts_of_several():
    """Of a mean of embeddings each token has the same share of its own text."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.out = nn.Embedding(30, 4), nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask):
            seen = attention_mask[..., None]
            return self.out((self.words(input_ids) * seen).sum(1) / seen.sum(1))

    def squared(model, batch):
        return model(**batch).square().sum()

    mask = (torch.arange(40) < torch.tensor([[10], [40]])).long()
    both = {"input_ids": torch.randint(0, 30, (2, 40)), "attention_mask": mask}
    first, second = ({name: x[i : i + 1] for name, x in both.items()} for i in (0, 1))
    together = diagnose(Mean(), [both], loss=squared).inputs
    apart = diagnose(Mean(), [first, second], loss=squared).inputs
    for found in (together, apart):
        assert found.within[9] == pytest.approx((1 + 10 / 40) / 2, rel=1e-4)
        assert found.tenths == pytest.approx([0.1] * 10, rel=1e-4)
        assert found.reach == (9 + 39) / 2
        assert found.length == (10 + 40) / 2


def test_the_gravest_comes_first():
    order = ["steady", "fades", "explodes", "vanishes"]
    flows = [of_depth((g, 1.0)) for g in (0.5, 0.05, 200.0, 0.001)]
    findings = [summarize([flow]).findings[0] for flow in flows]
    assert [f.verdict for f in findings] == order
    assert verdict_of(sorted(findings, key=lambda f: f.verdict != "explodes")) == findings[2].said
    assert verdict_of([Finding("depth", "unknown", "Too short.")]) == "Too short."


def test_advice_is_given_once():
    rnn = scaled(nn.LSTM, 0.0, bidirectional=True)
    found = found_for(Reader(rnn))
    assert [f.verdict for f in found.findings] == ["vanishes", "vanishes"]
    assert found.findings[0].advice
    assert found.findings[1].advice == ()
    assert findings_of(found) == found.findings


def test_everything_is_plain_even_where_nothing_is_left():
    rnn = scaled(nn.RNN, 1.0, nonlinearity="relu")
    nn.init.constant_(rnn.bias_ih_l0, -1.0)  # every unit is dead
    found = found_for(Reader(rnn), batches=2)
    assert found.recurrent[0].growth == -math.inf
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["recurrent"][0]["growth"] is None
    assert plain["recurrent"][0]["carried_by"] == "candidate"
    assert plain["batches"] == 2
    assert str(found).startswith(found.verdict)


def test_weights_by_distance_when_asked_for():
    model = Reader(scaled(nn.RNN, 0.5)).double()
    nn.init.ones_(model.rnn.bias_ih_l0)
    batch = torch.ones(1, STEPS, 2).double()
    found = diagnose(model, [batch, batch], loss=loss, exact=1)
    (layer,) = found.recurrent
    assert len(layer.parameters) == STEPS
    assert layer.parameter_reach < 10
    assert diagnose(model, [batch], loss=loss).recurrent[0].parameters is None


def test_bad_input_is_refused():
    model = Reader(scaled(nn.RNN, 0.5))
    with pytest.raises(DataError, match="no batch"):
        diagnose(model, [], loss=loss)
    with pytest.raises(ModelError, match="The batch is a Tensor"):
        diagnose(model, [torch.ones(1, 3, 2)])
    with pytest.raises(ModelError, match="No weight"):
        diagnose(model.requires_grad_(False), [torch.ones(1, 3, 2)], loss=loss)
