"""Inner products of all rows with given directions, block by block, and the largest of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longarc.attribution.index.store import Index


@dataclass(frozen=True)
class Scores:
    """Inner products of rows and directions, and how far a sketch can be off.

    Attributes:
        values: (Q, N) summed over the checkpoints; 0 for a document that no row is of.
        errors: (Q, N) their standard errors, from how the sketches of a row disagree.
        sums: (Q, K) over the documents, for each checkpoint.
        sum_errors: (Q,) the standard error of the sum over all.
    """

    values: np.ndarray
    errors: np.ndarray
    sums: np.ndarray
    sum_errors: np.ndarray


def scores(
    index: Index,
    directions: Sequence[Tensor],
    sketches: int,
    *,
    advance: Callable[[float], Any] | None = None,
) -> Scores:
    """One matrix product for each part of the index; memory is that of a part and the result.

    Args:
        index: a whole one.
        directions: (Q, size) for each checkpoint.
        sketches: estimates side by side in a row.
        advance: is called with the number of rows done.

    Raises:
        RunError: parts of the index are missing.
    """
    index.require_whole()
    number, queries = index.about["documents"], len(directions[0]) if directions else 0
    values = np.zeros((queries, number))
    variances = np.zeros((queries, number))
    sums = np.zeros((queries, len(directions)))
    sum_variances = np.zeros(queries)
    for c, (checkpoint, wanted) in enumerate(zip(index.checkpoints, directions, strict=True)):
        kind = torch.promote_types(wanted.dtype, torch.float32)
        sides = wanted.to(kind).view(queries, sketches, -1).permute(1, 2, 0)  # (S, w², Q)
        totals = torch.zeros(sketches, queries, dtype=torch.float64)
        for documents, scales, rows in index.each_part(checkpoint.step):
            each = rows.to(wanted.device, kind).view(len(rows), sketches, -1).transpose(0, 1)
            estimates = (each @ sides).cpu().double() * scales.double()[:, None]  # (S, n, Q)
            mean = estimates.sum(dim=0)
            at = documents.numpy()
            values[:, at] += mean.T.numpy()
            variances[:, at] += _variance(estimates, mean).T.numpy()
            totals += estimates.sum(dim=1)
            if advance is not None:
                advance(len(rows))
        whole = totals.sum(dim=0)
        sums[:, c] = whole.numpy()
        sum_variances += _variance(totals, whole).numpy()
    return Scores(values, np.sqrt(variances), sums, np.sqrt(sum_variances))


def top(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row of (Q, N): documents and values, (Q, k), the largest first.

    >>> top(np.array([[0.5, 3.0, -1.0, 2.0]]), 2)
    (array([[1, 3]]), array([[3., 2.]]))
    """
    k = min(k, values.shape[1])
    some = np.argpartition(-values, k - 1, axis=1)[:, :k] if k else np.zeros((len(values), 0), int)
    there = np.take_along_axis(values, some, axis=1)
    order = np.argsort(-there, axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1), np.take_along_axis(there, order, axis=1)


def _variance(parts: Tensor, total: Tensor) -> Tensor:
    """Of the sum of S independent estimates of the S-th part each, (S, …); 0 where S is 1."""
    number = len(parts)
    if number < 2:
        return torch.zeros_like(total)
    return ((parts - total / number) ** 2).sum(dim=0) * number / (number - 1)
