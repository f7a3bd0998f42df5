"""How far codes are from collapse: from being the same for all inputs, or from few directions.

Functions of codes (N, d), one row an example, that give numbers. They look and do not touch: no
gradients. Computed in float32 at least. Legend: N examples, d numbers a code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longarc.errors import DataError
from longarc.options import check_number

BLOCK = 256
"""Codes that are compared with all later ones at a time: all pairs at once would need N² memory."""


class CollapseMeasures(NamedTuple):
    """All measures of one set of codes; see the functions of the same names.

    ``relative_std`` is √d · ``code_std``: 1 if codes are spread evenly, whatever d, and 0 if they
    are the same. ``alignment`` is None where no second view was given.
    """

    relative_std: float
    effective_rank: float
    cosine_spread: float
    uniformity: float
    alignment: float | None


def collapse_measures(codes: Tensor, second: Tensor | None = None) -> CollapseMeasures:
    """Return all measures of the codes (N, d), with those of a second view if there are any.

    >>> codes = torch.eye(4)
    >>> collapse_measures(torch.cat([codes, -codes]), torch.cat([codes, -codes]))
    CollapseMeasures(relative_std=1.069..., effective_rank=4.0, cosine_spread=0.349...,
    uniformity=-4.15..., alignment=0.0)
    """
    return CollapseMeasures(
        relative_std=codes.shape[-1] ** 0.5 * code_std(codes),
        effective_rank=effective_rank(codes),
        cosine_spread=cosine_spread(codes),
        uniformity=uniformity(codes),
        alignment=None if second is None else alignment(codes, second),
    )


def code_std(codes: Tensor) -> float:
    """Return the standard deviation of the L2-normalised codes' numbers, a mean over the d.

    1/√d for codes spread evenly over the sphere, which is also the most it can be (but for the
    correction N / (N − 1) of small samples); 0 for codes that all have one direction. It does not
    see codes that lie on a line through 0, to both sides: ``effective_rank`` does.

    Source: Chen & He 2021 (arXiv 2011.10566), section 4.1.

    >>> code_std(torch.eye(2)), code_std(torch.ones(5, 2))
    (0.7071..., 0.0)
    """
    return float(_normalised(codes).std(dim=0).mean())


@torch.no_grad()
def effective_rank(codes: Tensor) -> float:
    """Return exp(−Σ_k p_k log p_k), p the codes' singular values divided by their sum: RankMe.

    Between 1, all codes on one line through 0, and min(N, d), all directions alike. The codes are
    neither centred nor normalised, as published; a large mean counts as one strong direction. 0 if
    all codes are zero. It depends on N, so compare values of the same N.

    Source: Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained
    Self-Supervised Representations by Their Rank" (arXiv 2210.02885), eq. 2, without its ε; the
    effective rank of Roy & Vetterli 2007.

    >>> effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.0])))
    2.0
    """
    values = torch.linalg.svdvals(_checked(codes))
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


@torch.no_grad()
def alignment(first: Tensor, second: Tensor, alpha: float = 2.0) -> float:
    """Return the mean of ‖u_i − v_i‖^α, u and v the normalised codes of two views: 0 if the same.

    Source: Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment
    and Uniformity on the Hypersphere" (arXiv 2005.10242).

    >>> alignment(torch.tensor([[2.0, 0.0]] * 2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), alpha=1)
    1.0
    """
    check_number("alpha", alpha)
    if first.shape != second.shape:
        raise DataError(
            f"The views have codes of shapes {tuple(first.shape)} and {tuple(second.shape)}; "
            "expected the same examples in both, in the same order."
        )
    apart = (_normalised(first) - _normalised(second)).norm(dim=1)
    return float(apart.pow(alpha).mean())


def uniformity(codes: Tensor, t: float = 2.0) -> float:
    """Return log of the mean of e^{−t ‖u_i − u_j‖²} over the pairs of different normalised codes.

    0 if all codes are the same, and the less, the more evenly they are spread; for large d about
    −2t at best.

    Source: Wang & Isola 2020 (arXiv 2005.10242).

    >>> uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    -8.0
    """
    check_number("t", t)
    sums = [(-t * (2 - 2 * cosines).clamp(min=0)).logsumexp(0) for cosines in _pair_cosines(codes)]
    return float(torch.stack(sums).logsumexp(0)) - math.log(_pairs(codes))


def cosine_spread(codes: Tensor) -> float:
    """Return the standard deviation of cos(c_i, c_j) over the pairs of different codes.

    1/√d for codes spread evenly, 0 if all are the same, near 1 if all lie on one line to both
    sides of 0.

    >>> cosine_spread(torch.eye(3)), cosine_spread(torch.tensor([[1.0], [1.0], [-1.0]]))
    (0.0, 0.9428...)
    """
    mean = sum(float(cosines.sum()) for cosines in _pair_cosines(codes)) / _pairs(codes)
    squares = (float((cosines - mean).square().sum()) for cosines in _pair_cosines(codes))
    return math.sqrt(sum(squares) / _pairs(codes))


def _pairs(codes: Tensor) -> float:
    return len(codes) * (len(codes) - 1) / 2


@torch.no_grad()
def _pair_cosines(codes: Tensor) -> Iterator[Tensor]:
    """Cosines of all N (N − 1) / 2 pairs, those of ``BLOCK`` rows at a time."""
    rows = _normalised(codes)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK] @ rows[start:].T
        later = torch.ones(block.shape, dtype=torch.bool, device=rows.device).triu(1)
        if later.any():
            yield block[later]


@torch.no_grad()
def _normalised(codes: Tensor) -> Tensor:
    return F.normalize(_checked(codes))


def _checked(codes: Tensor) -> Tensor:
    if codes.ndim != 2 or len(codes) < 2 or not codes.is_floating_point():
        raise DataError(
            f"Codes have shape {tuple(codes.shape)} and type {codes.dtype}; expected (N, d) of a "
            "floating-point type, with 2 examples or more."
        )
    return codes.detach() if codes.dtype.itemsize >= 4 else codes.detach().float()
