"""A recurrent module inside a model: how far back its gradient comes, and what carries it.

Legend: b batch, n steps, H hidden, S states, U the recurrent weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longarc.dynamics.gradient_share import follow_back, full_adjoints, parameter_shares, reach
from longarc.dynamics.recurrent_cells import name_of
from longarc.dynamics.recurrent_jacobian import LayerRun, outputs_of, run_layers
from longarc.dynamics.watching import RecurrentCall

DOCUMENTS = 2
"""Texts of a batch that are followed: with four, an LSTM's flow costs 1.6 training steps."""


@dataclass(frozen=True)
class RecurrentFlow:
    """One direction of one recurrent layer.

    ``norms`` are ‖dL/dstate‖ by distance from the step at which an error enters, 1 at 0, a mean
    over texts; the error is the loss's own at the last step (a random one where there is none).
    ``reach`` is the distance beyond which less than 1 % of their sum lies, ``length`` the steps of
    the longest text, ``growth`` the mean rate a step in nats. ``terms`` are the shares of each term
    of the Jacobian in what is carried back a step, ``term_norms`` their mean Frobenius norms over
    √H: 1 is that of the identity. ``carry`` is the mean of what a step keeps: the LSTM's forget
    gate, the GRU's z, 1 − z of the output-gated GRU; None in cells that carry nothing.
    ``parameters`` is the norm of the part of dL/dU that crossed so
    many steps, from all errors, and ``parameter_reach`` its reach; None unless asked for.
    """

    name: str
    cell: str
    length: int
    growth: float
    reach: int
    norms: tuple[float, ...]
    terms: dict[str, float]
    term_norms: dict[str, float]
    carry: float | None
    parameters: tuple[float, ...] | None = None
    parameter_reach: int | None = None

    @property
    def carried_by(self) -> str:
        """The term with the largest share."""
        return max(self.terms, key=lambda name: self.terms[name])


@torch.no_grad()
def recurrent_flow(
    called: RecurrentCall,
    gradient_of: dict[int, Tensor | None],
    mask: Tensor | None,
    *,
    exact: bool,
    documents: int = DOCUMENTS,
) -> Iterator[RecurrentFlow]:
    """The flow of every direction and layer of a call, first layer first.

    ``gradient_of`` maps the identity of the call's outputs to the loss's gradients by them.
    """
    kept = slice(0, documents)
    runs = _repeat(called, mask, kept)
    error = called.error(gradient_of.get(id(called.data)))[kept]
    finals = [_final(final, gradient_of, kept) for final in called.finals]
    errors = _errors(runs, error, finals)
    for run, entering in zip(runs, errors, strict=True):
        yield _flow(called, run, entering, exact=exact)


def _repeat(called: RecurrentCall, mask: Tensor | None, kept: slice) -> list[LayerRun]:
    """The module's steps, under the mask that gives what the module put out.

    A packed sequence says where its padding is. A plain one does not: the model may have moved its
    tokens to the front, or read its padding too.
    """
    inputs, packed = called.padded(called.inputs)
    every = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
    if packed is not None:
        candidates = [packed]
    elif mask is None or mask.shape != every.shape:
        candidates = [every]
    else:
        candidates = [mask, mask.sort(dim=1, descending=True, stable=True).values, every]
    initial = _initial(called.initial, kept)
    output = called.padded(called.output)[0][kept].detach()
    tried = []
    for candidate in candidates:
        seen = candidate[kept]
        runs = run_layers(called.module, inputs[kept].detach(), seen, initial=initial)
        tried.append(runs)
        found = outputs_of(runs)[seen]
        if torch.allclose(found, output[seen], rtol=1e-3, atol=1e-4 * float(found.abs().max())):
            return runs
    return tried[0]


def _errors(runs: list[LayerRun], error: Tensor, finals: list[Tensor | None]) -> list[Tensor]:
    """What enters each run's states (b, n, S, H), in the order of steps: last layer first back."""
    found: dict[int, Tensor] = {}
    directions = 1 + any(run.reverse for run in runs)
    for layer in reversed(range(runs[-1].layer + 1)):
        below: Tensor | None = None
        for index, run in enumerate(runs):
            if run.layer != layer:
                continue
            states = run.steps.states
            entering = torch.zeros_like(states)
            entering[:, :, 0] = run.in_steps(error.chunk(directions, dim=-1)[run.reverse])
            rows = torch.arange(len(states), device=states.device)
            last = (run.valid.sum(1) - 1).clamp(min=0)
            for state, final in enumerate(finals[: states.shape[2]]):
                if final is not None:
                    entering[rows, last, state] += final[index]
            found[index] = entering
            if layer:
                part = run.input_errors(full_adjoints(run.jacobians(), entering))
                below = part if below is None else below + part
        if below is not None:
            error = below
    return [found[index] for index in range(len(runs))]


def _flow(called: RecurrentCall, run: LayerRun, entering: Tensor, *, exact: bool) -> RecurrentFlow:
    jacobians = run.jacobians()
    rows = torch.arange(len(entering), device=entering.device)
    last = entering[rows, (run.valid.sum(1) - 1).clamp(min=0)]
    if not last.any():
        generator = torch.Generator().manual_seed(0)
        last = torch.randn(last.shape, generator=generator).to(last)
    back = follow_back(jacobians, last)
    there = run.valid & (torch.arange(run.valid.shape[1], device=run.valid.device) > 0)
    hidden = run.steps.states.shape[-1]
    norms = {
        name: float(value[there].mean() / hidden**0.5) if there.any() else math.nan
        for name, value in jacobians.norms().items()
    }
    kept = None if jacobians.carry is None else float(jacobians.carry[..., -1, :][run.valid].mean())
    parts = parameter_shares(jacobians, entering) if exact else None
    length = int(run.valid.sum(1).max())
    by_distance = back.norms[:length]
    module = called.name or type(called.module).__name__
    several = any(name.endswith(("l1", "_reverse")) for name, _ in called.module.named_parameters())
    return RecurrentFlow(
        name=f"{module}, {run.name}" if several else module,
        cell=name_of(called.module),
        length=length,
        growth=back.growth,
        reach=reach(by_distance),
        norms=tuple(by_distance.tolist()),
        terms=back.terms,
        term_norms=norms,
        carry=kept,
        parameters=None if parts is None else tuple(parts.norms[:length].tolist()),
        parameter_reach=None if parts is None else reach(parts.norms[:length]),
    )


def _initial(given: Any, kept: slice) -> tuple[Tensor, ...] | None:
    if given is None:
        return None
    states = (given,) if isinstance(given, Tensor) else tuple(given)
    return tuple((s[:, None] if s.ndim == 2 else s)[:, kept].detach() for s in states)


def _final(final: Tensor, gradient_of: dict[int, Tensor | None], kept: slice) -> Tensor | None:
    gradient = gradient_of.get(id(final))
    if gradient is None:
        return None
    return (gradient[:, None] if gradient.ndim == 2 else gradient)[:, kept]
