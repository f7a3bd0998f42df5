"""Which attention layers a model has, found by sending a tiny document through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from longarc.errors import ModelError
from longarc.models.attention.attending import IMPLEMENTATION, padding_mask, refuse_pairs


@dataclass(frozen=True)
class AttentionCall:
    """One use of an attention module in a forward pass."""

    module: nn.Module
    heads: int
    width: int
    window: int | None
    """One more than the distance that is seen, where that is limited."""
    passed: frozenset[str]
    """Names of the keyword arguments that arrived."""


def attention_calls(model: PreTrainedModel, **more: Any) -> list[AttentionCall]:
    """Every use of an attention module, in the order of a forward pass.

    A tiny document is sent through the encoder: that shows which modules ask for an attention
    function and what they want of it, in any architecture. ``more`` goes along with it.

    Raises:
        ModelError: a model whose attention cannot be replaced, with the reason.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"expected a transformers model; found {type(model).__name__}.")
    encoder = cast(PreTrainedModel, model.base_model)
    name = type(encoder).__name__
    if not encoder._can_set_attn_implementation():
        raise ModelError(
            f"the attention of {name} cannot be replaced: it is written out in its own code and "
            "does not go through transformers' attention interface. BERT, RoBERTa, ELECTRA, "
            "DistilBERT, ALBERT and ModernBERT are among the encoders that do."
        )
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise ModelError(f"{name} has a decoder: longarc changes the attention of encoders alone.")
    calls: list[tuple[nn.Module, Tensor, Tensor, dict[str, Any]]] = []

    def observe(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
    ) -> tuple[Tensor, None]:
        refuse_pairs(mask)
        calls.append((module, query, key, more))
        return value.new_zeros(*query.shape[:3], value.shape[3]).transpose(1, 2), None

    _observe(encoder, observe, more)
    found: list[AttentionCall] = []
    for module, query, key, passed in calls:
        if getattr(module, "is_causal", False) or query.shape[2] != key.shape[2]:
            raise ModelError(
                f"{name} attends to earlier tokens only or to another text, as a decoder does: "
                "longarc changes the attention of encoders alone."
            )
        wanted = [k for k in _UNKNOWN if passed.get(k) is not None]
        if wanted:
            raise ModelError(
                f"the attention of {name} asks for {', '.join(wanted)}, which longarc's kernels do "
                "not have."
            )
        found.append(
            AttentionCall(
                module,
                query.shape[1],
                query.shape[3],
                passed.get("sliding_window"),
                frozenset(passed),
            )
        )
    calls.clear()  # transformers keeps the observer, and it would keep the model
    if all(call.window is not None for call in found):
        raise ModelError(
            f"the attention of {name} cannot be replaced: no layer asked transformers' attention "
            "interface for full attention."
        )
    return found


_UNKNOWN = ("position_bias", "softcap", "s_aux", "head_mask", "cu_seq_lens_q")
"""Arguments that change the attention's result."""


def _observe(encoder: PreTrainedModel, watch: Callable[..., Any], more: dict[str, Any]) -> None:
    """Send four tokens through the encoder with ``watch`` as its attention."""
    before = encoder.config._attn_implementation
    training = {module: module.training for module in encoder.modules()}
    observer = f"{IMPLEMENTATION}-observer"
    AttentionInterface.register(observer, watch)
    AttentionMaskInterface.register(observer, padding_mask)
    encoder.eval()
    try:
        encoder.set_attn_implementation(observer)
        tokens = torch.zeros(1, 4, dtype=torch.long, device=encoder.device)
        with torch.no_grad():
            cast(Any, encoder)(input_ids=tokens, attention_mask=torch.ones_like(tokens), **more)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the attention of {type(encoder).__name__} cannot be replaced: a forward pass on four "
            f"tokens to find its layers failed with {type(error).__name__}: {error}"
        ) from error
    finally:
        encoder.set_attn_implementation(before or "sdpa")
        for module, mode in training.items():
            module.training = mode
