"""How sure of itself a head that starts from a probe may be.

A probe fits some hundred training documents almost perfectly. Its loss there is near 0, so training
that starts from it finds no gradient to learn from, while on other documents it is sure of what is
wrong. Divided by a temperature T > 1, its logits decide as before and are as sure as they should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from longarc.training.probe import Probe, fit_probe

if TYPE_CHECKING:
    from longarc.objectives.losses.contract import Loss

LIMIT = 100.0
"""T at most: beyond it next to nothing is known."""

FEWEST = 50
"""Documents that can tell T; with fewer, chance does."""

FOLDS = 5


def temperature(probe: Probe, features: Tensor, target: Tensor, loss: Loss) -> float:
    """The T ≥ 1 that a probe's logits, divided by it, have the least ``loss`` on documents.

    It is temperature scaling (Guo et al. 2017, arXiv 1706.04599), of the run's own loss and before
    training instead of after it. No T below 1: where a penalty kept the probe from being sure,
    training may make it so.

    Args:
        probe: fitted to other documents; its penalty may have been chosen on these.
        features: (N, d).
        target: (N,) class indices, those below 0 left out, or (N, C) multi-hot. With none left T
            is 1.
        loss: what training minimises; as it is at the end of its schedule.

    >>> from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
    >>> sure = Probe(torch.tensor([[2.0], [-2.0]]), torch.zeros(2), 1e-4)
    >>> x, y = torch.tensor([[1.0], [1.0], [1.0], [1.0]]), torch.tensor([0, 0, 0, 1])
    >>> round(temperature(sure, x, y, CrossEntropyLoss()), 2)  # 4 / T = log 3
    3.64
    """
    from scipy.optimize import minimize_scalar

    if target.ndim == 1:
        features, target = features[target >= 0], target[target >= 0]
    if not len(target):
        return 1.0
    logits = probe.logits(features)

    def reached(log_t: float) -> float:
        scale = float(np.exp(-log_t))
        more = {"class_vectors": scale * probe.weight} if loss.uses_class_vectors else {}
        return float(loss(scale * logits, target, **more))

    loss.set_progress(1.0)
    with torch.no_grad():
        # A grid first: losses that are not convex have lesser minima.
        tried = np.linspace(0.0, np.log(LIMIT), 24)
        values = [reached(x) for x in tried]
        least = int(np.argmin(values))
        bounds = tried[max(0, least - 1)], tried[min(len(tried) - 1, least + 1)]
        found: Any = minimize_scalar(reached, bounds=bounds, method="bounded")
    loss.set_progress(0.0)
    best = found.x if found.fun < values[least] else tried[least]
    return float(np.exp(best)) if np.isfinite(values[0]) else 1.0


def cross_fitted_temperature(
    features: Tensor, target: Tensor, loss: Loss, *, classes: int, penalty: float, seed: int = 0
) -> float:
    """T of a probe where no documents are left to tell it, by cross-fitting.

    Each of ``FOLDS`` parts tells the T of a probe that was fitted to the others; the geometric mean
    is returned. Documents of a class that the others lack say nothing of how sure to be, and are
    left out.

    Args:
        features: (N, d) of the training documents.
        target: (N,) class indices, or (N, C) multi-hot.
        loss: what training minimises.
        classes: C.
        penalty: of the probe.
        seed: of the parts.

    >>> from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
    >>> x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    >>> y = torch.arange(40) % 2  # nothing to be learnt
    >>> options = {"classes": 2, "penalty": 1e-4}
    >>> cross_fitted_temperature(x, y, CrossEntropyLoss(), **options) > 10
    True
    """
    part = torch.from_numpy(np.random.default_rng(seed).permutation(len(target)) % FOLDS)
    found = []
    for fold in range(FOLDS):
        held, rest = part == fold, part != fold
        if target.ndim == 1:
            held = held & torch.isin(target, target[rest])
        else:
            held = held & ~((target > 0) & ~(target[rest] > 0).any(dim=0)).any(dim=1)
        if not rest.any() or not held.any():
            continue
        probe = fit_probe(
            features[rest], target[rest], loss, classes=classes, score=lambda _: 0.0,
            penalties=(penalty,),
        )  # fmt: skip
        found.append(temperature(probe, features[held], target[held], loss))
    return float(np.exp(np.mean(np.log(found)))) if found else 1.0
