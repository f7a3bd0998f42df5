from __future__ import annotations

import pytest
import torch
from torch import nn

from longarc.errors import ModelError
from longarc.models.head import capture_features, final_linear
from longarc.models.loading import load_classifier

LABELS = ("a", "b", "c")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_features_times_the_last_layer_are_the_logits(architecture, pooling, saved_encoder):
    model = load_classifier(saved_encoder(architecture), labels=LABELS, pooling=pooling).eval()
    ids = torch.randint(4, 60, (4, 7))
    layer = final_linear(model)
    with torch.no_grad(), capture_features(model) as features:
        first = model(input_ids=ids).logits
        second = model(input_ids=ids[:2]).logits
    assert [f.shape for f in features] == [(4, 16), (2, 16)]
    torch.testing.assert_close(layer(features[0]), first)
    torch.testing.assert_close(layer(features[1]), second)
    model(input_ids=ids)
    assert len(features) == 2, "the hook stayed"


def test_as_many_classes_as_dimensions(make_encoder):
    """Every layer then has one output a class; the last is still the head."""
    from longarc.models.mean_pooled import from_encoder

    model = from_encoder(make_encoder("bert"), num_labels=16)
    assert final_linear(model) is model.classifier


def test_the_hook_goes_when_the_model_fails(saved_encoder):
    model = load_classifier(saved_encoder(), labels=LABELS)
    with pytest.raises(IndexError), capture_features(model):
        model(input_ids=torch.tensor([[10_000]]))
    assert not final_linear(model)._forward_pre_hooks


def test_a_model_that_ends_otherwise():
    model = nn.Sequential(nn.Linear(3, 5))
    model.config = type("Config", (), {"num_labels": 4})()
    with pytest.raises(ModelError, match=r"linear layer with 4 outputs.*--head-start scratch"):
        final_linear(model)
