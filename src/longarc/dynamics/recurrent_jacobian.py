"""Per-step Jacobians of recurrent layers, exact, as named terms that add up to the whole.

Legend: b batch, n steps, d inputs, H hidden, K gates, S states (h, or h and c), N = S·H.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longarc.dynamics.recurrent_cells import Steps, run_layer, states_of, weights_of
from longarc.errors import DataError, ModelError
from longarc.options import check_choice


@dataclass(frozen=True)
class Jacobians:
    """∂state_t/∂state_{t−1} of many steps, never formed unless asked for.

    A sum of terms: ``carry``, diagonal, and for each gate k diag(a_k) U_k, a_k by which the states
    follow U_k h_{t−1}. Leading dimensions (…) are (b, n) at first; indexing keeps the rest:
    ``jacobians[:, 3]``. The states are h, then c where there is one. Steps beyond a document's end
    are zero.

    In the form ``"cell"`` the one state is c, and each gate's term is diag(a_k) U_k diag(right),
    right = ∂h_{t−1}/∂c_{t−1} with the gates before held.
    """

    names: tuple[str, ...]
    """Of the gates' terms."""
    gates: Tensor
    """a_k, (…, K, S, H)."""
    weights: Tensor
    """U_k, (K, H, H)."""
    carry: Tensor | None
    """(…, S, H): the rows' factors of the last state; None where nothing is carried."""
    right: Tensor | None
    """(…, H) or None."""
    valid: Tensor
    """(…) bool: which steps there were."""
    previous: Tensor
    """h_{t−1}, (…, H)."""

    @property
    def states(self) -> int:
        """S."""
        return self.gates.shape[-2]

    @property
    def size(self) -> int:
        """N = S·H, the rows of a Jacobian."""
        return self.states * self.gates.shape[-1]

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms' names, the carry first."""
        return ("carry", *self.names) if self.carry is not None else self.names

    def __getitem__(self, index: Any) -> Jacobians:
        """The same for some steps: ``index`` goes to the leading dimensions."""
        return replace(
            self,
            gates=self.gates[index],
            carry=None if self.carry is None else self.carry[index],
            right=None if self.right is None else self.right[index],
            valid=self.valid[index],
            previous=self.previous[index],
        )

    def only(self, *names: str) -> Jacobians:
        """The sum of these terms alone."""
        for name in names:
            check_choice("term of this Jacobian", name, self.terms)
        kept = [k for k, name in enumerate(self.names) if name in names]
        return replace(
            self,
            names=tuple(self.names[k] for k in kept),
            gates=self.gates[..., kept, :, :],
            weights=self.weights[kept],
            carry=self.carry if "carry" in names else None,
        )

    def matrices(self) -> Tensor:
        """The Jacobians (…, N, N); rows and columns are those of h, then those of c."""
        *lead, _, states, hidden = self.gates.shape
        found = self.gates.new_zeros(*lead, states, hidden, states, hidden)
        for k in range(len(self.names)):
            part = self.gates[..., k, :, :, None] * self.weights[k]
            found[..., 0, :] += (
                part if self.right is None else part * self.right[..., None, None, :]
            )
        if self.carry is not None:
            found[..., -1, :].diagonal(dim1=-2, dim2=-1).add_(self.carry)
        return found.flatten(-2).flatten(-3, -2)

    def apply(self, vectors: Tensor) -> Tensor:
        """J v for v (…, S, H)."""
        first = vectors[..., 0, :] if self.right is None else vectors[..., 0, :] * self.right
        pulled = (first @ self.weights.flatten(0, 1).T).unflatten(-1, self.weights.shape[:2])
        found = (self.gates * pulled[..., None, :]).sum(-3)
        return found if self.carry is None else found + self.carry * vectors[..., -1:, :]

    def pull(self, adjoints: Tensor) -> Tensor:
        """Jᵀ u for u (…, S, H): the loss's derivative by the state before."""
        pushed = (self.gates * adjoints[..., None, :, :]).sum(-2).flatten(-2)
        first = pushed @ self.weights.flatten(0, 1)
        if self.right is not None:
            first = first * self.right
        last = torch.zeros_like(first) if self.carry is None else (self.carry * adjoints).sum(-2)
        return torch.stack([first, last], -2) if self.states == 2 else (first + last)[..., None, :]

    def norms(self) -> dict[str, Tensor]:
        """Frobenius norms (…) of each term, and of the ``"sum"``; no matrix is formed.

        ‖diag(a) U‖² = Σ_i a_i² ‖U_i‖², and the product of two terms likewise needs the products of
        their rows alone.
        """
        squares = self.right.square() if self.right is not None else None
        count = len(self.names)
        total = self.gates.new_zeros(self.gates.shape[:-3])
        found: dict[str, Tensor] = {}
        if self.carry is not None:
            found["carry"] = self.carry.square().sum((-1, -2))
            total += found["carry"]
        for k in range(count):
            for other in range(k, count):
                rows = self.weights[k] * self.weights[other]
                # ⟨row i of U_k, row i of U_l⟩, weighted by the squares of the columns' factors.
                product = rows.sum(1) if squares is None else squares @ rows.T
                both = (self.gates[..., k, :, :] * self.gates[..., other, :, :]).sum(-2)
                value = (both * product).sum(-1)
                if k == other:
                    found[self.names[k]] = value
                total += value if k == other else 2 * value
            if self.carry is not None and self.states == 1:  # elsewhere they are not in one column
                diagonal = self.weights[k].diagonal()
                factor = diagonal if self.right is None else diagonal * self.right
                total += 2 * (self.gates[..., k, 0, :] * factor * self.carry[..., 0, :]).sum(-1)
        found["sum"] = total.clamp(min=0)
        return {name: value.sqrt() for name, value in found.items()}

    def from_end(self) -> Jacobians:
        """The steps (b, n) counted from each document's end: index k is the k-th from the last."""
        count = self.valid.sum(1, keepdim=True)
        place = count - 1 - torch.arange(self.valid.shape[1], device=count.device)
        rows = torch.arange(len(count), device=count.device)[:, None]
        found = self[rows, place.clamp(min=0)]
        seen = place >= 0
        return found.where(seen)

    def where(self, seen: Tensor) -> Jacobians:
        """Zero wherever ``seen`` (…) is false."""
        many = seen.to(self.gates.dtype)[..., None, None]
        return replace(
            self,
            gates=self.gates * many[..., None],
            carry=None if self.carry is None else self.carry * many,
            valid=self.valid & seen,
        )


