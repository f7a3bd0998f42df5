from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chi, kstest

from longarc.errors import OptionError
from longarc.models.attention.random_features import PROJECTIONS, draw_projections, optimal_tilt


def _estimates(x, y, method, draws, m, tilt=0.0):
    """Estimates of e^{x·y}, one for each of ``draws`` draws, in float64."""
    omega = draw_projections(m, len(x), heads=draws, method=method, seed=1).double()
    turn = (1 - 4 * tilt) ** 0.5
    log_phi = [
        tilt * omega.square().sum(-1) + turn * omega @ z - z.square().sum() / 2 for z in (x, y)
    ]
    return (1 - 4 * tilt) ** (len(x) / 2) * (log_phi[0] + log_phi[1]).exp().mean(-1)


def _pair(width=6, length=0.7):
    x, y = torch.randn(2, width, generator=torch.Generator().manual_seed(3)).double()
    return length * x / x.norm(), length * y / y.norm()


@pytest.mark.parametrize("tilt", [0.0, -0.05])
@pytest.mark.parametrize("method", PROJECTIONS)
def test_the_estimate_of_the_kernel_is_unbiased(method, tilt):
    x, y = _pair()
    found = _estimates(x, y, method, draws=20_000, m=12, tilt=tilt)
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - (x @ y).exp()) < 4 * error
    assert error < 0.01


def test_each_way_to_draw_has_no_more_variance_than_the_one_before():
    x, y = _pair(length=1.0)
    iid, orthogonal, stratified, simplex = (
        _estimates(x, y, method, draws=20_000, m=6).var().item() for method in PROJECTIONS
    )
    assert orthogonal < 0.97 * iid
    assert stratified < 0.97 * orthogonal
    assert simplex < 1.02 * stratified


def test_the_optimal_tilt_has_the_least_second_moment():
    for width, square in [(4, 0.5), (32, 1.0), (32, 32.0), (64, 5.0)]:

        def log_moment(tilt, width=width, square=square):
            return (
                width * math.log(1 - 4 * tilt)
                - width / 2 * math.log(1 - 8 * tilt)
                + 2 * (1 - 4 * tilt) / (1 - 8 * tilt) * square
            )

        best = optimal_tilt(torch.tensor(square, dtype=torch.float64), width).item()
        assert best < 0
        assert log_moment(best) < min(
            log_moment(best * 1.01), log_moment(best * 0.99), log_moment(0)
        )


def test_the_optimal_tilt_lowers_the_variance():
    x, y = _pair(length=1.2)
    tilt = optimal_tilt((x + y).square().sum(), len(x)).item()
    plain = _estimates(x, y, "iid", draws=20_000, m=8).var()
    assert _estimates(x, y, "iid", draws=20_000, m=8, tilt=tilt).var() < 0.8 * plain


@pytest.mark.parametrize("method", ["orthogonal", "stratified"])
def test_blocks_of_directions_are_perpendicular(method):
    omega = draw_projections(20, 8, heads=3, method=method, seed=4).double()
    for start in (0, 8, 16):
        block = omega[:, start : start + 8]
        products = block @ block.mT
        off = products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1))
        assert off.abs().max() < 1e-5


def test_simplex_directions_have_equal_obtuse_angles():
    omega = draw_projections(8, 8, method="simplex").double()[0]
    cosines = (omega @ omega.mT) / omega.norm(dim=-1) / omega.norm(dim=-1)[:, None]
    off = cosines[~torch.eye(8, dtype=torch.bool)]
    assert torch.allclose(off, torch.full_like(off, -1 / 7), atol=1e-6)


def test_stratified_lengths_are_one_from_each_part_of_chi():
    m, width = 50, 8
    lengths = draw_projections(m, width, method="stratified").double().norm(dim=-1)[0]
    parts = (chi.cdf(lengths.numpy(), width) * m).astype(int)
    assert sorted(parts) == list(range(m))
    assert list(parts) != sorted(parts)


@pytest.mark.parametrize("method", PROJECTIONS)
def test_each_row_alone_is_normal(method):
    rows = draw_projections(5, 4, heads=3000, method=method, seed=9)[:, -1]
    assert kstest(rows.flatten().numpy(), "norm").pvalue > 1e-3
    assert kstest(rows.norm(dim=-1).numpy(), chi(4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("method", PROJECTIONS)
def test_the_seed_alone_decides(method):
    torch.manual_seed(0)
    first = draw_projections(9, 4, heads=2, method=method, seed=5)
    torch.manual_seed(1)
    assert torch.equal(first, draw_projections(9, 4, heads=2, method=method, seed=5))
    assert not torch.equal(first, draw_projections(9, 4, heads=2, method=method, seed=6))
    assert not torch.equal(first[0], first[1])
    assert first.dtype == torch.float32


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("method", PROJECTIONS)
def test_small_shapes(method, width):
    assert draw_projections(1, width, method=method).isfinite().all()


def test_errors_name_the_option():
    with pytest.raises(OptionError, match="num_features must be a whole number"):
        draw_projections(0, 4)
    with pytest.raises(OptionError, match="Did you mean orthogonal"):
        draw_projections(4, 4, method="ortogonal")
