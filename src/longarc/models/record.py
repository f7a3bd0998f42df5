"""What longarc changed in an encoder, written into its configuration so that it is never lost.

``config.longarc`` of the encoder holds a part for each change: ``positions`` for stretched
positions, ``attention`` for kernels. :func:`longarc.load_model` makes the same changes again. A
bare encoder's configuration also gets a model type of longarc's (``longarc-bert``), which plain
transformers does not know and refuses; a mean-pooled classifier has one already.
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
    if model.config is config:
        config.__class__ = _recorded(_plain(type(config))) if record else _plain(type(config))
    else:  # a wrapper saves its own copy of the encoder's configuration
        config.__class__ = _plain(type(config))
        config._name_or_path = ""  # a path on this machine means nothing in a checkpoint
        setattr(model.config, model.base_model_prefix, config)


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
    return kind.__mro__[1] if kind.model_type.startswith(PREFIX) and kind.__mro__ else kind
