"""The function that transformers calls for attention where longarc changed it.

transformers lets a function stand in for attention by name. longarc registers one: it asks the
layer's kernel, its child ``attention_kernel``, or attends exactly where there is none; with the
scores of earlier layers where the encoder has residual attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging

from longarc.errors import ModelError
from longarc.models.attention.residual import concatenate, residual_attention
from longarc.models.attention.residual_state import HANDED, Summed, refuse_without_state

_logger = logging.get_logger(__name__)

IMPLEMENTATION = "longarc"

CHILD = "attention_kernel"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """The attention function: (b, h, n, d) in, (b, n, h, dv) out, and no weights to show."""
    refuse_pairs(attention_mask)
    _check_mask(attention_mask, key)
    if more.get("output_attentions"):
        _logger.warning_once(
            "output_attentions=True gives nothing here: longarc's attention has no matrix of "
            "weights. For weights: longarc.set_attention(model, 'exact'), then "
            "model.set_attn_implementation('eager')."
        )
    if key.shape[1] != query.shape[1]:  # grouped queries
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    kernel: Any = getattr(module, CHILD, None)
    state = more.get(HANDED)
    if state is None:
        refuse_without_state(module)
    else:
        summed: Summed = state.add(module, query, key, scaling)
        if kernel is None and sliding_window is None:
            out = residual_attention(
                summed.queries, summed.keys, value,
                factors=summed.factors, mask=attention_mask, scale=summed.scale, dropout=dropout,
            )  # fmt: skip
            return out.transpose(1, 2).contiguous(), None
        query, key = concatenate(summed.queries, summed.keys, summed.factors)
        scaling = summed.scale
    if kernel is None:
        out = _exact(query, key, value, attention_mask, scaling, dropout, sliding_window)
    else:
        out = kernel(query, key, value, mask=attention_mask, scale=scaling, dropout=dropout)
    return out.transpose(1, 2).contiguous(), None


def refuse_pairs(mask: Tensor | None) -> None:
    """Raise ModelError for a mask that says more than which tokens count."""
    if mask is not None and mask.ndim != 2:
        raise ModelError(
            f"the attention mask has shape {tuple(mask.shape)}: expected (b, n), one value a "
            "token. Masks for each pair of tokens need exact attention: "
            "longarc.set_attention(model, 'exact')."
        )


def _check_mask(mask: Tensor | None, key: Tensor) -> None:
    """Raise ModelError unless a mask (b, n) has a value for each token of the keys (b, h, n, d)."""
    expected = (key.shape[0], key.shape[2])
    if mask is not None and mask.shape != expected:
        raise ModelError(
            f"the attention mask has shape {tuple(mask.shape)}: expected {expected}, one value a "
            "token."
        )


def _exact(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """Softmax attention for a layer without a kernel."""
    seen = None if mask is None else mask[:, None, None, :]
    if window is not None:
        position = torch.arange(query.shape[2], device=query.device)
        # transformers hands on one more than the distance that is still seen.
        near = (position[:, None] - position).abs() < window
        seen = near if seen is None else seen & near
    return scaled_dot_product_attention(
        query, key, value, attn_mask=seen, dropout_p=dropout, scale=scale
    )


def padding_mask(
    *_args: Any, kv_length: int = 0, attention_mask: Tensor | None = None, **_more: Any
) -> Tensor | None:
    """The mask (b, n) as it is, true at the tokens that count; None where all do."""
    if attention_mask is None or attention_mask.ndim != 2:
        return attention_mask  # another shape is refused where the layer gets it
    mask = attention_mask[:, -kv_length:].bool()
    looks = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return None if looks and bool(mask.all()) else mask


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, padding_mask)
