"""How large a step can be: the critical learning rate along the steps of a warm-up that goes on.

Legend: γ the learning rate, u what a step subtracts from the weights per unit of it, L the loss of
a sample of training documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longarc.errors import ModelError
from longarc.training.monitors import rate_of_update, weights_of

if TYPE_CHECKING:
    from torch import Tensor

    from longarc.training.progress import Advance

FIRST, USUAL, LAST = 1e-6, 1e-2, 1.0
"""Where the warm-up begins, where most encoders have diverged, and where it ends at the latest."""

SHORTEST, LONGEST = 24, 48
"""Steps from the first of these rates to the second: those of the user's warm-up between them."""

PASSES = 8
"""Forward passes of a measurement, at most: a γ_c that is further off says no more than that."""

APART = 2.5
"""Between the rates of two measurements, at least."""


@dataclass(frozen=True)
class Measurement:
    """What one step of the warm-up was like, on the sample.

    >>> step = Measurement(4, 1e-4, 4e-4, loss=0.9, slope=500.0, passes=6)
    >>> step.stable, round(step.implicit_share, 5)
    (True, 0.01389)
    """

    step: int
    learning_rate: float
    """γ of the step."""
    critical_learning_rate: float
    """γ_c: at which L along the step is back at its start; 0 where it rises at once."""
    loss: float
    """L before the step."""
    slope: float
    """What the step took from L, per unit of γ; negative where it went uphill."""
    passes: int

    @property
    def stable(self) -> bool:
        """Whether the step lowered the loss of the sample."""
        return self.learning_rate < self.critical_learning_rate

    @property
    def rise(self) -> float:
        """By how much the step raised the loss of the sample."""
        return -self.learning_rate * self.slope

    @property
    def implicit_share(self) -> float:
        """(γ/4) gᵀu / L: the implicit penalty in the optimizer's own metric, as a part of L."""
        return self.learning_rate / 4 * self.slope / self.loss if self.loss else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, where an infinite rate is None."""
        found = asdict(self)
        if not math.isfinite(self.critical_learning_rate):
            found["critical_learning_rate"] = None
        return found


class RisingWarmup(TrainerCallback):
    """Raise the learning rate by a factor each step, measure now and then, stop at too much.

    The optimizer is the user's own, so for AdamW the direction of a step is the preconditioned one.
    Every group of weights keeps its share of the rate. Training stops at the first measurement at
    which the model has lost half of what it knew of the sample, or its loss is not a number.

    Args:
        sample: the loss of a sample of training documents at the present weights, with the same
            random numbers each time.
        ignorant: that loss for a model that says the same of every document.
        steps: from ``FIRST`` to ``USUAL``; it goes on at the same pace if need be.
        advance: is told of each step.
    """

    def __init__(
        self,
        sample: Callable[[], Tensor],
        *,
        ignorant: float,
        steps: int,
        advance: Advance | None = None,
    ):
        self.sample = sample
        self.ignorant = ignorant
        self.factor = (USUAL / FIRST) ** (1 / steps)
        self.every = math.ceil(math.log(APART) / math.log(self.factor))
        self.advance = advance
        self.measured: list[Measurement] = []
        self.lost = math.inf  # the rate at which the model had lost what it knew
        self.steps = 0
        self._before: list[Tensor] | None = None
        self._guess = 1e-3
        self._rate = FIRST

    @property
    def longest(self) -> int:
        """Steps to the last rate."""
        return math.ceil(math.log(LAST / FIRST) / math.log(self.factor))

    @property
    def passes(self) -> int:
        """Forward passes over the sample that all measurements took."""
        return sum(found.passes for found in self.measured)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Set the rate of the step."""
        self._rate = FIRST * self.factor**state.global_step
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._rate / args.learning_rate

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Keep the weights, if it is time."""
        if state.global_step % self.every == 0:
            self._before = [weight.detach().clone() for weight in weights_of(optimizer)]

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Measure along the step that was just made."""
        if self._before is None:
            return
        before, self._before = self._before, None
        weights, rate = weights_of(optimizer), self._rate
        after = float(self.sample())
        try:
            # From below γ the search could only go down, where differences are rounding errors.
            guess = max(self._guess, rate)
            found = rate_of_update(
                self.sample, weights, before, rate, guess=guess, tolerance=0.3, max_passes=PASSES
            )
        except ModelError:  # the loss is not a number
            self.lost = rate
            return
        if found is None:
            return
        loss = found.losses[0][1]
        if self._forgot(loss):
            self.lost = rate
        if 0 < found.rate < math.inf:
            self._guess = found.rate
        slope = (loss - after) / rate
        step = state.global_step + 1
        self.measured.append(Measurement(step, rate, found.rate, loss, slope, found.passes + 1))

    def _forgot(self, loss: float) -> bool:
        known = [found.loss for found in self.measured]
        if not known:
            return False
        best = min(known)
        margin = max((self.ignorant - best) / 2, self.ignorant / 5)
        return not loss <= (best + margin if best < self.ignorant else 2 * known[0])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop, if there is no more to see."""
        self.steps = state.global_step
        if self.advance is not None:
            self.advance(1, f"learning rate {self._rate:.1e}")
        if math.isfinite(self.lost):
            control.should_training_stop = True
