"""Stretched and kernelised models, saved and opened again; plain transformers refuses them."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers import AutoModelForSequenceClassification as AutoClassifier

from longarc.errors import ModelError
from longarc.models.attention.interface import attention_layers, set_attention
from longarc.models.loading import load_classifier, load_model, usable_length
from longarc.models.mean_pooled import from_encoder
from longarc.models.positions import stretch_positions
from longarc.models.record import recorded_changes

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "num_labels": 3,
}  # fmt: skip
FAMILIES = {
    "bert": {}, "ernie": {}, "electra": {"embedding_size": 8}, "albert": {"embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "roberta": {"pad_token_id": 1}, "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1}, "data2vec-text": {"pad_token_id": 1},
    "roberta-prelayernorm": {"pad_token_id": 1}, "mpnet": {"pad_token_id": 1},
}  # fmt: skip
KINDS = {"encoder": AutoModel, "classifier": AutoClassifier, "masked": AutoModelForMaskedLM}
IDS = torch.randint(5, 60, (2, 100), generator=torch.Generator().manual_seed(0))


def build(kind, family):
    torch.manual_seed(0)
    return KINDS[kind].from_config(AutoConfig.for_model(family, **SIZES | FAMILIES[family])).eval()


def first_output(model):
    with torch.no_grad():
        return model(input_ids=IDS)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stretched_model_opens_as_it_was(tmp_path, kind, family):
    model = stretch_positions(build(kind, family), 100)
    assert model.config.model_type == f"longarc-{family}"
    model.save_pretrained(tmp_path)
    opened = load_model(tmp_path)
    assert type(opened) is type(model)
    assert recorded_changes(opened.config) == recorded_changes(model.config)
    assert usable_length(tmp_path) == 100
    assert torch.equal(first_output(opened), first_output(model))
    for auto in (AutoModel, AutoClassifier):
        with pytest.raises(ValueError, match="model type `longarc-"):
            auto.from_pretrained(tmp_path)


@pytest.mark.parametrize("method", ["copy", "interpolate"])
def test_larger_tables_open_in_plain_transformers(tmp_path, method):
    model = stretch_positions(build("classifier", "roberta"), 100, method=method)
    model.save_pretrained(tmp_path)
    assert torch.equal(first_output(AutoClassifier.from_pretrained(tmp_path)), first_output(model))
    assert torch.equal(first_output(load_model(tmp_path)), first_output(model))


@pytest.mark.parametrize("options", [
    {"name": "performer", "num_features": 16, "seed": 3}, {"name": "learned"},
    {"name": "local-clustered", "layers": [1]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_kernel_opens_as_it_was(tmp_path, options, wrapped):
    encoder = build("encoder", "bert")
    model = from_encoder(encoder, num_labels=3).eval() if wrapped else encoder
    stretch_positions(model, 100)
    set_attention(model, **options)
    with torch.no_grad():  # as if trained
        for _, layer in attention_layers(model):
            for parameter in layer.attention_kernel.parameters():
                parameter.add_(torch.randn(parameter.shape) / 4)
    model.save_pretrained(tmp_path)
    opened = load_model(tmp_path)
    assert torch.equal(first_output(opened), first_output(model))
    assert (
        "_name_or_path" not in json.loads((tmp_path / "config.json").read_text()).get("encoder", {})
        or not json.loads((tmp_path / "config.json").read_text())["encoder"]["_name_or_path"]
    )
    again = load_classifier(tmp_path, labels=("a", "b"))
    assert recorded_changes(again.config) == recorded_changes(model.config)
    for one, two in zip(again.encoder.parameters(), opened.base_model.parameters(), strict=False):
        assert torch.equal(one, two)
    with pytest.raises((ValueError, ModelError), match="longarc"):
        AutoClassifier.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="--pooling mean"):
        load_classifier(tmp_path, labels=("a", "b"), pooling="cls")


@pytest.mark.parametrize("change", [
    lambda model: stretch_positions(model.encoder, 100),
    lambda model: set_attention(model.encoder, "learned"),
    lambda model: stretch_positions(torch.nn.ModuleDict({"inside": model}), 100),
])  # fmt: skip
def test_a_change_of_the_encoder_inside_a_classifier_is_saved_too(tmp_path, change):
    model = from_encoder(build("encoder", "bert"), num_labels=3).eval()
    change(model)
    model.save_pretrained(tmp_path / "whole")
    model.encoder.save_pretrained(tmp_path / "encoder")
    short = IDS[:, :30]
    whole, encoder = load_model(tmp_path / "whole"), load_model(tmp_path / "encoder")
    assert recorded_changes(whole.config) == recorded_changes(model.encoder.config) != {}
    with torch.no_grad():
        assert torch.equal(whole(short).logits, model(short).logits)
        assert torch.equal(encoder(short)[0], model.encoder(short)[0])
    with pytest.raises(ValueError, match="longarc-bert"):
        AutoModel.from_pretrained(tmp_path / "encoder")


def test_a_checkpoint_without_what_its_kernels_learnt_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = set_attention(build("encoder", "bert"), "learned")
    model.save_pretrained(tmp_path)
    kept = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "kernel" not in k}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="attention_kernel"):
        load_model(tmp_path)


def test_weights_in_several_files(tmp_path):
    model = set_attention(build("encoder", "bert"), "learned")
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(first_output_short(load_model(tmp_path)), first_output_short(model))


def first_output_short(model):
    with torch.no_grad():
        return model(input_ids=IDS[:, :30])[0]
