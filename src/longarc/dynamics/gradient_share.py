"""Which part of a recurrent layer's gradient has crossed how many steps, and through which terms.

dh_t/dθ = (∂h_t/∂h_{t−1}) dh_{t−1}/dθ + ∂h_t/∂θ: the gradient of a recurrent network is a recurrent
network. It *vanishes* where the share that comes from far back does, not where it is 0.

Legend: b batch, n steps, H hidden, K gates, S states, k steps crossed, u_t = dL/dstate_t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longarc.dynamics.recurrent_jacobian import Jacobians
from longarc.errors import DataError
from longarc.options import check_whole

REST = 0.01
"""The part of the gradient that may lie beyond its reach: "below 1 %"."""


@dataclass(frozen=True)
class ParameterShares:
    """dL/dU of one layer and direction, Σ_k of what crossed k steps to get there.

    ``norms`` (k,) of each part; ``shares`` (k,) of the whole along its own direction,
    ⟨part, whole⟩ / ‖whole‖², which add up to 1 and may be negative where parts work against each
    other; ``whole`` (K, H, H).
    """

    norms: Tensor
    shares: Tensor
    whole: Tensor

    @property
    def reach(self) -> int:
        """The distance beyond which the parts' norms add up to less than 1 %."""
        return reach(self.norms)


@dataclass(frozen=True)
class Adjoints:
    """An error at each document's last step, followed back.

    ``logs`` (b, n): log of ‖u‖ k steps before the last, relative to ‖u‖ at the last; −inf where it
    is 0, and beyond the start. ``lengths`` (b,) are the steps of each document, 0 where no error
    enters, which leaves nothing to follow. ``terms`` maps each term to its mean share of a step's
    ‖u‖², ⟨T ᵀu, Jᵀu⟩ / ‖Jᵀu‖²: they add up to 1.
    """

    logs: Tensor
    lengths: Tensor
    terms: dict[str, float]

    @property
    def growth(self) -> float:
        """Mean rate a step in nats, above 0 where gradients explode; −inf where none is left.

        The slope of ``logs`` from the last step to the first at which it is still above rounding.
        """
        kept = self.logs > -60.0
        count = kept.sum(1) - 1
        if not bool((count > 0).any()):
            return -torch.inf
        ends = self.logs.gather(1, count.clamp(min=0)[:, None])[:, 0]
        return float(ends[count > 0].sum() / count[count > 0].sum())

    @property
    def norms(self) -> Tensor:
        """Mean of ‖u‖ over the documents that are long enough, by distance (n,), 1 at 0."""
        many = torch.arange(self.logs.shape[1], device=self.logs.device) < self.lengths[:, None]
        return self.logs.exp().sum(0) / many.sum(0).clamp(min=1)


def reach(norms: Tensor) -> int:
    """The least distance beyond which norms (n,), by distance from 0, sum to less than 1 % of all.

    n − 1 where that holds of no distance before: the gradient reaches the start. For norms e^{−λk}
    it is about 4.6/λ.

    >>> reach(0.5 ** torch.arange(100.0)), reach(torch.ones(100))
    (6, 99)
    """
    if norms.ndim != 1 or not len(norms):
        raise DataError(f"norms have shape {tuple(norms.shape)}; expected (n,) by distance.")
    norms = norms.double()
    total = float(norms.sum())
    if not total:
        return 0
    # Summed from the far end: small numbers first.
    beyond = norms.flip(0).cumsum(0).flip(0) - norms
    return int((beyond >= REST * total).sum())


@torch.no_grad()
def full_adjoints(jacobians: Jacobians, errors: Tensor) -> Tensor:
    """u_t = e_t + J_{t+1}ᵀ u_{t+1}: dL/dstate_t (b, n, S, H) from the errors that enter by step.

    ``errors`` (b, n, S, H) are dL/dstate_t with the following steps left out: zero in c, mostly.
    """
    _check(jacobians, errors)
    after = torch.zeros_like(errors[:, 0])
    found = []
    for t in reversed(range(errors.shape[1])):
        if t + 1 < errors.shape[1]:
            after = jacobians[:, t + 1].pull(after)
        after = errors[:, t] + after
        found.append(after)
    return torch.stack(found[::-1], dim=1)


