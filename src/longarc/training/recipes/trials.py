"""What a recipe has tried: figures on the validation split, the time it took, and the time left."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from longarc.training.evaluation import macro_f1
from longarc.training.prediction import decisions, probabilities

if TYPE_CHECKING:
    from longarc.objectives.losses.contract import Loss


@dataclass
class Trials:
    """Candidates in the order in which they were tried, and those for which there was no time.

    Args:
        target: (N,) class codes of the validation split, below 0 for a class that training lacks;
            multi-label (N, C) of 0 and 1. With N = 0 the figures are None.
        seconds: what all trials together may take.

    >>> trials = Trials(np.array([0, 1]))
    >>> trials.add("coin", np.zeros((2, 2)), since=time.monotonic(), sides=2)
    >>> trials.best()["name"], trials.rows[0]["macro_f1"], trials.rows[0]["sides"]
    ('coin', 0.333333..., 2)
    """

    target: np.ndarray
    seconds: float = math.inf
    rows: list[dict[str, Any]] = field(default_factory=list)
    not_tried: dict[str, str] = field(default_factory=dict)

    def add(
        self, name: str, logits: np.ndarray, *, since: float, loss: Loss | None = None, **facts: Any
    ) -> None:
        """Measure a candidate by its validation logits (N, C).

        ``since`` is ``time.monotonic()`` of its start, ``loss`` what reads probabilities off the
        logits (see ``probabilities``), and ``facts`` what else is known of it.
        """
        if not len(self.target):
            unknown = dict.fromkeys(("macro_f1", "accuracy", "nll"))
            self.rows.append({"name": name, **facts, **unknown, "seconds": 0.0})
            return
        several = self.target.ndim == 2
        predicted = decisions(logits, multi_label=several)
        exact = (predicted == self.target).all(axis=1) if several else predicted == self.target
        chances = probabilities(logits, multi_label=several, loss=loss)
        self.rows.append(
            {
                "name": name,
                **facts,
                "macro_f1": macro_f1(self.target, predicted),
                "accuracy": float(exact.mean()),
                "nll": negative_log_likelihood(chances, self.target),
                "seconds": round(time.monotonic() - since, 3),
            }
        )

    def has_time(self, name: str, needed: float = 0.0, *, what: str = "") -> bool:
        """Whether a candidate of some seconds fits in; if not, it is noted with a reason."""
        left = self.seconds - sum(row["seconds"] for row in self.rows)
        if left > needed:
            return True
        reason = "the time for trials was used up"
        if needed:
            reason = f"{what} takes about {needed:.0f} s, and {max(left, 0):.0f} s were left"
        self.not_tried[name] = reason
        return False

    def best(self) -> dict[str, Any]:
        """The one with the best macro-F1; of equals the first, which is to be the simplest."""
        return max(self.rows, key=lambda row: row["macro_f1"])

    def to_dict(self) -> dict[str, Any]:
        """Its part of ``recipe.json``."""
        return {"trials": self.rows, "not_tried": self.not_tried}


def negative_log_likelihood(chances: np.ndarray, target: np.ndarray) -> float | None:
    """Mean −log p of the labels; multi-label over all entries; None without a known class.

    >>> round(negative_log_likelihood(np.array([[0.5, 0.5], [0.1, 0.9]]), np.array([0, -1])), 4)
    0.6931
    """
    if target.ndim == 2:
        of_label = np.where(target > 0.5, chances, 1 - chances).ravel()
    else:
        known = np.flatnonzero(target >= 0)
        of_label = chances[known, target[known]]
    if not len(of_label):
        return None
    return float(-np.log(np.maximum(of_label, np.finfo(np.float64).tiny)).mean())
