"""What many recurrent steps do together: products over distance, growth, spectra of single steps.

Legend: b batch, n steps, H hidden, S states, N = S·H, J_t the Jacobian of step t (N, N).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longarc.dynamics.recurrent_jacobian import Jacobians
from longarc.errors import DataError
from longarc.options import check_whole

BASIS = 24
"""Vectors of Arnoldi's basis. In layers of 96 to 256, the radius is then within 3 % of the exact
one for gated cells, and within 9 % where U is orthogonal, its eigenvalues all on one circle (tests;
benchmarks/gradient_flow.py)."""

EXACT = 64
"""N up to which eigenvalues are computed from the matrices."""

CHUNK = 512
"""Steps whose bases are in memory at once: 200 MB at N = 512 would be 24 times as many."""


def product_norms(jacobians: Jacobians, *, probes: int | None = None, seed: int = 0) -> Tensor:
    """Log of ‖J_T J_{T−1} … J_{T−k+1}‖_F of each document, (b, n + 1), T its last step.

    k = 0 … n. How much of a change k steps before the end is left at the end; −inf beyond a
    document's start.

    Args:
        jacobians: with leading dimensions (b, n).
        probes: rows that are followed. None follows the whole matrix and is exact, at n products
            of (N, N) matrices; ``probes`` random rows give an estimate of ‖·‖_F² without bias, of
            relative deviation √(2/probes) or less, at probes/N of that.
        seed: of the rows.

    >>> from torch import nn
    >>> from longarc.dynamics.recurrent_jacobian import recurrent_jacobians
    >>> rnn = nn.RNN(1, 2, nonlinearity="relu", bias=False)
    >>> for weight in rnn.parameters():
    ...     _ = nn.init.ones_(weight)
    >>> _ = rnn.weight_hh_l0.data.copy_(torch.eye(2) / 2)
    >>> norms = product_norms(recurrent_jacobians(rnn, torch.ones(1, 3, 1)))
    >>> (norms - norms[:, :1]).exp()
    tensor([[1.0000, 0.5000, 0.2500, 0.1250]])
    """
    ends = _two_dimensions(jacobians).from_end()
    states, hidden = ends.gates.shape[-2:]
    like = ends.gates
    if probes is None:
        rows = torch.eye(ends.size, dtype=like.dtype, device=like.device)
        rows = rows.expand(len(like), -1, -1)
    else:
        check_whole("probes", probes, at_least=1)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(len(like), probes, ends.size, generator=generator) / probes**0.5
        rows = rows.to(like.device, like.dtype)
    rows = rows.unflatten(-1, (states, hidden))
    logs = [_log_norm(rows)]
    scale = torch.zeros_like(logs[0])
    for k in range(like.shape[1]):
        rows = ends[:, k, None].pull(rows)
        size = rows.flatten(1).norm(dim=1).clamp(min=torch.finfo(like.dtype).tiny)
        rows = rows / size[:, None, None, None]
        scale = scale + size.log()
        logs.append(scale + _log_norm(rows))
    return torch.stack(logs, dim=1)


def products(jacobians: Jacobians, distance: int) -> Tensor:
    """J_t J_{t−1} … J_{t−distance+1} for every step that has so many behind it, exact.

    (b, n − distance + 1, N, N), the first of them ending with step ``distance`` (from 1). For small
    layers: it forms the matrices.

    >>> from torch import nn
    >>> from longarc.dynamics.recurrent_jacobian import recurrent_jacobians
    >>> jacobians = recurrent_jacobians(nn.GRU(2, 3), torch.ones(1, 5, 2))
    >>> products(jacobians, 2).shape
    torch.Size([1, 4, 3, 3])
    """
    steps = _two_dimensions(jacobians).valid.shape[1]
    check_whole("distance", distance, at_least=1, at_most=steps)
    single = jacobians.matrices()
    found, reach = single, 1
    while reach < distance:
        more = min(reach, distance - reach)
        # found[i] ends at step i + reach − 1, so the one before it ends `more` steps earlier.
        found = found[:, more:] @ found[:, : found.shape[1] - more] if more == reach else (
            found[:, more:] @ products(jacobians, more)[:, : found.shape[1] - more]
        )  # fmt: skip
        reach += more
    return found


def lyapunov_exponents(jacobians: Jacobians, count: int = 4, *, seed: int = 0) -> Tensor:
    """The ``count`` largest mean growth rates a step of small changes, (b, count), in nats.

    By QR decompositions of J_t Q_{t−1} along the steps. The first is the rate at which a change
    grows (above 0: gradients explode) or fades (below: they vanish, to 1 % within −4.6 / rate
    steps). All N of them add up to the mean of log |det J_t|. −inf where J has no such rank.

    Source: Benettin et al. 1980; for recurrent networks Engelken et al. 2023 (arXiv 2006.02427).

    >>> from torch import nn
    >>> from longarc.dynamics.recurrent_jacobian import recurrent_jacobians
    >>> rnn = nn.RNN(1, 2, nonlinearity="relu")
    >>> for weight in rnn.parameters():
    ...     _ = nn.init.ones_(weight)
    >>> _ = rnn.weight_hh_l0.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.5]]))
    >>> lyapunov_exponents(recurrent_jacobians(rnn, torch.ones(1, 50, 1)), 1).exp()
    tensor([[1.99...]])
    """
    jacobians = _two_dimensions(jacobians)
    check_whole("count", count, at_least=1, at_most=jacobians.size)
    gates = jacobians.gates
    batch, steps, _, states, hidden = gates.shape
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(batch, jacobians.size, count, generator=generator).to(gates)
    q = torch.linalg.qr(start).Q
    total = gates.new_zeros(batch, count)
    for t in range(steps):
        step = jacobians[:, t, None]
        images = step.apply(q.mT.unflatten(-1, (states, hidden))).flatten(-2).mT
        new, r = torch.linalg.qr(images)
        there = jacobians.valid[:, t, None]
        grown = r.diagonal(dim1=-2, dim2=-1).abs().log()
        total += torch.where(there, grown, 0.0)
        q = torch.where(there[..., None], new, q)
    return total / jacobians.valid.sum(1, keepdim=True).clamp(min=1)


def spectral_radii(
    jacobians: Jacobians, *, exact: bool | None = None, basis: int = BASIS, seed: int = 0
) -> Tensor:
    """The largest modulus of each Jacobian's eigenvalues, (…).

    Args:
        jacobians: the whole, or some terms (``jacobians.only("carry")``).
        exact: from the matrices' eigenvalues, N³ operations each; by Arnoldi's method otherwise,
            ``basis`` products J v each, which comes near. None: exact up to N = 64.
        basis: vectors of Arnoldi's basis.
        seed: of its start.

    >>> from torch import nn
    >>> from longarc.dynamics.recurrent_jacobian import recurrent_jacobians
    >>> jacobians = recurrent_jacobians(nn.LSTM(2, 3), torch.ones(1, 5, 2))
    >>> spectral_radii(jacobians).shape
    torch.Size([1, 5])
    """
    if jacobians.size <= (EXACT if exact is None else 0) or exact:
        return torch.linalg.eigvals(jacobians.matrices()).abs().amax(-1)

    def radius(part: Jacobians) -> Tensor:
        return torch.linalg.eigvals(_arnoldi(part, part.apply, basis, seed)).abs().amax(-1)

    return _in_chunks(jacobians, radius)


def spectral_norms(
    jacobians: Jacobians, *, exact: bool | None = None, basis: int = BASIS // 2, seed: int = 0
) -> Tensor:
    """The largest singular value of each Jacobian, (…): the most that a step can enlarge a change.

    Arguments are those of :func:`spectral_radii`; a vector of the basis costs two products here.

    >>> from torch import nn
    >>> from longarc.dynamics.recurrent_jacobian import recurrent_jacobians
    >>> jacobians = recurrent_jacobians(nn.GRU(2, 3), torch.ones(1, 5, 2))
    >>> bool((spectral_norms(jacobians) >= spectral_radii(jacobians) - 1e-6).all())
    True
    """
    if jacobians.size <= (EXACT if exact is None else 0) or exact:
        return torch.linalg.matrix_norm(jacobians.matrices(), 2)

    def norm(part: Jacobians) -> Tensor:
        gram = _arnoldi(part, lambda v: part.pull(part.apply(v)), basis, seed)
        return torch.linalg.eigvalsh((gram + gram.mT) / 2)[..., -1].clamp(min=0).sqrt()

    return _in_chunks(jacobians, norm)


def _in_chunks(jacobians: Jacobians, call: Callable[[Jacobians], Tensor]) -> Tensor:
    lead = jacobians.valid.shape
    flat = jacobians[jacobians.valid.new_ones(lead)]  # (steps of all documents,)
    count = flat.valid.shape[0]
    parts = [call(flat[start : start + CHUNK]) for start in range(0, count, CHUNK)]
    return torch.cat(parts).reshape(lead) if parts else flat.gates.new_zeros(lead)


def _arnoldi(
    jacobians: Jacobians, image_of: Callable[[Tensor], Tensor], basis: int, seed: int
) -> Tensor:
    """The operators' restrictions (m, k, k) to the spaces of v, Jv, J²v and so on."""
    steps, _, states, hidden = jacobians.gates.shape
    size = min(check_whole("basis", basis, at_least=2), jacobians.size)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(states * hidden, generator=generator).to(jacobians.gates)
    vectors = jacobians.gates.new_zeros(steps, size, states * hidden)
    vectors[:, 0] = start / start.norm()
    restricted = jacobians.gates.new_zeros(steps, size, size)
    for j in range(size):
        image = image_of(vectors[:, j].unflatten(-1, (states, hidden))).flatten(-2)
        known = vectors[:, : j + 1]
        for _ in range(2):  # rounding leaves something after the first
            share = torch.einsum("mkn,mn->mk", known, image)
            restricted[:, : j + 1, j] += share
            image = image - torch.einsum("mk,mkn->mn", share, known)
        if j + 1 < size:
            length = image.norm(dim=-1)
            # A space that is exhausted ends: a direction of rounding errors would be none of J's.
            ends = length <= 1e-6 * restricted[:, : j + 1, j].norm(dim=-1)
            length = torch.where(ends, torch.zeros_like(length), length)
            restricted[:, j + 1, j] = length
            vectors[:, j + 1] = torch.where(
                ends[:, None], 0.0, image / length.clamp(min=torch.finfo(image.dtype).tiny)[:, None]
            )
    return restricted


def _log_norm(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1).log()


def _two_dimensions(jacobians: Jacobians) -> Jacobians:
    if jacobians.valid.ndim != 2:
        raise DataError(
            f"The Jacobians lead with dimensions {tuple(jacobians.valid.shape)}; expected (b, n)."
        )
    return jacobians
