"""One layer of a recurrent network, step by step, with what each step's derivative is made of.

Legend: b batch, n steps, d inputs, H hidden, K gates (the candidate among them), S states: h alone,
or h and c. σ is the logistic function, ⊙ a product number by number.

Every cell's step is a sum of products of numbers with u_k = U_k h_{t−1}, so that

    ∂state_t / ∂state_{t−1} = [carry] + Σ_k diag(a_k) U_k,

a_k = ∂state_t / ∂u_k: only the coefficients differ from cell to cell. They are given here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longarc.errors import ModelError

State = tuple[Tensor, ...]
"""h (b, H), or h and c."""


@dataclass(frozen=True)
class Steps:
    """What one direction of one layer did, in the order of its steps.

    ``gates`` are the a_k, and ``into`` the derivatives of the states by W_k x_t, which differ from
    them where a cell has a gate between U_k h_{t−1} and the sum (the GRU's candidate).
    """

    names: tuple[str, ...]
    gates: Tensor
    """(b, n, K, S, H)."""
    into: Tensor
    """(b, n, K, S, H)."""
    carry: Tensor | None
    """∂state_t/∂s_{t−1} (b, n, S, H), diagonals; s is c where there is one, else h."""
    opened: Tensor | None
    """∂h_{t−1}/∂c_{t−1} (b, n, H) with the gates before held; 0 in the first step."""
    states: Tensor
    """(b, n, S, H)."""
    previous: Tensor
    """h_{t−1}, (b, n, H)."""


@dataclass(frozen=True)
class Weights:
    """Of one direction of one layer: (K·H, d), (K·H, H) and the biases (K·H,), zero if none."""

    inputs: Tensor
    recurrent: Tensor
    bias: Tensor
    recurrent_bias: Tensor


def _rnn(x: Tensor, w: Weights, start: State, *, relu: bool) -> Steps:
    """h_t = tanh(W x_t + U h_{t−1} + b), or relu of it."""

    def step(u: Tensor, x_t: Tensor, state: State) -> State:
        return (torch.relu(x_t + u) if relu else torch.tanh(x_t + u),)

    _, states, previous = _scan(step, x, w, start)
    h = states[0]
    slope = (h > 0).to(h.dtype) if relu else 1 - h**2
    gates = slope[:, :, None, None]
    return Steps(("candidate",), gates, gates, None, None, h[:, :, None], previous[0])


def _lstm(x: Tensor, w: Weights, start: State) -> Steps:
    """c_t = f ⊙ c_{t−1} + i ⊙ g, h_t = o ⊙ tanh c_t."""

    def step(u: Tensor, x_t: Tensor, state: State) -> State:
        i, f, g, o = (x_t + u).chunk(4, dim=-1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    u, (h, c), (h_before, c_before) = _scan(step, x, w, start)
    i, f, g, o = (x + u).chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    squashed = c.tanh()
    opened = o * (1 - squashed**2)  # ∂h_t/∂c_t
    to_c = [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g**2)]
    gates = [torch.stack([opened * a, a], dim=2) for a in to_c]
    out = squashed * o * (1 - o)
    gates.append(torch.stack([out, torch.zeros_like(out)], dim=2))
    joined = torch.stack(gates, dim=2)
    return Steps(
        ("input gate", "forget gate", "candidate", "output gate"),
        joined,
        joined,
        torch.stack([opened * f, f], dim=2),
        _shifted(opened),
        torch.stack([h, c], dim=2),
        h_before,
    )


def _gru(x: Tensor, w: Weights, start: State) -> Steps:
    """h_t = z ⊙ h_{t−1} + (1 − z) ⊙ tanh(W x_t + r ⊙ U h_{t−1}): torch's z keeps, r comes late."""

    def step(u: Tensor, x_t: Tensor, state: State) -> State:
        (r, z, m), (r_x, z_x, m_x) = u.chunk(3, dim=-1), x_t.chunk(3, dim=-1)
        z = (z + z_x).sigmoid()
        new = torch.tanh(m_x + (r + r_x).sigmoid() * m)
        return (new + z * (state[0] - new),)

    u, (h,), (before,) = _scan(step, x, w, start)
    (r, z, m), (r_x, z_x, m_x) = u.chunk(3, dim=-1), x.chunk(3, dim=-1)
    r, z = (r + r_x).sigmoid(), (z + z_x).sigmoid()
    new = torch.tanh(m_x + r * m)
    slope = (1 - z) * (1 - new**2)
    update = (before - new) * z * (1 - z)
    reset = slope * m * r * (1 - r)
    return Steps(
        ("reset gate", "update gate", "candidate"),
        torch.stack([reset, update, slope * r], dim=2)[:, :, :, None],
        torch.stack([reset, update, slope], dim=2)[:, :, :, None],
        z[:, :, None],
        None,
        h[:, :, None],
        before,
    )


def _output_gated(x: Tensor, w: Weights, start: State) -> Steps:
    """c_t = (1 − z) ⊙ c_{t−1} + z ⊙ tanh(W x_t + U h_{t−1}), h_t = r ⊙ c_t."""

    def step(u: Tensor, x_t: Tensor, state: State) -> State:
        r, z, m = (x_t + u).chunk(3, dim=-1)
        c = state[1] + z.sigmoid() * (m.tanh() - state[1])
        return r.sigmoid() * c, c

    u, (h, c), (h_before, c_before) = _scan(step, x, w, start)
    r, z, m = (x + u).chunk(3, dim=-1)
    r, z, m = r.sigmoid(), z.sigmoid(), m.tanh()
    out = c * r * (1 - r)
    gates = [torch.stack([out, torch.zeros_like(out)], dim=2)]
    gates += [
        torch.stack([r * a, a], dim=2) for a in ((m - c_before) * z * (1 - z), z * (1 - m**2))
    ]
    joined = torch.stack(gates, dim=2)
    return Steps(
        ("output gate", "update gate", "candidate"),
        joined,
        joined,
        torch.stack([r * (1 - z), 1 - z], dim=2),
        _shifted(r),
        torch.stack([h, c], dim=2),
        h_before,
    )


def _scan(
    step: Callable[[Tensor, Tensor, State], State], x: Tensor, w: Weights, start: State
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """U h_{t−1} + b (b, n, K·H), the states (b, n, H), and the states before each step."""
    state, transposed = start, w.recurrent.T.contiguous()  # read once a step
    products, visited = [], [start]
    for x_t in x.unbind(1):
        products.append(torch.addmm(w.recurrent_bias, state[0], transposed))
        state = step(products[-1], x_t, state)
        visited.append(state)
    states = [torch.stack(each, dim=1) for each in zip(*visited, strict=True)]
    return torch.stack(products, 1), [s[:, 1:] for s in states], [s[:, :-1] for s in states]


def _shifted(values: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=1)


_Cell = Callable[[Tensor, Weights, State], Steps]


def _cell_of(module: nn.Module) -> tuple[_Cell, int, str]:
    """What a module's step is, how many states it has, and the cell's name."""
    # Of the room next door, models/, which measures know by its name alone.
    if any(base.__name__ == "OutputGatedGRU" for base in type(module).__mro__):
        return _output_gated, 2, "output-gated-gru"
    if isinstance(module, nn.LSTM):
        if module.proj_size:
            raise ModelError(
                "this LSTM projects h to fewer numbers (proj_size), whose Jacobian is not "
                "decomposed here. Measure one without a projection."
            )
        return _lstm, 2, "lstm"
    if isinstance(module, nn.GRU):
        return _gru, 1, "gru"
    if isinstance(module, nn.RNN):
        relu = module.nonlinearity == "relu"
        name = "relu-rnn" if relu else "rnn"
        return lambda x, w, start: _rnn(x, w, start, relu=relu), 1, name
    raise ModelError(
        f"{type(module).__name__} is no recurrent layer that can be decomposed. Known: torch's "
        "nn.RNN (tanh, relu), nn.LSTM and nn.GRU, and longarc's OutputGatedGRU."
    )


def is_recurrent(module: nn.Module) -> bool:
    """Whether ``run_layer`` knows the module."""
    try:
        _cell_of(module)
    except ModelError:
        return False
    return True


def states_of(module: nn.Module) -> int:
    """S: 2 where there is a cell state besides h."""
    return _cell_of(module)[1]


def name_of(module: nn.Module) -> str:
    """``rnn``, ``relu-rnn``, ``lstm``, ``gru`` or ``output-gated-gru``, of subclasses too."""
    return _cell_of(module)[2]


def weights_of(module: nn.Module, layer: int, reverse: bool) -> Weights:
    """The weights of one direction of one layer, detached."""
    end = f"l{layer}" + "_reverse" * reverse
    known = dict(module.named_parameters())
    if f"weight_hh_{end}" not in known:
        raise ModelError(
            f"{type(module).__name__} has no layer {layer}{' in reverse' if reverse else ''}: "
            f"found {', '.join(name for name in known if name.startswith('weight_hh'))}."
        )
    recurrent = known[f"weight_hh_{end}"].detach()
    none = recurrent.new_zeros(len(recurrent))
    biases = [known.get(f"bias_{kind}_{end}", none).detach() for kind in ("ih", "hh")]
    return Weights(known[f"weight_ih_{end}"].detach(), recurrent, *biases)


@torch.no_grad()
def run_layer(
    module: nn.Module, inputs: Tensor, layer: int, reverse: bool, start: State | None = None
) -> Steps:
    """Run one direction of one layer over its inputs (b, n, d), in the order of its steps.

    The arithmetic is the textbook's, so that every part of a step is at hand; the result is that of
    the module. ``start`` are the states before the first step, zero by default.
    """
    cell, count, _ = _cell_of(module)
    w = weights_of(module, layer, reverse)
    if inputs.ndim != 3 or inputs.shape[2] != w.inputs.shape[1] or not inputs.shape[1]:
        raise ModelError(
            f"the inputs have shape {tuple(inputs.shape)}; layer {layer} expects (b, n, "
            f"{w.inputs.shape[1]}) with n of at least 1."
        )
    if start is None:
        zero = inputs.new_zeros(len(inputs), w.recurrent.shape[1])
        start = (zero,) * count
    flat = torch.addmm(w.bias, inputs.flatten(0, 1), w.inputs.T)
    return cell(flat.unflatten(0, inputs.shape[:2]), w, start)
