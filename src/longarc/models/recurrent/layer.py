"""One recurrent layer over padded documents, read from one end or from both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from longarc.models.plain_kernels import fitting_kernels
from longarc.models.recurrent.output_gated_gru import OutputGatedGRU

_GATES = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3, OutputGatedGRU: 3}
RECURRENT = tuple(_GATES)
"""The modules that hold the weights."""


def make_cell(kind: str, inputs: int, size: int) -> nn.Module:
    """A module of one layer and one direction, batch first."""
    if kind in ("rnn", "relu-rnn"):
        nonlinearity = "relu" if kind == "relu-rnn" else "tanh"
        return nn.RNN(inputs, size, nonlinearity=nonlinearity, batch_first=True)
    cells: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "output-gated-gru": OutputGatedGRU}
    return cells[kind](inputs, size, batch_first=True)


class RecurrentLayer(GradientCheckpointingLayer):
    """``onward`` reads from the first token, ``returning`` from the last.

    Padding is to come after the tokens. What ``onward`` says of a token it never reaches, and for
    ``returning`` each document is mirrored within its own length, which packing would do at twice
    the cost on a CPU: torch's fused cells take whole tensors alone.
    """

    def __init__(self, kind: str, inputs: int, size: int, *, bidirectional: bool):
        super().__init__()
        self.onward = make_cell(kind, inputs, size)
        self.returning = make_cell(kind, inputs, size) if bidirectional else None

    def forward(self, states: Tensor, mirror: Tensor) -> Tensor:
        """Shapes: ``states`` (b, n, d), ``mirror`` (b, n) as ``mirrored`` gives it; (b, n, D·H).

        In the weights' own precision, whatever the training's: a state that every step adds to
        loses in bfloat16 what is small.
        """
        plain = torch.autocast(states.device.type, enabled=False)
        with plain, fitting_kernels(training=self.training):
            onward: Any = self.onward
            states = states.to(onward.weight_hh_l0.dtype)
            outputs = onward(states)[0]
            if self.returning is None:
                return outputs
            back = take(self.returning(take(states, mirror))[0], mirror)
        return torch.cat([outputs, back], dim=2)


def mirrored(lengths: Tensor, steps: int) -> Tensor:
    """Where each token lies once its document is read backwards; padding stays. (b,) → (b, n).

    >>> mirrored(torch.tensor([3, 1]), 4)
    tensor([[2, 1, 0, 3],
            [0, 1, 2, 3]])
    """
    place = torch.arange(steps, device=lengths.device)
    turned = lengths[:, None] - 1 - place
    return torch.where(turned >= 0, turned, place)


def take(states: Tensor, places: Tensor) -> Tensor:
    """From (b, n, d) the tokens at ``places`` (b, m): (b, m, d)."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))


def start_cell(cell: nn.Module, forget_bias: float) -> None:
    """Draw the weights: Glorot's for the inputs, an orthogonal matrix a gate for the state.

    An orthogonal U keeps the length of what goes through it, forward and back (Saxe et al. 2014,
    arXiv 1312.6120). Biases are 0 but for the LSTM's forget gate.
    """
    gates = _GATES[type(cell)]
    for name, parameter in cell.named_parameters():
        if getattr(parameter, "_is_hf_initialized", False):
            continue
        for part in parameter.data.chunk(gates):
            if name.startswith("weight_hh"):
                init.orthogonal_(part)
            elif name.startswith("weight_ih"):
                init.xavier_uniform_(part)
            else:
                init.zeros_(part)
        if isinstance(cell, nn.LSTM) and name.startswith("bias_ih"):
            init.constant_(parameter.data.chunk(gates)[1], forget_bias)