@dataclass(frozen=True)
class LayerRun:
    """One direction of one layer on documents, in the order of its steps.

    ``order`` (b, n) is the position of each step's token: backwards for the reverse direction,
    tokens before padding wherever the padding lies. ``inputs`` (b, n, d) are in that order too.
    """

    module: nn.Module
    layer: int
    reverse: bool
    steps: Steps
    order: Tensor
    valid: Tensor
    inputs: Tensor

    @property
    def name(self) -> str:
        """As in ``layer 1, backwards``."""
        return f"layer {self.layer}" + ", backwards" * self.reverse

    def jacobians(self, state: Literal["full", "cell"] = "full") -> Jacobians:
        """∂state_t/∂state_{t−1}; see :func:`recurrent_jacobians`."""
        check_choice("state of Jacobians", state, ("full", "cell"))
        steps = self.steps
        weights = weights_of(self.module, self.layer, self.reverse).recurrent
        whole = Jacobians(
            steps.names,
            steps.gates,
            weights.unflatten(0, (len(steps.names), -1)),
            steps.carry,
            None,
            torch.ones_like(self.valid),
            steps.previous,
        )
        if state == "cell":
            if steps.opened is None or steps.carry is None:
                raise ModelError(
                    f"{type(self.module).__name__} has no cell state: only LSTMs and output-gated "
                    "GRUs have one. Use state='full'."
                )
            whole = replace(
                whole.only(*(name for name in whole.terms if name != "output gate")),
                right=steps.opened,
            )
            assert whole.carry is not None
            whole = replace(whole, gates=whole.gates[..., 1:, :], carry=whole.carry[..., 1:, :])
        return whole.where(self.valid)

    def input_errors(self, adjoints: Tensor) -> Tensor:
        """dL/dx_t (b, n, d) in the order of positions, from dL/dstate_t (b, n, S, H)."""
        weights = weights_of(self.module, self.layer, self.reverse).inputs
        pushed = (self.steps.into * adjoints[..., None, :, :]).sum(-2).flatten(-2)
        return self.in_place(pushed @ weights * self.valid[..., None])

    def in_place(self, values: Tensor) -> Tensor:
        """Values (b, n, …) of steps in the order of positions; zero where there was no step."""
        kept = values * self.valid.reshape(*self.valid.shape, *[1] * (values.ndim - 2))
        index = self.order.reshape(*self.order.shape, *[1] * (values.ndim - 2)).expand_as(kept)
        return torch.zeros_like(kept).scatter(1, index, kept)

    def in_steps(self, values: Tensor) -> Tensor:
        """Values (b, n, …) of positions in the order of steps; zero beyond a document's end."""
        shape = (*self.order.shape, *[1] * (values.ndim - 2))
        found = values.gather(1, self.order.reshape(shape).expand_as(values))
        return found * self.valid.reshape(shape)


