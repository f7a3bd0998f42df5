"""Put a kernel in the place of a model's softmax attention.

transformers lets a function stand in for attention by name. longarc registers one, and each
attention module gets its kernel as a child, ``attention_kernel``: its options and what it learnt
belong to the layer and are saved with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from longarc.errors import ModelError, OptionError
from longarc.models.attention.registry import EXACT, build_kernel, check_attention_options
from longarc.models.record import note_change

IMPLEMENTATION = "longarc"

CHILD = "attention_kernel"


def set_attention(
    model: PreTrainedModel,
    name: str,
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> PreTrainedModel:
    """Change how an encoder attends, in place; its weights stay as they are.

    Works on every encoder whose attention goes through transformers' attention interface, bare or
    under any head. The change is written to ``model.config``, so that a saved model opens with
    :func:`longarc.load_model` as it was.

    Args:
        model: an encoder, or a model around one.
        name: ``exact`` for softmax attention again, or a kernel: ``performer``, ``linear``,
            ``block-sparse``, ``local-performer``, ``clustered``, ``local-clustered``, ``learned``.
        layers: which attention layers, counted from 0 (negative: from the end); all by default. The
            others stay exact. Layers that see a window only (ModernBERT's) stay as they are.
        seed: of all that is random in the kernels.
        options: of the kernel, as its class documents them.

    Returns:
        The same model.

    Raises:
        OptionError: an unknown name, option or layer, or a value out of range.
        ModelError: a model whose attention cannot be replaced, with the reason. Nothing is changed
            then.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    ...                              intermediate_size=16, vocab_size=30))
    >>> model = set_attention(model, "performer", num_features=32)
    >>> [name for name, _ in attention_layers(model)]
    ['encoder.layer.0.attention.self', 'encoder.layer.1.attention.self']
    """
    check_attention_options(name, options)
    found = _find_layers(model)
    chosen = _chosen(layers, len(found))
    for module, _, _ in found:
        if hasattr(module, CHILD):
            delattr(module, CHILD)
    if name == EXACT:
        _implement(model, "sdpa" if model.base_model._supports_sdpa else "eager")
        note_change(model, "attention", None)
        return model
    for index in chosen:
        module, heads, width = found[index]
        kernel = build_kernel(
            name, heads=heads, width=width, seed=1000 * seed + index, options=options
        )
        kernel.train(module.training)
        setattr(module, CHILD, kernel.to(model.device))
    _implement(model, IMPLEMENTATION)
    settings = {"name": name, "options": dict(options), "seed": seed}
    if layers is not None:
        settings["layers"] = chosen
    note_change(model, "attention", settings)
    return model


def attention_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The attention modules that have a kernel, with their qualified names, in order."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, CHILD)]


def _chosen(layers: Sequence[int] | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    wrong = [i for i in layers if not isinstance(i, int) or not -count <= i < count]
    if wrong or not layers:
        raise OptionError(
            f"layers is {list(layers)!r}: expected numbers from 0 to {count - 1}, or from "
            f"-{count} to -1 counted from the end."
        )
    return sorted({i % count for i in layers})


def _implement(model: PreTrainedModel, implementation: str) -> None:
    model.base_model.set_attn_implementation(implementation)  # pyright: ignore[reportCallIssue]


# What transformers calls


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function: (b, h, n, d) in, (b, n, h, dv) out, and no weights to show."""
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ModelError(
            f"the attention mask has shape {tuple(attention_mask.shape)}: expected (b, n), one "
            "value a token. Masks for each pair of tokens need exact attention: "
            "longarc.set_attention(model, 'exact')."
        )
    if key.shape[1] != query.shape[1]:  # grouped queries
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    kernel: Any = getattr(module, CHILD, None)
    if kernel is None:
        out = _exact(query, key, value, attention_mask, scaling, dropout, sliding_window)
    else:
        out = kernel(query, key, value, mask=attention_mask, scale=scaling, dropout=dropout)
    return out.transpose(1, 2).contiguous(), None


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


def _padding_mask(
    *_args: Any, kv_length: int = 0, attention_mask: Tensor | None = None, **_more: Any
) -> Tensor | None:
    """The mask (b, n) as it is, true at the tokens that count; None where all do."""
    if attention_mask is None:
        return None
    mask = attention_mask[:, -kv_length:].bool()
    looks = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    return None if looks and bool(mask.all()) else mask


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _padding_mask)


# What a model has


def _find_layers(model: PreTrainedModel) -> list[tuple[nn.Module, int, int]]:
    """Each attention module that a forward pass goes through, with its heads and their width.

    A tiny document is sent through the encoder: that shows which modules ask for an attention
    function and what they want of it, in any architecture.
    """
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
        calls.append((module, query, key, more))
        return _attend(module, query, key, value, mask, **more)

    _observe(encoder, observe)
    found: dict[int, tuple[nn.Module, int, int]] = {}
    for module, query, key, more in calls:
        if getattr(module, "is_causal", False) or query.shape[2] != key.shape[2]:
            raise ModelError(
                f"{name} attends to earlier tokens only or to another text, as a decoder does: "
                "longarc changes the attention of encoders alone."
            )
        wanted = [k for k in _UNKNOWN if more.get(k) is not None]
        if wanted:
            raise ModelError(
                f"the attention of {name} asks for {', '.join(wanted)}, which longarc's kernels do "
                "not have."
            )
        if more.get("sliding_window") is None:
            found.setdefault(id(module), (module, query.shape[1], query.shape[3]))
    calls.clear()  # transformers keeps the observer, and it would keep the model
    if not found:
        raise ModelError(
            f"the attention of {name} cannot be replaced: no layer asked transformers' attention "
            "interface for full attention."
        )
    return list(found.values())


_UNKNOWN = ("position_bias", "softcap", "s_aux", "head_mask", "cu_seq_lens_q")
"""Arguments that change the attention's result."""


def _observe(encoder: PreTrainedModel, attend: Callable[..., Any]) -> None:
    """Send four tokens through the encoder with ``attend`` as its attention."""
    before = encoder.config._attn_implementation
    training = {module: module.training for module in encoder.modules()}
    observer = f"{IMPLEMENTATION}-observer"
    AttentionInterface.register(observer, attend)
    AttentionMaskInterface.register(observer, _padding_mask)
    encoder.eval()
    try:
        encoder.set_attn_implementation(observer)
        tokens = torch.zeros(1, 4, dtype=torch.long, device=encoder.device)
        with torch.no_grad():
            cast(Any, encoder)(input_ids=tokens, attention_mask=torch.ones_like(tokens))
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
