"""Where the gradient of a trained or fresh cell goes, in a few numbers.

Legend: b sequences, n steps, H hidden, S states.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longarc.dynamics.gradient_share import (
    follow_back,
    full_adjoints,
    parameter_shares,
    reach,
)
from longarc.dynamics.recurrent_jacobian import Jacobians, run_layers
from longarc.studies.rnn.exercises import Exercise


@dataclass(frozen=True)
class Look:
    """What the loss's gradient does in one cell, means over sequences.

    ``norms`` (n,) of what is carried back, by distance from the last step; ``parameters`` (n,) of
    the parts of dL/dU by the steps crossed. ``terms`` are each term's share of a step's squared
    norm, ``sizes`` the terms' mean Frobenius norms over √H, with their ``"sum"``; and of the
    memory's own Jacobian, from c to c where there is a c, ``"kept"``, the carry, and ``"rest"``,
    all others together. ``carry`` (n,) is the mean of what each
    step keeps, ``carried`` (n,) the same weighted by the squared gradient that comes through it;
    empty in cells that carry nothing.
    """

    norms: tuple[float, ...]
    parameters: tuple[float, ...]
    growth: float
    terms: dict[str, float]
    sizes: dict[str, float]
    carry: tuple[float, ...]
    carried: tuple[float, ...]

    @property
    def reach(self) -> int:
        """The distance beyond which less than 1 % of dL/dU is."""
        return reach(torch.tensor(self.parameters))

    def beyond(self, distance: int) -> float:
        """The share of the parts of dL/dU, by their norms, that crossed at least so many steps.

        0 where there is no gradient, or none that is a number.
        """
        total = sum(self.parameters)
        return sum(self.parameters[distance:]) / total if 0 < total < math.inf else 0.0


def look(cell: nn.Module, head: nn.Linear, exercise: Exercise, x: Tensor, wanted: Tensor) -> Look:
    """Look into a reader of one direction whose answer comes from its last state."""
    with torch.no_grad():
        last = cell(x)[0][:, -1].clone()
    last.requires_grad_()
    (error,) = torch.autograd.grad(exercise.loss(head(last), wanted), last)
    return look_back(cell, x, None, error)


def look_back(cell: nn.Module, x: Tensor, mask: Tensor | None, error: Tensor) -> Look:
    """The same for the error (b, H) at each document's last h, of inputs x (b, n, d).

    In float64: an exploding gradient's square soon is beyond float32.
    """
    run = run_layers(copy.deepcopy(cell).double(), x.double(), mask)[0]
    jacobians = run.jacobians()
    ends = jacobians.valid.sum(1) - 1
    errors = torch.zeros_like(run.steps.states)
    errors[torch.arange(len(ends), device=ends.device), ends.clamp(min=0), 0] = error.double()
    first = errors[torch.arange(len(ends), device=ends.device), ends.clamp(min=0)]
    back = follow_back(jacobians, first)
    there = jacobians.valid.clone()
    there[:, 0] = False
    through_c = run.jacobians("cell") if jacobians.states == 2 else jacobians
    size = jacobians.gates.shape[-1] ** 0.5
    norms = jacobians.norms()
    rest = [name for name in through_c.terms if name != "carry"]
    norms["rest"] = through_c.only(*rest).norms()["sum"]
    if through_c.carry is not None:
        norms["kept"] = through_c.only("carry").norms()["sum"]
    carry, carried = _carried(jacobians, errors)
    return Look(
        norms=tuple(back.norms.tolist()),
        parameters=tuple(parameter_shares(jacobians, errors).norms.tolist()),
        growth=back.growth,
        terms=back.terms,
        sizes={name: float(value[there].mean()) / size for name, value in norms.items()},
        carry=carry,
        carried=carried,
    )


def _carried(jacobians: Jacobians, errors: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if jacobians.carry is None:
        return (), ()
    kept = jacobians.carry[..., -1, :]  # (b, n, H)
    # Relative to each sequence's largest: squares of what has vanished would be zero.
    tiny = torch.finfo(kept.dtype).tiny
    adjoints = full_adjoints(jacobians, errors)
    through = jacobians.only("carry").pull(adjoints)[..., -1, :] / kept.clamp(min=tiny)
    through = through / through.abs().amax(2, keepdim=True).clamp(min=tiny)
    squares = through.square()
    weight = squares.sum(2)
    seen = (weight > 0) & jacobians.valid
    weighted = (kept * squares).sum(2) / weight.clamp(min=tiny)
    count = seen.sum(0).clamp(min=1)
    valid = jacobians.valid.sum(0).clamp(min=1)
    plain = (kept.mean(2) * jacobians.valid).sum(0) / valid
    found = torch.where(seen, weighted, 0.0).sum(0) / count
    return tuple(plain.tolist()), tuple(found.tolist())
