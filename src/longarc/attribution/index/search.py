"""Inner products of all rows with given directions, block by block, and the largest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def scores(index: Index, directions: Sequence[Tensor], sketches: int, *, queries: int) -> Scores:
    """One matrix product for each part of the index; memory is that of a part and the result.

    Args:
        index: a whole one.
        directions: (Q, size) for each checkpoint; there is none where no step moved anything.
        sketches: estimates side by side in a row.
        queries: Q.

    Raises:
        RunError: parts of the index are missing.
    """
    index.require_whole()
    number = index.about["documents"]
    values = np.zeros((queries, number))
    variances = np.zeros((queries, number))
    sums = np.zeros((queries, len(directions)))
    sum_variances = np.zeros(queries)
    for c, (checkpoint, wanted) in enumerate(zip(index.checkpoints, directions, strict=True)):
        kind = torch.promote_types(wanted.dtype, torch.float32)
        wanted = wanted.to(kind)
        whole = torch.zeros(1, wanted.shape[1], dtype=torch.float64)
        for documents, scales, rows in index.each_part(checkpoint.step):
            rows = rows.to(wanted.device, kind) * scales.to(wanted.device, kind)[:, None]
            value, variance = estimates(rows, wanted, sketches)
            at = documents.numpy()
            values[:, at] += value.numpy()
            variances[:, at] += variance.numpy()
            whole += rows.cpu().sum(dim=0, dtype=torch.float64)
        value, variance = estimates(whole, wanted.cpu().double(), sketches)
        sums[:, c] = value[:, 0].numpy()
        sum_variances += variance[:, 0].numpy()
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


def estimates(rows: Tensor, wanted: Tensor, sketches: int) -> tuple[Tensor, Tensor]:
    """Inner products (Q, n) of directions (Q, size) and rows (n, size), and their variances.

    Each of S sketches gives an S-th part; S independent parts p vary in their sum as
    (S Σ p² − (Σ p)²)/(S − 1), which is 0 by convention where S is 1. A count sketch (S = size) of
    g and u varies by about (‖g‖²‖u‖² + ⟨g, u⟩²)/size, and knows the norms. In float64, on the CPU.
    """
    queries, number, size = len(wanted), len(rows), rows.shape[1]
    if sketches == size:
        value = (wanted @ rows.T).cpu().double()
        norms = wanted.square().sum(dim=1)[:, None] * rows.square().sum(dim=1)
        return value, (norms.cpu().double() + value**2) / size
    sides = wanted.view(queries, sketches, -1).transpose(0, 1)
    parts = sides @ rows.view(number, sketches, -1).permute(1, 2, 0)  # (S, Q, n)
    parts = parts.cpu().double()
    value, squares = parts.sum(dim=0), parts.square().sum(dim=0)
    if sketches == 1:
        return value, torch.zeros_like(value)
    return value, (sketches * squares - value**2).clamp(min=0) / (sketches - 1)
