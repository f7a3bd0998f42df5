"""How often each training document is drawn, so that rare classes are seen more often.

"Class-balanced" and "square-root" sampling of Kang et al., 2020, arXiv 1910.09217, section 3.
"""

from __future__ import annotations

import numpy as np


def sampling_weights(target: np.ndarray, sampler: str) -> np.ndarray | None:
    """The probability with which each document is drawn, (N,); None for ``"random"``.

    Under ``"class-balanced"`` every class is equally likely, under ``"square-root"`` a class of n
    documents in proportion to √n. Drawing is with replacement, so a rare class's few documents come
    often, and some frequent ones not at all.

    With several labels a document has the weight of its rarest label, so labels come out more even
    but not equal; one without labels has the median of the others' weights.

    Args:
        target: (N,) class indices, or (N, C) multi-hot.
        sampler: as in ``TrainConfig``.

    >>> sampling_weights(np.array([0, 0, 0, 0, 1]), "class-balanced")
    array([0.125, 0.125, 0.125, 0.125, 0.5  ])
    >>> sampling_weights(np.array([0, 0, 0, 0, 1]), "square-root").round(3)
    array([0.167, 0.167, 0.167, 0.167, 0.333])
    """
    if sampler == "random":
        return None
    if target.ndim == 1:
        documents = np.bincount(target)[target].astype(np.float64)
    else:
        of_label = np.where(target > 0, target.sum(axis=0), np.inf)
        documents = of_label.min(axis=1)  # infinite without labels
    weights = documents ** {"class-balanced": -1.0, "square-root": -0.5}[sampler]
    if (labelled := np.isfinite(documents)).any():
        weights = np.where(labelled, weights, np.median(weights[labelled]))
    return weights / weights.sum()
