"""What longarc changed in an encoder, written into its configuration so that it is never lost.

``config.longarc`` of the encoder holds a part for each change: ``positions`` for stretched
positions, ``attention`` for kernels, ``residual_attention`` and ``rezero``.
:func:`longarc.load_model` makes the same changes again. The configuration also gets a model type of
longarc's (``longarc-bert``), which plain transformers does not know and refuses.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

PREFIX = "longarc-"

FIELD = "longarc"


def note_change(model: PreTrainedModel, part: str, settings: dict[str, Any] | None) -> None:
    """Write a part of the record; None takes it out. The settings must be what JSON can hold.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    ...                              intermediate_size=16, vocab_size=30))
    >>> note_change(model, "attention", {"name": "performer"})
    >>> model.config.model_type, model.config.longarc
    ('longarc-bert', {'attention': {'name': 'performer'}})
    >>> note_change(model, "attention", None)
    >>> model.config.model_type
    'bert'
    """
    config: Any = model.base_model.config
    record = {**getattr(config, FIELD, {}), part: settings}
    record = {name: value for name, value in record.items() if value is not None}
    if record:
        setattr(config, FIELD, record)
    elif hasattr(config, FIELD):
        delattr(config, FIELD)
    plain = _plain(type(config))
    config.__class__ = _recorded(plain) if record else plain


def plain_model_type(config: PreTrainedConfig) -> str:
    """The model type that transformers knows, whatever longarc changed."""
    return config.model_type.removeprefix(PREFIX)


def recorded_changes(config: PreTrainedConfig) -> dict[str, Any]:
    """The record of an encoder's configuration or of a wrapper's around it; empty without changes.

    >>> from transformers import BertConfig
    >>> recorded_changes(BertConfig())
    {}
    """
    inner = getattr(config, "encoder", None)
    for holder in (config, inner):
        if found := getattr(holder, FIELD, None):
            return copy.deepcopy(found)
    return {}


def plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json, with transformers' own model type in place of longarc's."""
    plain = dict(settings)
    kind = str(plain.get("model_type", ""))
    if FIELD in plain:
        plain["model_type"] = kind.removeprefix(PREFIX)
    if isinstance(plain.get("encoder"), dict):
        plain["encoder"] = plain_settings(plain["encoder"])
    return plain


@cache
def _recorded(kind: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """The configuration class under a model type that transformers does not know."""
    return type(f"Longarc{kind.__name__}", (kind,), {"model_type": PREFIX + kind.model_type})


def _plain(kind: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    return kind.__mro__[1] if kind.__name__.startswith("Longarc") else kind
