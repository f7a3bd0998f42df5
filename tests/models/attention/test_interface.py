"""set_attention on real architectures: what it reaches, what it refuses, what it leaves alone."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from longarc.errors import ModelError, OptionError
from longarc.models.attention.interface import attention_layers, set_attention

WHOLE = {"window": 64, "num_global": 1, "num_random": 0}  # of 20 tokens: all of them


@pytest.fixture
def document():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (2, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def states(model, document):
    with torch.no_grad():
        found = model(**document).last_hidden_state
    return found[document["attention_mask"].bool()]


def test_exact_pattern_gives_exact_states_in_every_architecture(
    make_encoder, architecture, document
):
    if architecture == "mpnet":  # its attention has relative positions of its own
        pytest.skip("mpnet is refused, below")
    model = make_encoder(architecture)
    before = states(model, document)
    weights = copy.deepcopy(model.state_dict())
    assert set_attention(model, "block-sparse", **WHOLE) is model
    layers = attention_layers(model)
    assert len(layers) == {"albert": 1, "modernbert": 1}.get(architecture, 2)
    torch.testing.assert_close(states(model, document), before, rtol=1e-4, atol=1e-5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    set_attention(model, "exact")
    assert not attention_layers(model)
    assert not hasattr(model.config, "longarc")
    torch.testing.assert_close(states(model, document), before)


def test_modernbert_keeps_its_windows(make_encoder):
    model = make_encoder("modernbert")
    model.config.local_attention  # noqa: B018
    ids = torch.randint(5, 60, (1, 39), generator=torch.Generator().manual_seed(1))
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    before = states(model, whole)
    set_attention(model, "block-sparse", **WHOLE)
    torch.testing.assert_close(states(model, whole), before, rtol=1e-4, atol=1e-5)


def test_a_kernel_changes_the_states_and_its_seed_decides_how(make_encoder, document):
    model = make_encoder("bert")
    exact = states(model, document)
    set_attention(model, "performer", num_features=8)
    first = states(model, document)
    assert not torch.allclose(first, exact, atol=1e-3)
    set_attention(model, "performer", num_features=8)
    assert torch.equal(states(model, document), first)
    set_attention(model, "performer", num_features=8, seed=1)
    assert not torch.allclose(states(model, document), first, atol=1e-3)


def test_some_layers_alone(make_encoder, document):
    model = make_encoder("bert")
    set_attention(model, "performer", layers=[-1])
    assert [name for name, _ in attention_layers(model)] == ["encoder.layer.1.attention.self"]
    assert model.config.longarc["attention"]["layers"] == [1]
    for wrong in ([2], [], ["a"]):
        with pytest.raises(OptionError, match="from 0 to 1"):
            set_attention(model, "performer", layers=wrong)
    assert [name for name, _ in attention_layers(model)] == ["encoder.layer.1.attention.self"]


@pytest.mark.parametrize("name", ["performer", "linear", "block-sparse", "local-performer",
                                  "clustered", "local-clustered", "learned"])  # fmt: skip
def test_a_document_does_not_depend_on_its_padding(make_encoder, name):
    model = set_attention(make_encoder("bert"), name)
    ids = torch.randint(5, 60, (1, 17), generator=torch.Generator().manual_seed(2))
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    other = torch.randint(5, 60, (1, 33), generator=torch.Generator().manual_seed(3))
    padded = {
        "input_ids": torch.cat([torch.nn.functional.pad(ids, (0, 16)), other]),
        "attention_mask": torch.ones(2, 33, dtype=torch.long),
    }
    padded["attention_mask"][0, 17:] = 0
    with torch.no_grad():
        batched = model(**padded).last_hidden_state[0, :17]
        torch.testing.assert_close(
            batched, model(**alone).last_hidden_state[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", ["mpnet", "deberta-v2", "nystromformer", "roformer"])
def test_attention_of_its_own_is_refused(name):
    sizes = {
        "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    model = AutoModel.from_config(AutoConfig.for_model(name, **sizes))
    before = model.config._attn_implementation
    with pytest.raises(ModelError, match="cannot be replaced"):
        set_attention(model, "performer")
    assert model.config._attn_implementation == before


def test_decoders_are_refused():
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, is_decoder=True,
    )  # fmt: skip
    with pytest.raises(ModelError, match="decoder"):
        set_attention(BertModel(config), "performer")


def test_unknown_names_and_options(make_encoder):
    model = make_encoder("bert")
    with pytest.raises(OptionError, match="Did you mean performer"):
        set_attention(model, "perfomer")
    with pytest.raises(OptionError, match="Did you mean num_features"):
        set_attention(model, "performer", num_feature=3)
    with pytest.raises(OptionError, match="num_features"):
        set_attention(model, "performer", num_features=-3)
    assert not attention_layers(model)


def test_what_is_no_model_no_seed_and_no_layers(make_encoder):
    model = make_encoder("bert")
    with pytest.raises(ModelError, match="found str"):
        set_attention("minilm", "performer")
    for seed in (-1, "a", True):
        with pytest.raises(OptionError, match=f"seed.*{seed!r}"):
            set_attention(model, "performer", seed=seed)
    for layers in (1, "1", [True]):
        with pytest.raises(OptionError, match="layers is"):
            set_attention(model, "performer", layers=layers)
    assert not attention_layers(model)


@pytest.mark.parametrize("name", ["performer", "local-clustered"])
def test_masks_of_another_length_are_refused(make_encoder, name):
    model = set_attention(make_encoder("bert"), name)
    ids = torch.full((2, 20), 7)
    short = torch.ones(2, 19)
    short[0, 10:] = 0
    for mask in (short, short[0]):
        with pytest.raises(ModelError, match="attention mask has shape"):
            model(input_ids=ids, attention_mask=mask)


def test_weights_that_do_not_exist_are_not_passed_over_in_silence(make_encoder, document, caplog):
    model = set_attention(make_encoder("bert"), "performer")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model(**document, output_attentions=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert "output_attentions=True gives nothing" in caplog.text


def test_masks_for_pairs_of_tokens_are_refused(make_encoder):
    model = set_attention(make_encoder("bert"), "performer")
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ModelError, match="one value a token"):
        model(input_ids=ids, attention_mask=torch.ones(1, 1, 4, 4))


def test_gradient_checkpointing_gives_the_same_gradients(make_encoder, document):
    model = set_attention(make_encoder("bert"), "performer").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients():
        model.zero_grad()
        model(**document).last_hidden_state.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, two in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, two)
