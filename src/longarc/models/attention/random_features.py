"""Positive random features of the softmax kernel: the directions ω, and what lowers the variance.

    e^{q·k} = E_ω[ e^{ω·q − ‖q‖²/2} e^{ω·k − ‖k‖²/2} ],   ω ~ N(0, I_d),

an estimate of e^{q·k} for every draw of m directions; how far it is off grows like e^{‖q + k‖²}.
"""

from __future__ import annotations

import torch
from scipy.stats import chi
from torch import Tensor

from longarc.options import check_choice, check_whole

PROJECTIONS = ("iid", "orthogonal", "stratified", "simplex")
"""The ways to draw, from the noisiest."""


def draw_projections(
    num_features: int, width: int, *, heads: int = 1, method: str = "stratified", seed: int = 0
) -> Tensor:
    """Draw ω, (h, m, d), each row alone a sample of N(0, I_d).

    - ``iid``: the rows know nothing of each other.
    - ``orthogonal``: blocks of d rows are perpendicular, their lengths independent and χ_d.
    - ``stratified``: directions as in ``orthogonal``, and even lengths: the i-th is χ_d's quantile
      at (i − u_i)/m with u_i uniform on [0, 1), and the lengths are dealt out at random. With u_i
      fixed at ½ the lengths are more even still, but E‖ω‖² falls short of d, and the estimate of
      the kernel, which lives on long ω, with it; so u_i is drawn and the estimate stays unbiased.
    - ``simplex``: blocks of d rows point to the corners of a simplex, turned at random: angles are
      obtuse instead of right. Lengths as in ``stratified``.

    Args:
        num_features: m ≥ 1.
        width: d ≥ 1.
        heads: h; each has its own draw.
        seed: the draw follows from it alone, in float32 and on the CPU, on any machine.

    Raises:
        OptionError: a number out of range, or an unknown method.

    Source: Choromanski et al. 2021, "Rethinking Attention with Performers" (arXiv 2009.14794);
    simplex: Reid et al. 2023, "Simplex Random Features" (arXiv 2301.13856).

    >>> omega = draw_projections(8, 4, heads=2)
    >>> omega.shape
    torch.Size([2, 8, 4])
    >>> bool((omega[0, 0] @ omega[0, 1]).abs() < 1e-5)
    True
    """
    check_whole("num_features", num_features, at_least=1)
    check_whole("width", width, at_least=1)
    check_whole("heads", heads, at_least=1)
    check_choice("projection", method, PROJECTIONS)
    generator = torch.Generator().manual_seed(check_whole("seed", seed))
    normal = torch.randn(heads, num_features, width, generator=generator, dtype=torch.float64)
    if method == "iid":
        return normal.float()
    if method == "orthogonal":
        lengths = normal.norm(dim=-1)
    else:
        lengths = _even_lengths(heads, num_features, width, generator)
    directions = _directions(heads, num_features, width, method == "simplex", generator)
    return (directions * lengths[..., None]).float()


def _even_lengths(heads: int, many: int, width: int, generator: torch.Generator) -> Tensor:
    """One length out of each m-th part of χ_d, in random order, (h, m)."""
    drawn = torch.rand(heads, many, generator=generator, dtype=torch.float64)
    order = torch.rand(heads, many, generator=generator).argsort(dim=-1)
    quantiles = chi.ppf(((order + drawn) / many).clamp(1e-12, 1 - 1e-12).numpy(), width)
    return torch.from_numpy(quantiles)


def _directions(
    heads: int, many: int, width: int, simplex: bool, generator: torch.Generator
) -> Tensor:
    """Unit vectors, (h, m, d), in blocks of d that are turned at random."""
    blocks = -(-many // width)
    normal = torch.randn(heads, blocks, width, width, generator=generator, dtype=torch.float64)
    turned, triangle = torch.linalg.qr(normal)
    # With the signs of R's diagonal every rotation is equally likely; QR alone prefers some.
    turned = turned * triangle.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    rows = turned.mT
    if simplex and width > 1:
        # d corners of unit length around their mean, in the d − 1 dimensions that they span.
        corners = torch.eye(width, dtype=torch.float64) - 1 / width
        rows = (width / (width - 1)) ** 0.5 * corners @ rows
    return rows.reshape(heads, blocks * width, width)[:, :many]


def optimal_tilt(mean_square: Tensor, width: int) -> Tensor:
    """Return the A of optimal positive random features, ≤ 0, elementwise.

    For every A < 1/8, e^{q·k} = E_ω[ f(ω, q) f(ω, k) ] with
    f(ω, x) = (1 − 4A)^{d/4} exp(A‖ω‖² + √(1 − 4A) ω·x − ‖x‖²/2). The second moment of the product
    is (1 − 4A)^d (1 − 8A)^{−d/2} exp(2 (1 − 4A)/(1 − 8A) S − ‖q‖² − ‖k‖²) for ‖q + k‖² = S, least
    at A = (1 − 1/ρ)/8, where ρ = (√((2S + d)² + 8dS) − 2S − d) / (4S). At S = 0, ρ = 1 and A = 0.

    Args:
        mean_square: S, the mean of ‖q + k‖².
        width: d.

    Source: Likhosherstov et al. 2022, "Chefs' Random Tables: Non-Trigonometric Random Features"
    (arXiv 2205.15317), section 3.

    >>> optimal_tilt(torch.tensor([0.0, 1.0, 32.0]), 32)
    tensor([ 0.0000, -0.0148, -0.3202])
    """
    s, d = mean_square, float(width)
    root = ((2 * s + d) ** 2 + 8 * d * s).sqrt()
    rho = 2 * d / (root + 2 * s + d)  # the formula above with numerator and denominator conjugated
    return (1 - 1 / rho) / 8
