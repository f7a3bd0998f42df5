"""Say that a run collapses, soon after it begins to, and of no run that does not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from longarc.dynamics.collapse import CollapseMeasures
from longarc.errors import OptionError
from longarc.options import check_number, check_whole

FLOOR = 2.0**-8
"""What counts as collapsed whatever the start: codes that bfloat16 hardly tells apart."""

MEASURES = {"spread": "relative standard deviation", "rank": "effective rank, less 1,"}


@dataclass(frozen=True)
class CollapseAlarm:
    """Which measure fell: from ``reference`` to ``value``; first below the limit at ``onset``."""

    measure: str
    onset: int
    step: int
    value: float
    reference: float

    def __str__(self) -> str:
        return (
            f"The codes collapse: their {MEASURES[self.measure]} is {self.value:.3g} at step "
            f"{self.step}, from {self.reference:.3g} at its best, and has been that low since step "
            f"{self.onset}."
        )


class CollapseDetector:
    """Watches the measures of codes while a model is trained.

    Two quantities are 0 in the collapsed state and are followed: ``relative_std``, 0 if all codes
    are the same, and ``effective_rank`` − 1, 0 if all lie on one line. Each is compared with the
    best it has been, the start included, because what is healthy differs: the codes of a fresh
    network are alike, those of a pretrained one less so, and neither is a fault. The alarm is given
    once ``patience`` measurements in a row are below ``fraction`` of the best: collapse goes
    towards 0 and stays there, while a healthy run gives up dimensions that it does not need. A
    start without any spread has nothing to fall from, so values below 2⁻⁸ count always.

    Args:
        fraction: 0.2 by default. In 80 healthy runs on digits and texts, other ones than those of
            ``longarc study simsiam``, the lowest value was 0.33 of the best; 24 that collapsed all
            had an alarm with fractions of 0.15 to 0.4, the sooner the greater.
        patience: measurements in a row; 3 by default, so that one batch decides nothing.

    Raises:
        OptionError: a fraction outside [0, 1), a patience below 1.

    >>> import torch
    >>> from longarc.dynamics.collapse import collapse_measures
    >>> detector = CollapseDetector(patience=2)
    >>> codes = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> for step, scale in enumerate((1, 0.5, 0.01, 0.01)):
    ...     alarm = detector.update(collapse_measures(codes * scale + 1), step)
    >>> print(alarm)
    The codes collapse: their relative standard deviation is 0.009... at step 3, from 0.66... at its
    best, and has been that low since step 2.
    """

    def __init__(self, *, fraction: float = 0.2, patience: int = 3) -> None:
        self.fraction = check_number("fraction", fraction, below=1.0)
        self.patience = check_whole("patience", patience, at_least=1)
        self.alarm: CollapseAlarm | None = None
        self._best = dict.fromkeys(MEASURES, 0.0)
        self._low: dict[str, list[int]] = {name: [] for name in MEASURES}

    def update(self, measures: CollapseMeasures, step: int) -> CollapseAlarm | None:
        """Take note of the measures after ``step`` steps; return the alarm from when it is given.

        Measure as many examples each time: the rank depends on how many there are.
        """
        values = {"spread": measures.relative_std, "rank": measures.effective_rank - 1}
        for name, value in values.items():
            self._best[name] = max(self._best[name], value)
            if value < max(self.fraction * self._best[name], FLOOR):
                self._low[name].append(step)
            else:
                self._low[name].clear()
            if self.alarm is None and len(self._low[name]) >= self.patience:
                onset = self._low[name][0]
                self.alarm = CollapseAlarm(name, onset, step, value, self._best[name])
        return self.alarm

    @property
    def low_since(self) -> int | None:
        """The step from which on a measure has been below its limit; None if all are above it.

        At the end of a training this may be a collapse that came too late for an alarm.
        """
        return min((steps[0] for steps in self._low.values() if steps), default=None)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values for JSON."""
        alarm = None if self.alarm is None else asdict(self.alarm)
        low = {name: list(steps) for name, steps in self._low.items()}
        return {"best": dict(self._best), "low": low, "alarm": alarm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken.

        Raises:
            OptionError: it is not such a state.
        """
        if not isinstance(state, dict) or state.keys() != {"best", "low", "alarm"}:
            raise OptionError(
                f"This is no state of a CollapseDetector: {sorted(state)}; expected "
                "alarm, best and low."
            )
        self._best = dict(state["best"])
        self._low = {name: list(steps) for name, steps in state["low"].items()}
        self.alarm = None if state["alarm"] is None else CollapseAlarm(**state["alarm"])
