"""Parameter groups: a step size for each depth, and weight decay where it belongs."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import nn

_BLOCK = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    layer_decay: float = 1.0,
    head_learning_rate: float | None = None,
    embedding_factor: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the head, then each encoder layer from top to embeddings.

    The last layer gets ``learning_rate``, each layer below it ``layer_decay`` times the one above,
    the embeddings one factor less than the first layer, and that times ``embedding_factor``;
    everything above the encoder is the head.
    Weights that serve every layer (ALBERT's shared layer, a final normalisation, relative
    positions) count with the last layer, those named as embeddings with the embeddings.
    Biases and normalisation weights (all one-dimensional parameters) are not decayed. ``depth`` is
    a group's name: ``head``, ``layer N`` or ``embeddings``.

    Layer-wise step sizes: Howard & Ruder, 2018 (ULMFiT), arXiv 1801.06146.

    >>> linear = lambda: nn.Linear(2, 2, bias=False)
    >>> encoder = nn.ModuleDict({"layer": nn.ModuleList([linear(), linear()])})
    >>> model = nn.ModuleDict({"encoder": encoder, "head": linear()})
    >>> groups = parameter_groups(model, learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    >>> [(g["depth"], g["lr"], g["weight_decay"]) for g in groups]
    [('head', 1.0, 0.1), ('layer 1', 1.0, 0.1), ('layer 0', 0.5, 0.1)]
    """
    prefix = getattr(model, "base_model_prefix", "") or "encoder"
    blocks = [int(m[1]) for name, _ in model.named_parameters() if (m := _BLOCK.search(f".{name}"))]
    depth = max(blocks, default=0) + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        block = _BLOCK.search(f".{name}")
        if block:
            level = depth - 1 - int(block[1])  # 0 at the top layer
        elif name.startswith(f"{prefix}.") and "embed" in name:
            level = depth
        elif name.startswith(f"{prefix}.") and "pooler" not in name:
            level = 0
        else:
            level = -1
        groups[level, parameter.ndim > 1].append(parameter)
    head = learning_rate if head_learning_rate is None else head_learning_rate
    return [
        {
            "params": parameters,
            "lr": head
            if level < 0
            else learning_rate * layer_decay**level * (embedding_factor if level == depth else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
            "depth": _depth_name(level, depth),
        }
        for (level, decayed), parameters in sorted(groups.items(), key=lambda kv: kv[0])
    ]


def _depth_name(level: int, depth: int) -> str:
    if level < 0:
        return "head"
    return "embeddings" if level == depth else f"layer {depth - 1 - level}"
