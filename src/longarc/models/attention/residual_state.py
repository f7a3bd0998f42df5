"""What residual attention hands from layer to layer in one forward pass, and nowhere else.

A pass's queries and keys travel as a keyword argument that transformers hands down to the attention
function. Nothing is written on modules, so replicas, threads and two passes before one backward
pass do not meet. A layer's entry is written once: gradient checkpointing, which runs a layer again,
finds it there, with the graph that its gradients flow through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longarc.errors import ModelError

CHILD = "residual_attention"
"""The encoder's child that says how scores add up, and the part of the record."""

HANDED = "longarc_residual"
"""The keyword argument."""

LAYER = "residual_layer"
"""An attention module's number among the encoder's; None where some serve as several layers."""


class ResidualAttention(nn.Module):
    """How an encoder's scores add up: A_n = S_n + g_n A_{n−1}, or a mean, or the last r layers.

    Args:
        layers: how many attention layers the encoder has.
        gate: whether g is learnt, from 0 on; 1 otherwise.
        mean: whether A_n is divided by the number of layers in the sum.
        last: r, the number of layers in the sum, the own one among them; None for all.
    """

    def __init__(self, layers: int, *, gate: bool, mean: bool, last: int | None) -> None:
        super().__init__()
        self.layers = layers
        self.mean = mean
        self.last = last
        # The first layer has nothing to add.
        self.gates = nn.Parameter(torch.zeros(layers - 1)) if gate else None

    def summed_layers(self, layer: int) -> range:
        """The layers whose scores layer number ``layer`` has in its sum, itself last."""
        return range(0 if self.last is None else max(0, layer + 1 - self.last), layer + 1)

    def factors(self, layer: int) -> Tensor | None:
        """What the scores of each of ``summed_layers`` count: the product of the gates between."""
        first = self.summed_layers(layer)[0]
        if self.gates is None or first == layer:
            return None
        between = self.gates[first:layer].flip(0)
        return torch.cat([torch.ones_like(self.gates[:1]), between]).cumprod(0).flip(0)


@dataclass(frozen=True)
class Summed:
    """What a layer attends with: A_n = scale · Σ_l factors_l queries_l keys_lᵀ."""

    queries: list[Tensor]
    keys: list[Tensor]
    factors: Tensor | None
    scale: float


class State:
    """The queries and keys of one forward pass, by layer."""

    def __init__(self, settings: ResidualAttention) -> None:
        self._settings = settings
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._calls = 0
        self._with_gradients = torch.is_grad_enabled()

    def add(self, module: nn.Module, query: Tensor, key: Tensor, scale: float | None) -> Summed:
        """Note a layer's queries and keys, (b, h, n, d), and return all that it attends with."""
        layer = self._number(module)
        if self._with_gradients and not torch.is_grad_enabled():
            raise ModelError(
                f"gradients are on for the encoder but off in its attention layer {layer}, as "
                "reentrant gradient checkpointing has it: the gradients that residual attention "
                "sends to earlier layers would be lost. Use "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        self._known.setdefault(layer, (query, key))
        wanted = self._settings.summed_layers(layer)
        if missing := [i for i in wanted if i not in self._known]:
            raise ModelError(
                f"attention layer {layer} adds the scores of layer {missing[0]}, which this pass "
                "did not go through. Residual attention needs every layer: turn layer dropping off."
            )
        pairs = [self._known[i] for i in wanted]
        s = query.shape[-1] ** -0.5 if scale is None else scale
        return Summed(
            [query for query, _ in pairs],
            [key for _, key in pairs],
            self._settings.factors(layer),
            s / len(wanted) if self._settings.mean else s,
        )

    def _number(self, module: nn.Module) -> int:
        number: Any = getattr(module, LAYER)
        if number is not None:
            return number
        number = self._calls  # they come in order
        if number >= self._settings.layers:
            raise ModelError(
                "a layer that serves as several was run again, as gradient checkpointing does, and "
                "residual attention cannot tell which of them it is. Turn checkpointing off for "
                "this model."
            )
        self._calls += 1
        return number


def hand_down(encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Give a forward pass its state: a pre-hook of the encoder, None where nothing was changed."""
    settings: Any = getattr(encoder, CHILD, None)
    return None if settings is None else (args, {**kwargs, HANDED: State(settings)})


def refuse_without_state(module: nn.Module) -> None:
    """Raise ModelError where a layer that should add earlier scores was handed none."""
    if hasattr(module, LAYER):
        raise ModelError(
            "a layer with residual attention was called without the scores of earlier layers: they "
            "begin where the encoder itself is called. Call the model, or "
            "longarc.set_residual_attention(model, on=False)."
        )
