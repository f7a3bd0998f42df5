from __future__ import annotations

import pytest
import torch
from torch import nn

from longarc.training.parameters import parameter_groups
from longarc.training.trainer import Trainer

DECAY = 0.5
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "num_labels": 5,
}  # fmt: skip

# architecture: extra options, and for each part of a name the depth below the top layer that it
# must have (-1: the head); the first part that occurs in a name decides.
LAYERS = {f".layer.{i}.": 2 - i for i in range(3)}
ARCHITECTURES = {
    "bert": ({}, {"pooler": -1, **LAYERS, "embeddings": 3, "classifier": -1}),
    "roberta": ({}, {**LAYERS, "embeddings": 3, "classifier": -1}),
    "distilbert": (
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
        {**LAYERS, "embeddings": 3, "pre_classifier": -1, "classifier": -1},
    ),
    "electra": (
        {"embedding_size": 8},
        {**LAYERS, "embeddings": 3, "classifier": -1},
    ),
    "albert": (
        {"embedding_size": 8},
        {"pooler": -1, "albert_layer": 0, "embedding": 1, "classifier": -1},
    ),
    "mpnet": (
        {}, {**LAYERS, "relative_attention_bias": 0, "embeddings": 3, "classifier": -1},
    ),
    "modernbert": (
        {"pad_token_id": 0, "global_attn_every_n_layers": 3},
        {**{f"layers.{i}.": 2 - i for i in range(3)}, "embeddings": 3, "final_norm": 0,
         "head": -1, "classifier": -1},
    ),
    "deberta-v2": (
        {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
        {"pooler": -1, **LAYERS, "embedding": 3, "encoder.LayerNorm": 0, "classifier": -1},
    ),
}  # fmt: skip


def build(name, options, pooling):
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    from longarc.models.mean_pooled import from_encoder

    config = AutoConfig.for_model(name, **SIZES | options)
    if pooling == "cls":
        return AutoModelForSequenceClassification.from_config(config)
    return from_encoder(AutoModel.from_config(config), num_labels=5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_the_rate_of_its_depth(name, pooling):
    options, depths = ARCHITECTURES[name]
    model = build(name, options, pooling)
    groups = parameter_groups(
        model, learning_rate=1.0, layer_decay=DECAY, head_learning_rate=7.0, weight_decay=0.1
    )
    found = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in found, "in two groups"
            found[id(parameter)] = group
    seen = set()
    for parameter_name, parameter in model.named_parameters():
        group = found.pop(id(parameter))
        part = next(part for part in depths if part in f".{parameter_name}")
        seen.add(depths[part])
        expected = 7.0 if depths[part] < 0 else DECAY ** depths[part]
        assert group["lr"] == pytest.approx(expected), parameter_name
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0), parameter_name
        if parameter_name.endswith("bias") and "attention_bias" not in parameter_name:
            assert group["weight_decay"] == 0.0, parameter_name
    assert not found
    assert seen == {-1, *range(max(depths.values()) + 1)}
    rates = [group["lr"] for group in groups]
    assert rates[0] == 7.0
    assert rates[1:] == sorted(rates[1:], reverse=True), "from the head down"


def test_embeddings_have_a_factor_of_their_own():
    model = build("bert", {}, "mean")
    groups = parameter_groups(model, learning_rate=1.0, layer_decay=DECAY, embedding_factor=0.1)
    found = {group["depth"]: group["lr"] for group in groups}
    assert found == {
        "head": 1.0, "layer 2": 1.0, "layer 1": 0.5, "layer 0": 0.25,
        "embeddings": pytest.approx(0.0125),
    }  # fmt: skip


def test_frozen_parameters_are_left_out():
    model = build("bert", {}, "mean")
    model.encoder.embeddings.requires_grad_(False)
    groups = parameter_groups(model, learning_rate=1.0, layer_decay=DECAY)
    kept = {id(p) for group in groups for p in group["params"]}
    assert kept == {id(p) for p in model.parameters() if p.requires_grad}
    assert min(group["lr"] for group in groups) == DECAY**2


def test_a_model_without_layers_has_a_rate():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    groups = parameter_groups(model, learning_rate=0.5, head_learning_rate=None)
    assert {group["lr"] for group in groups} == {0.5}
    assert sum(len(group["params"]) for group in groups) == 4


def optimizer_of(tiny, tmp_path, **options):
    model = tiny.make_model()
    arguments = tiny.make_arguments(tmp_path, optim="adamw_torch", weight_decay=0.1)
    return model, Trainer(model, arguments, **options).create_optimizer()


def test_the_trainer_uses_the_groups(tiny, tmp_path):
    _, optimizer = optimizer_of(tiny, tmp_path, layer_decay=0.5, head_learning_rate=0.3)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sorted({round(group["lr"], 9) for group in optimizer.param_groups}) == [
        0.025, 0.05, 0.1, 0.3
    ]  # fmt: skip


def test_the_factor_alone_makes_groups(tiny, tmp_path):
    _, optimizer = optimizer_of(tiny, tmp_path, embedding_factor=0.5)
    assert sorted({round(group["lr"], 9) for group in optimizer.param_groups}) == [0.05, 0.1]


def test_without_them_it_is_transformers_optimizer(tiny, tmp_path):
    _, optimizer = optimizer_of(tiny, tmp_path)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
