"""Put a kernel in the place of a model's softmax attention.

Each attention module gets its kernel as a child, ``attention_kernel``: its options and what it
learnt belong to the layer and are saved with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from longarc.errors import ModelError, OptionError
from longarc.models.attention.attending import CHILD, IMPLEMENTATION
from longarc.models.attention.finding import AttentionCall, attention_calls
from longarc.models.attention.registry import EXACT, build_kernel, check_attention_options
from longarc.models.attention.residual_state import CHILD as RESIDUAL
from longarc.models.record import note_change
from longarc.options import check_whole


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
            others are exact, whatever an earlier call made of them. Layers that see a window only
            (ModernBERT's) stay as they are.
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
    check_whole("seed", seed)
    calls = attention_calls(model)
    found = _replaceable(calls)
    chosen = _chosen(layers, len(found))
    summed = _summed_layers(model, calls, found)
    if name != EXACT and summed is None:
        raise ModelError(
            "one layer serves as several here, and with residual attention each would need a "
            f"kernel of another width. Use exact attention, or {name} without residual attention."
        )
    for call in found:
        if hasattr(call.module, CHILD):
            delattr(call.module, CHILD)
    if name == EXACT or summed is None:
        implement(model)
        note_change(model, "attention", None)
        return model
    for index in chosen:
        call = found[index]
        kernel = build_kernel(
            name,
            heads=call.heads,
            width=call.width * summed[index],
            seed=1000 * seed + index,
            options=options,
        )
        kernel.train(call.module.training)
        setattr(call.module, CHILD, kernel.to(model.device))
    implement(model)
    settings = {"name": name, "options": dict(options), "seed": seed}
    if layers is not None:
        settings["layers"] = chosen
    note_change(model, "attention", settings)
    return model


def repeat_attention(model: PreTrainedModel, recorded: dict[str, Any]) -> None:
    """Make new kernels as the record's part ``attention`` says."""
    settings = dict(recorded)
    options = settings.pop("options")
    set_attention(model, **settings, **options)


def attention_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The attention modules that have a kernel, with their qualified names, in order."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, CHILD)]


def _chosen(layers: Sequence[int] | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise OptionError(f"layers is {layers!r}: expected a list of numbers, such as [0, 1].")
    wrong = [i for i in layers if type(i) is not int or not -count <= i < count]
    if wrong or not layers:
        raise OptionError(
            f"layers is {list(layers)!r}: expected numbers from 0 to {count - 1}, or from "
            f"-{count} to -1 counted from the end."
        )
    return sorted({i % count for i in layers})


def implement(model: PreTrainedModel) -> None:
    """Have transformers call longarc for attention where there is a change, or else its own."""
    encoder: Any = model.base_model
    changed = hasattr(encoder, RESIDUAL) or bool(attention_layers(encoder))
    plain = "sdpa" if encoder._supports_sdpa else "eager"
    encoder.set_attn_implementation(IMPLEMENTATION if changed else plain)


def _replaceable(calls: Sequence[AttentionCall]) -> list[AttentionCall]:
    """The first call of each module that sees all tokens."""
    first = {id(call.module): call for call in reversed(calls) if call.window is None}
    return [call for call in calls if first.get(id(call.module)) is call]


def _summed_layers(
    model: PreTrainedModel, calls: Sequence[AttentionCall], found: Sequence[AttentionCall]
) -> list[int] | None:
    """How many layers' scores add up in each of ``found``; None if that differs in one module."""
    residual: Any = getattr(model.base_model, RESIDUAL, None)
    if residual is None:
        return [1] * len(found)
    if len({id(call.module) for call in calls}) < len(calls):
        return None
    return [len(residual.summed_layers(calls.index(call))) for call in found]
