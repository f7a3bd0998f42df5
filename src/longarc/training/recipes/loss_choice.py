"""``--loss auto`` under ``--recipe auto``: the loss whose linear probe does best on validation.

A probe on the frozen encoder costs seconds where fine-tuning costs hours. That the order of losses
is the same for both is a guess, and ``recipe.json`` has the figures it rests on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from longarc.training.evaluation import macro_f1
from longarc.training.prediction import decisions
from longarc.training.probe import PENALTIES, PENALTY, Probe, fit_probe

if TYPE_CHECKING:
    from torch import Tensor

    from longarc.objectives.losses.contract import Loss
    from longarc.training.recipes.trials import Trials


def candidate_losses(*, multi_label: bool) -> tuple[str, ...]:
    """The losses that are tried, with their default options; the first is always tried.

    >>> candidate_losses(multi_label=True)
    ('binary-cross-entropy', 'multilabel-softmax')
    """
    if multi_label:
        return "binary-cross-entropy", "multilabel-softmax"
    return "cross-entropy", "logit-adjusted", "class-balanced"


def probe_losses(
    trials: Trials,
    losses: Mapping[str, Loss],
    features: Tensor,
    target: Tensor,
    held_out: Tensor,
    *,
    classes: int,
) -> tuple[str, Probe]:
    """Fit a probe with each loss; the name of the best by validation macro-F1, and its probe.

    Of equals the earlier one is taken. ``trials`` receives the figures. Without validation
    documents only the usual penalty is tried.

    Args:
        trials: with the validation target, and the time there is.
        losses: by name; the first is tried however little time there is.
        features: (N, d) of the training documents, from the frozen encoder.
        target: (N,) class indices or (N, C) multi-hot.
        held_out: (M, d) features of the validation documents.
        classes: C.
    """
    several = trials.target.ndim == 2
    penalties = PENALTIES if len(trials.target) else (PENALTY,)

    def score(probe: Probe) -> float:
        predicted = decisions(probe.logits(held_out).numpy(), multi_label=several)
        return macro_f1(trials.target, predicted)

    probes: dict[str, Probe] = {}
    for name, loss in losses.items():
        if probes and not trials.has_time(name):
            continue
        started = time.monotonic()
        probe = fit_probe(features, target, loss, classes=classes, score=score, penalties=penalties)
        logits = probe.logits(held_out).numpy()
        trials.add(name, logits, since=started, loss=loss, penalty=probe.penalty)
        probes[name] = probe
    chosen = trials.best()["name"]
    return chosen, probes[chosen]
