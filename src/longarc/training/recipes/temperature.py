"""Temperature: one number that makes the confidences of held-out documents fit.

Guo et al., 2017, "On calibration of modern neural networks", arXiv 1706.04599, section 4.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LIMIT = 100.0
"""T lies between 1/100 and 100: beyond, all is certain or nothing is known."""


def fit_temperature(logits: ArrayLike, target: ArrayLike, *, multi_label: bool = False) -> float:
    """The T for which softmax(z / T) gives the labels the highest likelihood.

    With several labels, σ(z / T). A T above 1 makes a model less sure; no decision changes. The
    negative log-likelihood is convex in 1/T, so the search along log T cannot end in a lesser
    minimum. Where every document is decided rightly the likelihood grows with confidence without
    end and says nothing of T: T is 1 then, as it is where no document has a known class.

    Args:
        logits: (N, C).
        target: (N,) class indices, those below 0 left out; multi-label (N, C) of 0 and 1.
        multi_label: whether a document can have several labels.

    >>> round(fit_temperature([[4.0, 0.0]] * 4, [0, 0, 0, 1]), 2)  # 4 / T = log 3
    3.64
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, log_softmax

    z, labels = np.asarray(logits, dtype=np.float64), np.asarray(target)
    if multi_label:
        z = np.where(labels > 0.5, z, -z)  # for the label as it is
        right = z > 0
    else:
        z, labels = z[labels >= 0], labels[labels >= 0]
        right = z.argmax(axis=1) == labels
    if right.all():
        return 1.0

    def loss(log_t: float) -> float:
        scaled = z / np.exp(log_t)
        if multi_label:
            return -float(log_expit(scaled).mean())
        return -float(log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())

    bound = np.log(LIMIT)
    found: Any = minimize_scalar(
        loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-7}
    )
    return float(np.exp(found.x))
