"""What one step can do at most, in numbers: bounds of single terms, and of the states.

Everything in float64, from the same decomposition that the trained cells are measured with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from longarc.dynamics.recurrent_jacobian import recurrent_jacobians, run_layers
from longarc.studies.rnn.readers import started

SCALES = tuple(10 ** (power / 2) for power in range(-2, 7))
"""What the recurrent weights are multiplied by: 0.1 to 1,000."""

GATE = 0.25
"""The most that σ' = σ(1 − σ) can be."""


@dataclass(frozen=True)
class Bounds:
    """What was found.

    ``peak`` is the maximum of |(1 − tanh²c) c| and ``at`` where it lies. ``steps`` maps ``tanh``
    and ``relu`` to the largest |∂h_t/∂h_{t−1}| · |h_{t−1}| of one number over all U;
    ``norms`` to the norm of a layer's Jacobian, by ``SCALES``, over √H. ``terms`` are the largest
    |term| / |U| of each path through a gate of the LSTM's c, of one number; ``states`` the largest
    |h| and |c| of each cell over a long document, whatever the scale.
    """

    peak: float
    at: float
    steps: dict[str, float]
    norms: dict[str, list[float]]
    terms: dict[str, float]
    states: dict[str, tuple[float, float]]


def find_bounds(draws: int, steps: int, seed: int = 0) -> Bounds:
    """Look for the largest of each.

    Args:
        draws: random cells of one number, each at a random state.
        steps: of the document whose states are followed.
        seed: of the draws.
    """
    at = _root()
    peak = (1 - math.tanh(at) ** 2) * at
    return Bounds(
        peak=peak,
        at=at,
        steps=_one_number(draws, seed),
        norms={kind: _layer(kind, seed) for kind in ("rnn", "relu-rnn")},
        terms=_paths(draws, seed),
        states={kind: _states(kind, steps, seed) for kind in ("relu-rnn", "lstm", "gru",
                                                              "output-gated-gru")},
    )  # fmt: skip


def _root() -> float:
    """Where 2 c tanh c = 1, by Newton: there (1 − tanh²c) c has its maximum."""
    c = 0.75
    for _ in range(20):
        tanh = math.tanh(c)
        c -= (2 * c * tanh - 1) / (2 * tanh + 2 * c * (1 - tanh**2))
    return c


def _one_number(draws: int, seed: int) -> dict[str, float]:
    """h_t = φ(U h_{t−1}) of one number: the largest |∂h_t/∂h_{t−1}| |h_{t−1}|, over all U."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.logspace(-4, 4, draws, dtype=torch.float64)
    before = torch.rand(draws, generator=generator, dtype=torch.float64) * 2 - 1
    found = {}
    for name, slope in (
        ("tanh", lambda s: 1 - s.tanh() ** 2),
        ("relu", lambda s: (s > 0).double()),
    ):
        # Signs such that ReLU passes.
        u = size * before.sign()
        found[name] = float((slope(u * before) * u * before).abs().max())
    return found


def _layer(kind: str, seed: int) -> list[float]:
    """Norm over √H of one step's Jacobian at the same h_{t−1}, U times each of ``SCALES``."""
    cell = started(kind, 1, 32, seed).double()
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(1, 64, 32, generator=generator, dtype=torch.float64).tanh()
    weight: Tensor = cell.weight_hh_l0  # pyright: ignore[reportAssignmentType]
    first = weight.detach().clone()
    still = torch.zeros(64, 1, 1, dtype=torch.float64)
    found = []
    for scale in SCALES:
        with torch.no_grad():
            weight.copy_(first * scale)
        norms = recurrent_jacobians(cell, still, initial=before).norms()["sum"]
        found.append(float(norms.mean()) / 32**0.5)
    return found


def _paths(draws: int, seed: int) -> dict[str, float]:
    """The LSTM's c → c of one number: the largest |term| / |U| of each path through a gate."""
    found: dict[str, float] = {}
    generator = torch.Generator().manual_seed(seed)
    for size in (0.3, 1.0, 3.0):
        cell = started("lstm", 1, 1, seed).double()
        with torch.no_grad():
            for weight in cell.parameters():
                weight.copy_(size * torch.randn(weight.shape, generator=generator).double())
        x, h, c = (3 * torch.randn(draws, generator=generator).double() for _ in range(3))
        initial = h.tanh().view(1, -1, 1), c.view(1, -1, 1)
        # The path starts at o_{t−1} tanh c_{t−1}: the second step of two has one.
        inputs = torch.stack([x, x.flip(0)], dim=1)[..., None]
        jacobians = recurrent_jacobians(cell, inputs, initial=initial, state="cell")[:, 1]
        for k, name in enumerate(jacobians.names):
            each = jacobians.only(name).matrices().abs() / jacobians.weights[k].abs()
            found[name] = max(found.get(name, 0.0), float(each.max()))
    return found


def _states(kind: str, steps: int, seed: int) -> tuple[float, float]:
    """The largest |h| and |c| (of h again, where there is none), over U times 0.1, 1, 10, 100."""
    largest = [0.0, 0.0]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, steps, 4, generator=generator, dtype=torch.float64)
    for scale in (0.1, 1.0, 10.0, 100.0):
        cell = started(kind, 4, 16, seed, scale=scale).double()
        states = run_layers(cell, x)[0].steps.states  # h, and c where there is one
        found = states[:, :, 0], states[:, :, -1]
        largest = [max(a, float(s.abs().max())) for a, s in zip(largest, found, strict=True)]
    return largest[0], largest[1]
