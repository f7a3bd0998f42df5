"""Where a model keeps its trained table of positions, or why it has none to stretch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from longarc.errors import ModelError, OptionError
from longarc.models.hierarchical_positions import HierarchicalPositions
from longarc.models.record import plain_model_type

FAMILIES = {
    "bert": False, "electra": False, "albert": False, "ernie": False, "distilbert": False,
    "roberta": True, "xlm-roberta": True, "camembert": True, "roberta-prelayernorm": True,
    "data2vec-text": True, "mpnet": True,
}  # fmt: skip
"""Model types that can be stretched, and whether the first rows of the table are for padding."""

_ROTARY = (
    "has rotary positions: queries and keys are turned by an angle, and there is no trained table "
    "to stretch. Its limit is a setting: load it with a larger max_position_embeddings and, past "
    "the length it was trained at, a scaling in rope_parameters."
)
_RELATIVE = (
    "has relative positions: attention depends on distances, and all far ones count alike, so "
    "there is no trained table to stretch. Longer documents go in as they are."
)
_REASONS = {
    **dict.fromkeys(("roformer", "modernbert", "nomic_bert", "eurobert"), _ROTARY),
    **dict.fromkeys(("deberta", "deberta-v2", "t5", "mt5", "umt5", "longt5"), _RELATIVE),
    **dict.fromkeys(("xlnet", "funnel"), _RELATIVE),
    **dict.fromkeys(
        ("longformer", "big_bird", "led"),
        "was made for long documents: its attention and its table belong together. Use it at the "
        "length it has.",
    ),
}


@dataclass(frozen=True)
class PositionTable:
    """Where a model's positions are.

    ``encoder`` is the part of the model whose ``embeddings.position_embeddings`` is ``table``; the
    table's first ``offset`` rows are for padding.
    """

    encoder: PreTrainedModel
    table: nn.Embedding
    offset: int

    @property
    def trained(self) -> int:
        """n, the number of trained positions."""
        return self.table.weight.shape[0] - self.offset

    @property
    def present(self) -> int:
        """Tokens that it reads now."""
        table = self.table
        return table.max_length if isinstance(table, HierarchicalPositions) else self.trained


def find_table(model: nn.Module) -> PositionTable:
    """Return the one trained table of positions in ``model``.

    Raises:
        OptionError: not a PyTorch module.
        ModelError: no such table, or several; the message says what there is and what to do.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a PyTorch module; found {type(model).__name__}.")
    inside = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    found = [
        m
        for m in inside
        if plain_model_type(m.config) in FAMILIES
        and hasattr(getattr(m, "embeddings", None), "position_embeddings")
    ]
    if len(found) > 1:
        kinds = ", ".join(type(m).__name__ for m in found)
        raise ModelError(
            f"the model has {len(found)} tables of positions ({kinds}). Stretch each encoder by "
            "itself: stretch_positions(model.encoder, …)."
        )
    if not found:
        raise ModelError(_reason(inside))
    (encoder,) = found
    table = cast(Any, encoder.embeddings).position_embeddings
    if type(table) not in (nn.Embedding, HierarchicalPositions):
        raise ModelError(
            f"the model's positions are a {type(table).__name__}, not a table of trained vectors: "
            "another tool has replaced it. Stretch first."
        )
    # The table's own padding_idx: MPNet's is 1 whatever its config says.
    offset = table.padding_idx + 1 if FAMILIES[plain_model_type(encoder.config)] else 0
    return PositionTable(encoder, table, offset)


def _reason(inside: list[PreTrainedModel]) -> str:
    """Why a model cannot be stretched."""
    known = f"Positions can be stretched in: {', '.join(FAMILIES)}."
    if not inside:
        return f"there is no transformers model in it, so no positions are known. {known}"
    config = inside[-1].config  # the innermost: of longarc's classifier, its encoder
    kind = plain_model_type(config)
    if kind in FAMILIES:
        return f"this part of a {kind} model has no table of positions. Give the whole model."
    if kind in _REASONS:
        return f"{kind} {_REASONS[kind]}"
    if getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None):
        return f"{kind} {_ROTARY}"
    return f"longarc does not know how {kind or 'this model'} keeps its positions. {known}"


def configs_of(model: nn.Module, encoder: PreTrainedModel) -> Iterator[PreTrainedConfig]:
    """Every config object that describes the encoder: its own, and a copy in the whole's config."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if not isinstance(config, PreTrainedConfig):
            continue
        for found in (config, *vars(config).values()):
            if not isinstance(found, PreTrainedConfig) or id(found) in seen:
                continue
            if plain_model_type(found) == plain_model_type(encoder.config):
                seen.add(id(found))
                yield found