@torch.no_grad()
def parameter_shares(
    jacobians: Jacobians, errors: Tensor, *, farthest: int | None = None
) -> ParameterShares:
    """Split dL/dU by the number of recurrent steps that its paths crossed, exactly.

    A path leaves the loss at step t, crosses k steps back to step t − k, and there enters
    U through U h_{t−k−1}. Part 0 is what a network without memory of its own gradient would have;
    truncated backpropagation through time keeps the first parts.

    It costs a product of all steps' Jacobians with vectors for each k: about n/2 backward passes of
    the layer for all n of them.

    Args:
        jacobians: of a layer and direction, (b, n), in the form ``"full"``.
        errors: (b, n, S, H), as for :func:`full_adjoints`.
        farthest: the largest k that is followed; None for all. Shares are of the whole either way.

    >>> from torch import nn
    >>> from longarc.dynamics.recurrent_jacobian import recurrent_jacobians
    >>> _ = torch.manual_seed(0)
    >>> jacobians = recurrent_jacobians(nn.GRU(2, 3), torch.randn(1, 6, 2))
    >>> found = parameter_shares(jacobians, torch.ones(1, 6, 1, 3))
    >>> found.norms.shape, round(float(found.shares.sum()), 5)
    (torch.Size([6]), 1.0)
    """
    _check(jacobians, errors)
    steps = errors.shape[1]
    last = steps - 1 if farthest is None else min(check_whole("farthest", farthest), steps - 1)
    whole = parameter_gradient(jacobians, full_adjoints(jacobians, errors))
    square = whole.square().sum()
    norms, shares = [], []
    adjoints = errors
    for k in range(last + 1):
        part = parameter_gradient(jacobians[:, : steps - k], adjoints)
        norms.append(part.norm())
        shares.append((part * whole).sum() / square)
        if k < last:
            adjoints = jacobians[:, 1 : steps - k].pull(adjoints[:, 1:])
    return ParameterShares(torch.stack(norms), torch.stack(shares), whole)


def parameter_gradient(jacobians: Jacobians, adjoints: Tensor) -> Tensor:
    """dL/dU (K, H, H) from dL/dstate_t (b, n, S, H) of the same steps."""
    pushed = (jacobians.gates * adjoints[..., None, :, :]).sum(-2).flatten(0, 1)
    before = jacobians.previous.flatten(0, 1)
    count, hidden = jacobians.weights.shape[:2]
    return (pushed.flatten(1).T @ before).view(count, hidden, -1)


@torch.no_grad()
def follow_back(jacobians: Jacobians, error: Tensor) -> Adjoints:
    """Follow the error (b, S, H) at each document's last step to its first.

    A chain of products uᵀJ, rescaled on the way, so that nothing underflows: the cost is about that
    of one backward pass of the layer.

    >>> from torch import nn
    >>> from longarc.dynamics.recurrent_jacobian import recurrent_jacobians
    >>> rnn = nn.RNN(1, 2, nonlinearity="relu")
    >>> for weight in rnn.parameters():
    ...     _ = nn.init.ones_(weight)
    >>> _ = rnn.weight_hh_l0.data.copy_(torch.eye(2) / 2)
    >>> found = follow_back(recurrent_jacobians(rnn, torch.ones(1, 4, 1)), torch.ones(1, 1, 2))
    >>> found.norms, round(found.growth, 4), round(found.terms["candidate"], 4)
    (tensor([1.0000, 0.5000, 0.2500, 0.1250]), -0.6931, 1.0)
    """
    ends = jacobians.from_end()
    tiny = torch.finfo(error.dtype).tiny
    after = error
    visited, sizes = [], []
    for k in range(ends.valid.shape[1]):
        # The step's source is one of the document's own steps, not its start.
        if k:
            after = ends[:, k - 1].pull(visited[-1])
        sizes.append(after.flatten(1).norm(dim=1))
        visited.append(after / sizes[-1].clamp(min=tiny)[:, None, None])
    size = torch.stack(sizes, dim=1) * ends.valid
    logs = size.log().cumsum(1) - size[:, :1].log()
    logs = torch.where((size > 0).int().cumprod(1) > 0, logs, -torch.inf)
    shares = _shares(ends[:, :-1], torch.stack(visited, dim=1), size[:, 1:])
    return Adjoints(logs, ends.valid.sum(1) * (size[:, 0] > 0), shares)


def _shares(ends: Jacobians, visited: Tensor, sizes: Tensor) -> dict[str, float]:
    """⟨T ᵀu_k, u_{k+1}⟩ / ‖Jᵀu_k‖ for each term T, u_k and u_{k+1} of length 1; means over steps.

    All steps at once, which the chain itself cannot be. ``visited`` (b, n, S, H), ``sizes``
    (b, n − 1).
    """
    alive = sizes > 0
    found = {}
    for name in ends.terms:
        parts = (ends.only(name).pull(visited[:, :-1]) * visited[:, 1:]).flatten(2).sum(2)
        found[name] = float((parts[alive] / sizes[alive]).double().sum() / alive.sum().clamp(min=1))
    return found


def _check(jacobians: Jacobians, errors: Tensor) -> None:
    wanted = (*jacobians.valid.shape, *jacobians.gates.shape[-2:])
    if errors.shape != wanted:
        raise DataError(f"errors have shape {tuple(errors.shape)}; expected (b, n, S, H) {wanted}.")
