"""Where an encoder's residual stream enters attention and feed-forward, in any architecture.

The stream is the (b, n, d) tensor that every sub-layer reads and adds to. In BERT's block it is
normalised after each addition (PostLN), in RoBERTa-PreLayerNorm's and ModernBERT's what enters the
branch is (PreLN).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

Part = Literal["attention", "feed-forward", "layer"]


@dataclass(frozen=True)
class Branch:
    """A branch of the stream: ``entry`` is the module that reads it, ``owners`` hold its weights.

    Of a layer whose branches are not known, part ``"layer"``, the stream cannot be told from the
    branch: ``splits`` is False.
    """

    part: Part
    entry: nn.Module
    owners: tuple[nn.Module, ...]
    splits: bool = True


def branches(model: nn.Module) -> list[tuple[nn.Module, list[Branch]]]:
    """The layers of a model with their branches; empty where it is no Transformer.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=1,
    ...                              intermediate_size=4, vocab_size=9))
    >>> [[branch.part for branch in of] for _, of in branches(model)]
    [['attention', 'feed-forward'], ['attention', 'feed-forward']]
    """
    found = [(layer, parts) for layer in model.modules() if (parts := list(_parts(layer)))]
    if found:
        return found
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    alike = [m for m in lists if len({type(layer) for layer in m}) == 1 and _attends(m[0])]
    if not alike:
        return []
    longest = max(alike, key=len)
    return [(layer, [Branch("layer", layer, (layer,), splits=False)]) for layer in longest]


def _parts(layer: nn.Module) -> Iterator[Branch]:
    """A layer's branches, by the names that its family gives to their modules."""
    children = dict(layer.named_children())
    if {"attention", "intermediate", "output"} <= children.keys():  # BERT and its kin
        attention = children["attention"]
        inner = dict(attention.named_children())
        # The LayerNorm of PreLN comes first; MPNet's attention has one too, which comes last.
        names = ("attn", "LayerNorm", "self")
        entry = next((inner[name] for name in names if name in inner), None)
        if entry is None:
            return
        yield Branch("attention", entry, (attention,))
        rest = (children["intermediate"], children["output"])
        yield Branch("feed-forward", rest[0], rest)
    elif {"attn_norm", "attn", "mlp_norm", "mlp"} <= children.keys():  # ModernBERT
        yield Branch("attention", children["attn_norm"], (children["attn_norm"], children["attn"]))
        yield Branch("feed-forward", children["mlp_norm"], (children["mlp_norm"], children["mlp"]))
    elif {"attention", "sa_layer_norm", "ffn", "output_layer_norm"} <= children.keys():
        own = (children["attention"], children["sa_layer_norm"])  # DistilBERT
        yield Branch("attention", own[0], own)
        own = (children["ffn"], children["output_layer_norm"])
        yield Branch("feed-forward", own[0], own)


def _attends(layer: nn.Module) -> bool:
    return any("attention" in type(module).__name__.lower() for module in layer.modules())
