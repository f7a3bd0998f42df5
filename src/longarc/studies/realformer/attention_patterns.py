"""How an encoder attends: entropy by layer, and how alike the patterns of neighbouring layers are.

Weights are computed anew from what enters each attention layer, since fused attention shows none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longarc.studies.shared.scratch_encoders import encode, layers_of


@torch.no_grad()
def attention_weights(model: PreTrainedModel, ids: Tensor, *, summed: bool) -> list[Tensor]:
    """Weights (b, h, n, n) of each layer on texts ``ids`` (b, n) without padding.

    ``summed`` adds each layer's scores to those of the layers before, as residual attention does.
    """
    scores: list[Tensor] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        query, key = (
            linear(states).unflatten(-1, (module.num_attention_heads, -1)).transpose(1, 2)
            for linear in (module.query, module.key)
        )
        own = query @ key.mT * query.shape[-1] ** -0.5
        scores.append(own + scores[-1] if summed and scores else own)

    hooks = [
        cast(Any, layer).attention.self.register_forward_pre_hook(note, with_kwargs=True)
        for layer in layers_of(model)
    ]
    try:
        encode(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    return [each.softmax(dim=-1) for each in scores]


def entropy(weights: Tensor) -> float:
    """Mean entropy of the rows of ``weights`` (…, n), as a share of the largest, log n.

    >>> round(entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])), 6)
    0.5
    """
    return float(torch.special.entr(weights).sum(-1).mean()) / math.log(weights.shape[-1])


def likeness(one: Tensor, other: Tensor, *, matched: bool = True) -> float:
    """How alike the heads of two layers attend, (b, h, n, n) each: 1 alike, 0 nothing in common.

    1 minus the Jensen-Shannon divergence in bits, a mean over texts and queries. Heads of two
    layers have no order in common unless residual attention gives them one, so each of ``other``
    is compared with the head of ``one`` that is most like it; ``matched=False`` compares heads of
    the same number.

    >>> weights = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two heads, one query
    >>> likeness(weights, weights.flip(1)), likeness(weights, weights.flip(1), matched=False)
    (1.0, 0.0)
    """
    alike = 1 - torch.stack(
        [_divergence(one[:, i, None], other).mean((0, 2)) for i in range(one.shape[1])]
    )  # (h of one, h of other)
    return float(alike.max(0).values.mean() if matched else alike.diagonal().mean())


def neighbours(weights: Sequence[Tensor], *, matched: bool = True) -> list[float]:
    """The likeness of each layer but the first to the one before."""
    pairs = itertools.pairwise(weights)
    return [likeness(one, other, matched=matched) for one, other in pairs]


def _divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence over the last dimension, in bits."""
    both = torch.special.entr((one + other) / 2).sum(-1)
    own = (torch.special.entr(one).sum(-1) + torch.special.entr(other).sum(-1)) / 2
    return (both - own).clamp(min=0) / math.log(2)
