"""Give an encoder residual attention: each layer adds the scores of the layers before."""

from __future__ import annotations

from typing import Any

from torch.nn import Module
from transformers import PreTrainedModel

from longarc.errors import ModelError, OptionError
from longarc.models.attention.attending import CHILD as KERNEL
from longarc.models.attention.finding import AttentionCall, attention_calls
from longarc.models.attention.interface import implement, repeat_attention
from longarc.models.attention.residual_state import (
    CHILD,
    HANDED,
    LAYER,
    ResidualAttention,
    hand_down,
)
from longarc.models.record import note_change, recorded_changes
from longarc.options import check_flag, check_whole


def set_residual_attention(
    model: PreTrainedModel,
    *,
    gate: bool = False,
    mean: bool = False,
    last: int | None = None,
    on: bool = True,
) -> PreTrainedModel:
    """Have every attention layer add the scores of those before it, in place: A_n = S_n + A_{n−1}.

    Works on every encoder whose attention goes through transformers' attention interface, bare or
    under any head, with exact attention or any kernel of :func:`longarc.set_attention`, which may
    be set before or after. Weights stay as they are. The change is written to ``model.config``, so
    that a saved model opens with :func:`longarc.load_model` as it was. Kernels are made anew where
    the width of their queries changes, so fit ``learned`` ones after this. Called again, it keeps
    what gates have learnt.

    A model that was pretrained without is put out by it: use ``gate=True`` there, from which
    training starts at the model as it is. A model that trains from scratch needs no gate.

    Args:
        model: an encoder, or a model around one.
        gate: whether A_n = S_n + g_n A_{n−1} with a learnt number g_n for each layer, 0 at the
            start. Saved with the weights as ``residual_attention.gates``.
        mean: whether A_n is divided by the number of layers in it, so that scores stay as large as
            one layer's.
        last: add up the last so many layers, two or more, the own one among them; all by default.
            Layer n costs as much as one whose heads are min(n, last) times as wide.
        on: False takes residual attention out again.

    Returns:
        The same model.

    Raises:
        OptionError: a value out of range, or both ``gate`` and ``mean``.
        ModelError: a model whose attention cannot be replaced, with the reason. Nothing is changed
            then.

    Source: He et al. 2021, "RealFormer: Transformer Likes Residual Attention" (arXiv 2012.11747).
    The gate is ours.

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
    ...                              intermediate_size=16, vocab_size=30))
    >>> model = set_residual_attention(model, gate=True)
    >>> model.residual_attention.gates.detach()
    tensor([0., 0.])
    """
    check_flag("gate", gate)
    check_flag("mean", mean)
    check_flag("on", on)
    if last is not None:
        check_whole("last", last, at_least=2)
    if gate and mean:
        raise OptionError("gate and mean both say what earlier scores count. Choose one of them.")
    encoder: Any = model.base_model
    calls = attention_calls(model, **{HANDED: None})
    old: Any = getattr(encoder, CHILD, None)
    new = ResidualAttention(len(calls), gate=gate, mean=mean, last=last) if on else None
    if new is not None:
        _check(encoder, calls)
        if old is not None and new.gates is not None and old.gates is not None:
            new.gates.data.copy_(old.gates.data)
    _forget(encoder, calls)
    if new is not None:
        setattr(encoder, CHILD, new.to(model.device, model.dtype).train(encoder.training))
        shared = len({id(call.module) for call in calls}) < len(calls)
        for number, call in enumerate(calls):
            setattr(call.module, LAYER, None if shared else number)
        if hand_down not in encoder._forward_pre_hooks.values():
            encoder.register_forward_pre_hook(hand_down, with_kwargs=True)
    implement(model)
    note_change(model, CHILD, {"gate": gate, "mean": mean, "last": last} if on else None)
    attention = recorded_changes(encoder.config).get("attention")
    if attention and _widths(old, len(calls)) != _widths(new, len(calls)):
        repeat_attention(model, attention)
    return model


def _forget(encoder: Module, calls: list[AttentionCall]) -> None:
    """Take out what an earlier call put in."""
    for call in calls:
        if hasattr(call.module, LAYER):
            delattr(call.module, LAYER)
    if hasattr(encoder, CHILD):
        delattr(encoder, CHILD)


def _widths(settings: ResidualAttention | None, layers: int) -> list[int]:
    """How many layers' heads stand side by side in each."""
    if settings is None:
        return [1] * layers
    return [len(settings.summed_layers(layer)) for layer in range(layers)]


def _check(encoder: Module, calls: list[AttentionCall]) -> None:
    """Raise ModelError where scores cannot be handed on or do not fit together."""
    name = type(encoder).__name__
    if not all(HANDED in call.passed for call in calls):
        raise ModelError(
            f"{name} does not hand keyword arguments down to its attention, so scores cannot "
            "travel from layer to layer. BERT, RoBERTa, ELECTRA, DistilBERT, ALBERT and ModernBERT "
            "do."
        )
    shapes = {(call.heads, call.width) for call in calls}
    if len(shapes) > 1:
        raise ModelError(
            f"the attention layers of {name} have heads and widths {sorted(shapes)}: scores add up "
            "only where all have the same."
        )
    modules = {id(call.module) for call in calls}
    if len(modules) < len(calls) and any(hasattr(call.module, KERNEL) for call in calls):
        raise ModelError(
            "one layer serves as several here, and with residual attention each would need a "
            "kernel of another width. Use longarc.set_attention(model, 'exact') first."
        )
