"""The budget that every candidate gets, and what it comes to in epochs of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from longarc.training.config import TrainConfig


@dataclass(frozen=True)
class Budget:
    """So many steps, training examples or minutes for each candidate.

    - ``steps``: updates. A candidate with larger batches sees more documents.
    - ``examples``: documents trained on, the same one twice counting twice. A candidate with larger
      batches makes fewer updates; at least one.
    - ``minutes``: of steps alone, by the speed that each candidate has before its training; reading
      for the probe and evaluating come on top.

    >>> print(Budget("examples", 320))
    320 training examples for each candidate
    """

    kind: Literal["steps", "examples", "minutes"]
    amount: float

    def __str__(self) -> str:
        from longarc.report.quantities import budget

        return budget(self.kind, self.amount)

    def steps(self, config: TrainConfig, seconds_per_step: float = math.nan) -> int:
        """Updates that the budget allows one candidate, at least 1; none if it only fits a probe.

        ``seconds_per_step`` is needed for a budget of minutes.

        >>> from longarc.training.config import TrainConfig
        >>> config = TrainConfig(batch_size=16, accumulation=2)
        >>> [Budget(k, 640).steps(config, 1.5) for k in ("steps", "examples", "minutes")]
        [640, 20, 25600]
        """
        if config.freeze:
            return 0
        if self.kind == "steps":
            return int(self.amount)
        if self.kind == "examples":
            return max(1, round(self.amount / (config.batch_size * config.accumulation)))
        return max(1, round(60 * self.amount / seconds_per_step))


def steps_of_epoch(documents: int, batch_size: int, accumulation: int = 1) -> int:
    """Updates of an epoch, as transformers' Trainer counts them.

    >>> steps_of_epoch(100, 16), steps_of_epoch(100, 16, accumulation=4)
    (7, 2)
    """
    batches = math.ceil(documents / batch_size)
    return max(1, math.ceil(batches / accumulation))


def epochs_for(steps: int, documents: int, batch_size: int, accumulation: int = 1) -> float:
    """The epochs that are exactly so many updates, where transformers rounds their product up.

    >>> epochs_for(21, 100, 16), epochs_for(10, 100, 16)
    (3.0, 1.4285714285714286)
    """
    of_epoch = steps_of_epoch(documents, batch_size, accumulation)
    epochs = steps / of_epoch
    while math.ceil(epochs * of_epoch) > steps:
        epochs = math.nextafter(epochs, 0.0)
    while math.ceil(epochs * of_epoch) < steps:
        epochs = math.nextafter(epochs, math.inf)
    return epochs
