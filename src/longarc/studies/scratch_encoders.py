"""Four encoders of one size to train from nothing: PostLN, PreLN, RealFormer and ReZero.

None is longarc's own: transformers has the first two, and the others are the first with
``longarc.set_residual_attention`` and ``longarc.set_rezero``.
"""

from __future__ import annotations

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

import longarc
from longarc.training.prediction import bfloat16_is_fast

HEAD_WIDTH = 32


@dataclass(frozen=True)
class Shape:
    """Layers, numbers a token, words, and tokens a text."""

    layers: int
    width: int
    words: int
    length: int


def build_encoder(architecture: str, shape: Shape, seed: int = 0) -> PreTrainedModel:
    """An untrained encoder with a head for masked tokens; the same weights for the same seed.

    BERT draws matrices with a standard deviation of 0.02, which at its 768 numbers a token keeps
    0.55 of a vector's length; the same share is kept here. There is no dropout: a few hundred steps
    see each text once.
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
        return _BUILDERS[architecture](settings).train()


def encode(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """States (b, n, d) of the tokens ``ids`` (b, n), under autocast where that is fast."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast(ids.device)):
        return cast(Any, model.base_model)(input_ids=ids, attention_mask=mask).last_hidden_state


def word_logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits (k, words) for the states (k, d) of masked tokens."""
    head = cast(Any, model.cls if isinstance(model, BertForMaskedLM) else model.lm_head)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast(states.device)):
        return head(states).float()


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The encoder's layers, first to last."""
    return cast(Any, model.base_model).encoder.layer


def _post_ln(settings: dict[str, Any]) -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**settings))


def _pre_ln(settings: dict[str, Any]) -> PreTrainedModel:
    return RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(**settings))


def _realformer(settings: dict[str, Any]) -> PreTrainedModel:
    return longarc.set_residual_attention(_post_ln(settings))


def _rezero(settings: dict[str, Any]) -> PreTrainedModel:
    return longarc.set_rezero(_post_ln(settings))


_BUILDERS: dict[str, Callable[[dict[str, Any]], PreTrainedModel]] = {
    "PostLN": _post_ln,
    "PreLN": _pre_ln,
    "RealFormer": _realformer,
    "ReZero": _rezero,
}

ARCHITECTURES = tuple(_BUILDERS)
