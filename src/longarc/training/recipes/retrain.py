"""Classifier re-training: a new head on the features of the tuned encoder, all classes alike.

"cRT" of Kang et al., 2020, arXiv 1910.09217. The paper runs stochastic gradient
descent on batches drawn with all classes equally likely. Here the expectation of that sampling is
minimised instead, cross-entropy with each example weighted by 1 / n_c, by L-BFGS: no step size, no
random numbers, and seconds of time. A departure besides is the penalty on the weights, of which the
best by the validation score is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longarc.objectives.losses.binary_cross_entropy import BinaryCrossEntropyLoss
from longarc.objectives.losses.class_weighted import ClassWeightedLoss
from longarc.training.probe import Probe, fit_probe


def retrain_classifier(
    features: Tensor, target: Tensor, *, classes: int, score: Callable[[Probe], float]
) -> Probe:
    """Fit a head on frozen features, every class with the same weight in all.

    With several labels it is binary cross-entropy whose positives weigh as much as the negatives of
    their label.

    Args:
        features: (N, d) float32, what enters the head for each training document.
        target: (N,) class indices, or (N, C) multi-hot.
        classes: C.
        score: of a probe, larger is better; chooses the penalty, as in ``fit_probe``.

    >>> x, y = torch.tensor([[-1.0], [-0.5], [-0.4], [1.0]]), torch.tensor([0, 0, 0, 1])
    >>> probe = retrain_classifier(x, y, classes=2, score=lambda probe: 0.0)
    >>> probe.logits(x).argmax(dim=1).tolist()
    [0, 0, 0, 1]
    """
    if target.ndim == 2:
        counts = target.sum(dim=0).long()
        loss = BinaryCrossEntropyLoss(counts, len(target), pos_weight_power=1.0)
    else:
        loss = ClassWeightedLoss(torch.bincount(target, minlength=classes), power=1.0)
    return fit_probe(features, target, loss, classes=classes, score=score)