def recurrent_jacobians(
    module: nn.Module,
    inputs: Tensor,
    mask: Tensor | None = None,
    *,
    layer: int = 0,
    reverse: bool = False,
    initial: Tensor | tuple[Tensor, ...] | None = None,
    state: Literal["full", "cell"] = "full",
) -> Jacobians:
    """Decompose every step's Jacobian of one direction of one recurrent layer.

    With diagonal gates and recurrent matrices U, the terms are

    - RNN: *candidate* diag(φ') U;
    - LSTM: *carry* f (rows c and h of column c), and through h the *forget gate*, *input gate*,
      *candidate* and *output gate*;
    - GRU: *carry*, torch's z, which the update gate's literature calls 1 − z, *update gate*,
      *candidate* and *reset gate*;
    - output-gated GRU: *carry* 1 − z, *update gate*, *candidate* and *output gate*.

    The whole is exact: it is checked against automatic differentiation to 1e-10. Biases, layers
    below and both directions are what they are in the module; dropout between layers is off. The
    cost is one pass of the layer in textbook form.

    Args:
        module: ``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` or longarc's ``OutputGatedGRU``.
        inputs: (b, n, d), whatever the module's ``batch_first``.
        mask: (b, n), 0 or False for padding, on either side; steps skip it.
        layer: which layer, from 0.
        reverse: the direction from the end; its steps are counted from the last token.
        initial: states before the first step, as the module takes them; zero by default.
        state: ``"full"`` for (h, c) → (h, c), or h → h in cells without c; ``"cell"`` for c → c
            with the path through h_{t−1} = o_{t−1} ⊙ tanh c_{t−1} (r ⊙ c for the output-gated GRU),
            its gate held, as in the formulas for one number. Of the first step it has the carry
            alone.

    Raises:
        ModelError: a module that is none of these, or a layer that it does not have.
        DataError: inputs, mask or initial states of other shapes.

    Sources: Hochreiter & Schmidhuber 1997; Cho et al. 2014 (arXiv 1406.1078); Pascanu et al. 2013
    (arXiv 1211.5063).

    >>> _ = torch.manual_seed(0)
    >>> jacobians = recurrent_jacobians(nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3))
    >>> jacobians.terms
    ('carry', 'input gate', 'forget gate', 'candidate', 'output gate')
    >>> jacobians.matrices().shape, jacobians.norms()["carry"].shape
    (torch.Size([2, 5, 8, 8]), torch.Size([2, 5]))
    """
    runs = run_layers(module, inputs, mask, initial=initial, last=layer)
    found = [run for run in runs if run.layer == layer and run.reverse == reverse]
    if not found:
        weights_of(module, layer, reverse)  # says which there are
    return found[0].jacobians(state)


@torch.no_grad()
def run_layers(
    module: nn.Module,
    inputs: Tensor,
    mask: Tensor | None = None,
    *,
    initial: Tensor | tuple[Tensor, ...] | None = None,
    last: int | None = None,
) -> list[LayerRun]:
    """Every layer and direction up to ``last``, the first layer first, forwards before backwards.

    Arguments are those of :func:`recurrent_jacobians`.
    """
    count = states_of(module)
    layers, directions = _extent(module)
    if inputs.ndim != 3:
        raise DataError(f"inputs have shape {tuple(inputs.shape)}; expected (b, n, d).")
    if mask is None:
        mask = inputs.new_ones(inputs.shape[:2])
    if mask.shape != inputs.shape[:2]:
        raise DataError(
            f"The mask has shape {tuple(mask.shape)}; expected (b, n) = {tuple(inputs.shape[:2])}."
        )
    mask = mask.bool()
    states = None if initial is None else (initial,) if isinstance(initial, Tensor) else initial
    if states is not None and len(states) != count:
        raise DataError(
            f"{type(module).__name__} starts from {count} states (h{', c' * (count - 1)}); found "
            f"{len(states)}."
        )
    lengths = mask.sum(1, keepdim=True)
    places = torch.arange(mask.shape[1], device=mask.device)
    valid = places < lengths
    forward = (~mask).to(torch.int8).argsort(dim=1, stable=True)
    backward = forward.gather(1, (lengths - 1 - places).clamp(min=0))
    # Steps that there are not keep a place of their own, so that nothing is written twice.
    backward = torch.where(valid, backward, forward)
    runs: list[LayerRun] = []
    for layer in range(layers if last is None else min(last + 1, layers)):
        outputs = []
        for reverse in (False, True)[:directions]:
            order = backward if reverse else forward
            x = inputs.gather(1, order[..., None].expand_as(inputs)) * valid[..., None]
            start = None
            if states is not None:
                start = tuple(each[layer * directions + reverse].detach() for each in states)
            steps = run_layer(module, x, layer, reverse, start)
            runs.append(LayerRun(module, layer, reverse, steps, order, valid, x))
            outputs.append(runs[-1].in_place(steps.states[:, :, 0]))
        inputs = torch.cat(outputs, dim=-1)
    return runs


def outputs_of(runs: list[LayerRun]) -> Tensor:
    """What the last layer of ``run_layers`` puts out, (b, n, directions · H), padding zero."""
    last = runs[-1].layer
    parts = [run.in_place(run.steps.states[:, :, 0]) for run in runs if run.layer == last]
    return torch.cat(parts, dim=-1)


def _extent(module: nn.Module) -> tuple[int, int]:
    """Layers and directions, from the names of the weights."""
    names = [name for name, _ in module.named_parameters() if name.startswith("weight_hh_l")]
    layers = {name.removesuffix("_reverse") for name in names}
    return len(layers), 2 if any(name.endswith("_reverse") for name in names) else 1
