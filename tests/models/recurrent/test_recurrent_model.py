"""Recurrent encoders: padding, derivatives, starts, and being ordinary transformers models."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from longarc.errors import OptionError
from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.model import (
    RecurrentForMaskedLM,
    RecurrentForSequenceClassification,
    RecurrentModel,
)
from longarc.models.recurrent.options import CELLS

POOLINGS = ("last", "mean", "max", "attention")


def small(**options) -> RecurrentConfig:
    sizes = {"vocab_size": 40, "embedding_size": 5, "cell_size": 6, "num_labels": 3}
    return RecurrentConfig(**{**sizes, "initializer_range": 0.5, **options})


def classifier(**options) -> RecurrentForSequenceClassification:
    torch.manual_seed(0)
    model = RecurrentForSequenceClassification(small(**options)).eval()
    if model.pooling.query is not None:  # it starts at 0, where attention is the mean
        nn.init.normal_(model.pooling.query)
    return model


DOCUMENTS = [[7, 8, 9, 10, 11], [5], [3, 4, 3, 6], [12, 12, 13, 2, 1, 9, 30]]


def padded(side: str, width: int = 9) -> dict[str, torch.Tensor]:
    """All documents in one batch; ``hole`` puts padding between two tokens."""
    ids = torch.zeros(len(DOCUMENTS), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, words in enumerate(DOCUMENTS):
        places = {
            "right": range(len(words)),
            "left": range(width - len(words), width),
            "hole": [*range(len(words) - 1), width - 1],
        }[side]
        ids[i, list(places)] = torch.tensor(words)
        mask[i, list(places)] = 1
    ids[mask == 0] = torch.randint(1, 40, (int((mask == 0).sum()),))  # whatever is in the padding
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("pooling", POOLINGS)
def test_it_can_be_cast_to_half_precision(pooling):
    model = classifier(pooling=pooling).eval()
    exact = model(**padded("right")).logits
    found = model.bfloat16()(**padded("right")).logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_never_changes_a_result(cell, both, pooling):
    model = classifier(cell=cell, bidirectional=both, pooling=pooling, num_hidden_layers=2)
    alone = torch.cat([model(torch.tensor([words])).logits for words in DOCUMENTS])
    gradients = []
    for side in ("right", "left", "hole"):
        model.zero_grad()
        logits = model(**padded(side)).logits
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-6)
        logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_states_are_those_of_torch_on_packed_documents(cell):
    torch.manual_seed(0)
    model = RecurrentModel(small(cell=cell)).double().eval()
    batch = padded("right")
    found = model(**batch, output_hidden_states=True)
    layer = model.layers[0]
    kind = type(layer.onward)
    more = {"nonlinearity": layer.onward.nonlinearity} if kind is nn.RNN else {}
    joint = kind(5, 6, batch_first=True, bidirectional=True, **more).double()
    state = dict(layer.onward.state_dict())
    state |= {f"{n}_reverse": p for n, p in layer.returning.state_dict().items()}
    joint.load_state_dict(state)
    lengths = batch["attention_mask"].sum(1)
    embedded = model.embeddings(batch["input_ids"])
    packed = pack_padded_sequence(embedded, lengths, True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(joint(packed)[0], batch_first=True, total_length=9)
    torch.testing.assert_close(found.last_hidden_state, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.hidden_states[-1], expected, rtol=0, atol=1e-12)
    assert len(found.hidden_states) == 2


def test_poolings_are_what_they_say():
    batch = padded("left")
    models = {pooling: classifier(pooling=pooling) for pooling in POOLINGS}
    states = models["mean"].recurrent(**batch).last_hidden_state
    for i, words in enumerate(DOCUMENTS):
        own = states[i, -len(words) :]
        expected = {
            "last": torch.cat([own[-1, :6], own[0, 6:]]),
            "mean": own.mean(0),
            "max": own.amax(0),
        }
        attention = models["attention"].pooling
        scores = torch.tanh(attention.keys(own)) @ attention.query
        expected["attention"] = (scores.softmax(0)[:, None] * own).sum(0)
        for pooling, wanted in expected.items():
            code = models[pooling].pooling(states, batch["attention_mask"])[i]
            torch.testing.assert_close(code, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_document_without_a_token_is_finite(pooling):
    model = classifier(pooling=pooling)
    batch = padded("right")
    batch["attention_mask"][1] = 0
    logits = model(**batch).logits
    torch.testing.assert_close(logits[1], model.classifier.bias)
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("cell", CELLS)
def test_embeddings_stand_for_ids(cell):
    model = classifier(cell=cell)
    batch = padded("left")
    ids = batch.pop("input_ids")
    by_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids), **batch).logits
    torch.testing.assert_close(by_embeddings, model(ids, **batch).logits)


@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives_and_forward_mode_where_attention_has_them(cell):
    model = classifier(cell=cell).double()
    batch = padded("left")
    embedded = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()

    def run(embedded):
        return model(inputs_embeds=embedded, **batch).logits.tanh()

    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(run, (embedded,), atol=1e-4)
        direction = torch.randn_like(embedded)
        _, exact = torch.func.jvp(run, (embedded,), (direction,))
    step = 1e-6 * direction
    numeric = (run(embedded + step) - run(embedded - step)) / 2e-6
    torch.testing.assert_close(exact, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cell", CELLS)
def test_starts_are_orthogonal_and_the_forget_gate_is_open(cell):
    model = RecurrentModel(small(cell=cell, num_hidden_layers=2))
    for layer, name in itertools.product(model.layers, ("onward", "returning")):
        held = getattr(layer, name)
        for part in held.weight_hh_l0.split(6):
            torch.testing.assert_close(part @ part.T, torch.eye(6), atol=1e-5, rtol=0)
        biases = held.bias_ih_l0 + held.bias_hh_l0
        expected = torch.zeros_like(biases)
        if cell == "lstm":
            expected[6:12] = 1
        assert torch.equal(biases, expected)


def test_variational_dropout_is_the_same_at_each_step_and_another_for_each_document():
    model = RecurrentModel(small(embedding_dropout=0.5)).train()
    dropped = model.embedding_dropout(torch.ones(50, 4, 10))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert len(dropped[:, 0].unique(dim=0)) > 40
    model.eval()
    assert torch.equal(model.embedding_dropout(dropped), dropped)


@pytest.mark.parametrize("cell", CELLS)
def test_saved_models_open_with_the_auto_classes(cell, tmp_path):
    torch.manual_seed(0)
    kinds = {
        AutoModel: RecurrentModel,
        AutoModelForSequenceClassification: RecurrentForSequenceClassification,
        AutoModelForMaskedLM: RecurrentForMaskedLM,
    }
    batch = padded("right")
    for auto, kind in kinds.items():
        model = kind(small(cell=cell, pooling="attention")).eval()
        model.save_pretrained(tmp_path)
        again, found = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is kind
        assert not found["missing_keys"]
        assert not found["unexpected_keys"]
        assert again.config.to_dict() == model.config.to_dict() | {
            "architectures": [kind.__name__], "dtype": again.config.to_dict()["dtype"],
            "_name_or_path": again.config.to_dict()["_name_or_path"],
        }  # fmt: skip
        assert torch.equal(again.eval()(**batch)[0], model(**batch)[0])
    assert AutoConfig.from_pretrained(tmp_path).cell == cell


def test_masked_language_model_ties_its_output_and_learns():
    torch.manual_seed(0)
    model = RecurrentForMaskedLM(small(cell="gru"))
    assert model.decoder.weight is model.recurrent.embeddings.weight
    ids = torch.arange(1, 13).repeat(4, 1)
    masked, labels = ids.clone(), torch.full_like(ids, -100)
    masked[:, 5], labels[:, 5] = 39, 6
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        loss = model(input_ids=masked, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("cell", ["lstm", "output-gated-gru"])
def test_gradient_checkpointing_changes_no_gradient(cell):
    model = classifier(cell=cell, num_hidden_layers=2, classifier_dropout=0.0).train()
    batch, found = padded("left"), []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model.zero_grad()
        model(**batch).logits.square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])


def test_states_keep_float32_in_mixed_precision():
    model = classifier()
    with torch.autocast("cpu", torch.bfloat16):
        states = model.recurrent(**padded("right")).last_hidden_state
    assert states.dtype == torch.float32


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"cell": "lstn"}, "Did you mean lstm"),
        ({"pooling": "maximum"}, "Did you mean max"),
        ({"cell_size": 0}, "cell_size"),
        ({"embedding_dropout": 1.0}, "embedding_dropout"),
    ],
)
def test_a_wrong_configuration_is_told(wrong, told):
    with pytest.raises(OptionError, match=told):
        small(**wrong)
