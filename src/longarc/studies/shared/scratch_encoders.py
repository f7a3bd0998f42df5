"""Four encoders of one size to train from nothing: PostLN, PreLN, RealFormer and ReZero.

None is longarc's own: transformers has the first two, and the others are the first with
``longarc.set_residual_attention`` and ``longarc.set_rezero``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForMaskedLM,
)

from longarc.models.attention.residual_interface import set_residual_attention
from longarc.models.rezero import set_rezero

HEAD_WIDTH = 16


@dataclass(frozen=True)
class Shape:
    """Layers, numbers a token, words, and tokens a text."""

    layers: int
    width: int
    words: int
    length: int


def build_encoder(
    architecture: str, shape: Shape, seed: int = 0, words: Tensor | None = None
) -> PreTrainedModel:
    """An untrained encoder with a head for masked tokens; the same weights for the same seed.

    BERT draws matrices with a standard deviation of 0.02, which at its 768 numbers a token keeps
    0.55 of a vector's length; the same share is kept here. There is no dropout: in a short training
    few texts are seen twice.

    Tables are drawn at random where they are learnt for days. Here positions start as sines and
    cosines of the place, and words as the main directions of ``words`` (shape.words, any width):
    without, all four encoders spend a short training on how frequent words are.
    """
    settings: dict[str, Any] = {
        "vocab_size": shape.words,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.width // HEAD_WIDTH,
        "intermediate_size": 4 * shape.width,
        "max_position_embeddings": shape.length + 1,  # RoBERTa's kind leaves position 0 to padding
        "type_vocab_size": 1,
        "initializer_range": 0.02 * (768 / shape.width) ** 0.5,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[architecture](settings).train()
    size = settings["initializer_range"]
    tables: Any = cast(Any, model.base_model).embeddings
    with torch.no_grad():
        tables.position_embeddings.weight.copy_(
            size * _waves(shape.length + 1, shape.width, tables.position_embeddings.padding_idx)
        )
        if words is not None:
            tables.word_embeddings.weight.copy_(size * main_directions(words, shape.width))
    return model


def encode(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """States (b, n, d) of the tokens ``ids`` (b, n); ``mask`` (b, n) is false at padding."""
    return cast(Any, model.base_model)(input_ids=ids, attention_mask=mask).last_hidden_state


def word_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits (k, words) for the states (k, d) of masked tokens."""
    return cast(Any, model.cls if isinstance(model, BertForMaskedLM) else model.lm_head)(states)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The encoder's layers, first to last."""
    return cast(Any, model.base_model).encoder.layer


def _waves(count: int, width: int, padding: int | None) -> Tensor:
    """Sines and cosines of the place (count, width), as in Vaswani et al. 2017, of variance 1.

    Where position 0 is padding, it is no position: the first is 1 there.
    """
    place = torch.arange(count)[:, None] - (0 if padding is None else 1)
    pace = torch.exp(-math.log(1000.0) * torch.arange(0, width, 2) / width)
    waves = torch.stack([(place * pace).sin(), (place * pace).cos()], dim=2)
    return 2**0.5 * waves.flatten(1)


def main_directions(table: Tensor, width: int) -> Tensor:
    """The principal components (N, width) of a table (N, d), of variance 1 on the whole."""
    centred = table - table.mean(0)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    # A direction's sign is arbitrary: its largest weight is positive.
    sign = v.gather(1, v.abs().argmax(1, keepdim=True)).sign().squeeze(1)
    found = (u * (s * sign))[:, :width]
    return found / found.std()


def _post_ln(settings: dict[str, Any]) -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**settings))


def _pre_ln(settings: dict[str, Any]) -> PreTrainedModel:
    return RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(**settings))


def _realformer(settings: dict[str, Any]) -> PreTrainedModel:
    return set_residual_attention(_post_ln(settings))


def _rezero(settings: dict[str, Any]) -> PreTrainedModel:
    return set_rezero(_post_ln(settings))


_BUILDERS: dict[str, Callable[[dict[str, Any]], PreTrainedModel]] = {
    "PostLN": _post_ln,
    "PreLN": _pre_ln,
    "RealFormer": _realformer,
    "ReZero": _rezero,
}

ARCHITECTURES = tuple(_BUILDERS)
