"""Logit adjustment after training: taking the class prior out of a model that has learnt it.

Menon et al., 2021, "Long-tail learning via logit adjustment", arXiv 2007.07314, equation 9.
Legend: N documents, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

Array = TypeVar("Array", np.ndarray, torch.Tensor)

POST_HOC_TAUS = tuple(round(0.1 * step, 1) for step in range(-10, 21))
"""τ that are tried: −1 (twice the prior) to 2, in tenths. 1 is right for a calibrated model."""


def log_prior(counts: ArrayLike, examples: int, *, multi_label: bool = False) -> np.ndarray:
    """Log π, π_c = n_c / N, or with several labels the log-odds log( π_c / (1 − π_c) ).

    (C,) float64. A class that none has, or a label that all have, is counted as if one document
    were different.

    Args:
        counts: n, (C,), training documents of each class.
        examples: N, training documents in all.
        multi_label: whether a document can have several labels.

    >>> log_prior([90, 10], 100).round(3)
    array([-0.105, -2.303])
    >>> log_prior([50, 10], 100, multi_label=True).round(3)
    array([ 0.   , -2.197])
    """
    with_class = np.maximum(np.asarray(counts, dtype=np.float64), 1)
    if multi_label:
        return np.log(with_class / np.maximum(examples - with_class, 1))
    return np.log(with_class / examples)


def post_hoc_adjust(logits: Array, prior: Array, tau: float = 1.0) -> Array:
    """Adjusted logits z − τ log π, (…, C).

    For logits that say log p(class | document), up to a constant, τ = 1 gives the decisions with
    the least balanced error: Menon et al., equation 9. Equally for the labels of multi-label data
    with log-odds. A bias (C,) is adjusted in the same way, so the adjustment fits into a head.

    Args:
        logits: (…, C), of a model trained on data with this prior and a loss that leaves it in.
        prior: (C,) as ``log_prior`` gives it.
        tau: strength; 0 for none, below 0 for more of the prior.

    >>> post_hoc_adjust(np.array([[2.0, 0.5]]), log_prior([90, 10], 100)).round(2)
    array([[2.11, 2.8 ]])
    """
    return logits - tau * prior


def choose_tau(score: Callable[[float], float], taus: Sequence[float]) -> float:
    """The τ of ``taus`` with the best score; of equals the one nearest to 0, then the positive one.

    >>> choose_tau(lambda tau: -abs(tau - 0.31), POST_HOC_TAUS)
    0.3
    >>> choose_tau(lambda tau: 0.0, POST_HOC_TAUS)
    0.0
    """
    nearest_first = sorted(taus, key=lambda tau: (abs(tau), tau < 0))
    return max(nearest_first, key=score)
