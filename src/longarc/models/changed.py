"""Open models that longarc changed, and make the changes again.

The weights first, into the architecture as transformers has it; then the changes that the record
(``models/record.py``) asks for; then what they have learnt.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from longarc.errors import ModelError
from longarc.models.attention.attending import CHILD as KERNEL
from longarc.models.attention.interface import repeat_attention
from longarc.models.attention.residual_interface import set_residual_attention
from longarc.models.attention.residual_state import CHILD as RESIDUAL
from longarc.models.loading import refuse_missing
from longarc.models.mean_pooled import drop_pooler
from longarc.models.positions import restore_positions
from longarc.models.record import FIELD, plain_settings
from longarc.models.rezero import CHILD as REZERO
from longarc.models.rezero import set_rezero


def changed_settings(source: str) -> dict[str, Any] | None:
    """The content of a checkpoint's config.json if longarc changed its encoder, else None."""
    settings, _ = PreTrainedConfig.get_config_dict(source)
    encoder = settings.get("encoder")
    inner = encoder if isinstance(encoder, dict) else {}
    return settings if FIELD in settings or FIELD in inner else None


def open_changed(source: str, settings: dict[str, Any]) -> PreTrainedModel:
    """The model as it was saved, in float32 and evaluation mode.

    Args:
        source: a folder or Hub id.
        settings: its ``changed_settings``.

    Raises:
        ModelError: an architecture that is not transformers' or longarc's, or missing weights.
    """
    plain = plain_settings(settings)
    encoder = plain if FIELD in plain else plain["encoder"]
    record = encoder.pop(FIELD)
    if positions := record.get("positions"):
        # The table has the trained rows, and those RoBERTa's family keeps for padding.
        more = encoder["max_position_embeddings"] - positions["max_length"]
        encoder["max_position_embeddings"] = positions["trained"] + more
    kind = plain.pop("model_type")
    config = AutoConfig.for_model(kind, **plain)
    with _quiet():  # what the kernels learnt has no place yet, which transformers would report
        architecture: Any = _architecture(source, settings)
        model, found = architecture.from_pretrained(
            source, config=config, dtype=torch.float32, use_safetensors=True,
            output_loading_info=True,
        )  # fmt: skip
    if REZERO in record:  # first: it was saved without normalisations
        set_rezero(model)
    missing = set(found["missing_keys"]).intersection(model.state_dict())
    refuse_missing(source, missing)
    if any("pooler" in name for name in missing):
        drop_pooler(model.base_model)  # it was saved without, and has got a random one
    model.name_or_path = source
    if positions:
        restore_positions(model, positions)
    if residual := record.get(RESIDUAL):
        set_residual_attention(model, **residual)
    if attention := record.get("attention"):
        repeat_attention(model, attention)
    _load_learnt(model, source)
    return model


def _architecture(source: str, settings: dict[str, Any]) -> type[PreTrainedModel]:
    name = (settings.get("architectures") or [""])[0]
    for module in ("transformers", "longarc.models.mean_pooled"):
        if found := getattr(importlib.import_module(module), name, None):
            return cast(type[PreTrainedModel], found)
    raise ModelError(
        f"the checkpoint {source} is of the architecture {name!r}, which neither transformers nor "
        "longarc has."
    )


def _load_learnt(model: PreTrainedModel, source: str) -> None:
    """Load the tensors of the kernels and gates, by name."""
    parts = {KERNEL, RESIDUAL, REZERO}
    wanted = {name for name in model.state_dict() if parts.intersection(name.split("."))}
    if not wanted:
        return
    found: dict[str, Tensor] = {}
    for file in _weight_files(source):
        with safe_open(file, framework="pt") as tensors:
            here = wanted.intersection(tensors.keys())
            found |= {name: tensors.get_tensor(name) for name in here}
    refuse_missing(source, wanted - set(found))
    model.load_state_dict(found, strict=False)


def _weight_files(source: str) -> Iterator[Path]:
    index = cached_file(
        source, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False
    )
    names = {"model.safetensors"}
    if index is not None:
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    for name in sorted(names):
        yield Path(str(cached_file(source, name)))


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
