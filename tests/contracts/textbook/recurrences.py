"""One step of each recurrent cell, as the papers write it, for a single document.

``moves`` names a term: then the state takes part in that alone, and ``still`` in all others, so
that a derivative by the state is that term's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longarc.models.recurrent.output_gated_gru import OutputGatedGRU

CELLS = ("rnn", "relu-rnn", "lstm", "gru", "output-gated-gru")


def make(cell: str, inputs: int, hidden: int, **options) -> nn.Module:
    kinds = {
        "rnn": nn.RNN,
        "relu-rnn": lambda d, h, **o: nn.RNN(d, h, nonlinearity="relu", **o),
        "lstm": nn.LSTM,
        "gru": nn.GRU,
        "output-gated-gru": OutputGatedGRU,
    }
    return kinds[cell](inputs, hidden, **options).double()


def run(cell: str, module: nn.Module, x: Tensor) -> list[Tensor]:
    """The states (S, H) before the first step and after each, of inputs (n, d)."""
    count = 2 if cell in ("lstm", "output-gated-gru") else 1
    states = [x.new_zeros(count, module.hidden_size)]
    for x_t in x:
        states.append(step(cell, module, x_t, states[-1]).detach())
    return states


def step(
    cell: str,
    module: nn.Module,
    x: Tensor,
    state: Tensor,
    *,
    moves: str | None = None,
    still: Tensor | None = None,
) -> Tensor:
    """The states (S, H) after one input (d,)."""
    w, u = module.weight_ih_l0.detach(), module.weight_hh_l0.detach()
    b, c = module.bias_ih_l0.detach(), module.bias_hh_l0.detach()
    hidden = module.hidden_size

    def of(term: str) -> Tensor:
        return state if moves in (None, term) else still

    def rows(k: int) -> slice:
        return slice(k * hidden, (k + 1) * hidden)

    def added(k: int, term: str) -> Tensor:
        return w[rows(k)] @ x + b[rows(k)] + u[rows(k)] @ of(term)[0] + c[rows(k)]

    if cell in ("rnn", "relu-rnn"):
        return (torch.tanh if cell == "rnn" else torch.relu)(added(0, "candidate"))[None]
    if cell == "lstm":
        i, f = torch.sigmoid(added(0, "input gate")), torch.sigmoid(added(1, "forget gate"))
        g, o = torch.tanh(added(2, "candidate")), torch.sigmoid(added(3, "output gate"))
        memory = f * of("carry")[1] + i * g
        return torch.stack([o * torch.tanh(memory), memory])
    if cell == "gru":
        r, z = torch.sigmoid(added(0, "reset gate")), torch.sigmoid(added(1, "update gate"))
        inner = u[rows(2)] @ of("candidate")[0] + c[rows(2)]
        new = torch.tanh(w[rows(2)] @ x + b[rows(2)] + r * inner)
        return ((1 - z) * new + z * of("carry")[0])[None]
    r, z = torch.sigmoid(added(0, "output gate")), torch.sigmoid(added(1, "update gate"))
    memory = (1 - z) * of("carry")[1] + z * torch.tanh(added(2, "candidate"))
    return torch.stack([r * memory, memory])
