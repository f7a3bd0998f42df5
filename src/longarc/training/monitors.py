"""What a finite step size does while training, written into the run's log at a bounded cost.

Legend: θ the weights, g the gradient before clipping, γ a learning rate, L the loss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longarc.dynamics.critical_rate import CriticalRate, critical_learning_rate

Write = Callable[..., None]
"""``RunLog.write``: takes the name of an event, and what is to be written."""


class _Metered(TrainerCallback):
    """Knows how long the training steps took, and what its own measurements added to them.

    When training ends it writes a ``monitor`` record with the two.
    """

    name = ""

    def __init__(self, write: Write, limit: float) -> None:
        self.write = write
        self.limit = limit
        self.training = 0.0
        self.spent = 0.0
        self.steps = 0
        self.measurements = 0
        self._began: tuple[float, float] | None = None

    @property
    def share(self) -> float:
        """Time of the measurements as a share of the steps' own."""
        return self.spent / self.training if self.training else 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the step's own work would be counted here
        start = time.perf_counter()
        yield
        self.spent += time.perf_counter() - start

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter(), self.spent

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Add the step, less what was measured in it."""
        if self._began is not None:
            began, spent = self._began
            self.training += time.perf_counter() - began - (self.spent - spent)
            self.steps += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say what it cost."""
        if state.is_world_process_zero:
            self.write(
                "monitor",
                step=state.global_step,
                name=self.name,
                measurements=self.measurements,
                seconds=round(self.spent, 3),
                share=round(self.share, 5),
            )


class UpdateMonitor(_Metered):
    """For steps that are logged: how far they moved the weights, and the implicit gradient penalty.

    Writes an ``update`` record (docs/run-folder.md) with

    - ``update_ratio``: ‖Δθ‖ / ‖θ‖, of all weights, and of each depth under ``update_ratios``;
    - ``implicit_penalty``: (1/4) Σ γ_i ‖g_i‖² over the groups of weights, each with the learning
      rate that it has in this step; with one rate for all that is (γ/4) ‖g‖², what gradient
      descent's step size adds to the loss it descends (Barrett & Dherin, 2021, arXiv 2009.11162).
      It describes SGD. Adam's step is not along the gradient, and tends to anti-penalise its
      one-norm (arXiv 2309.00079);
    - ``implicit_share``: that penalty as a share of the logged loss.

    A logged step is passed over while the measurements have cost more than ``share`` of the steps'
    own time.

    Args:
        write: takes the records, e.g. ``RunLog.write``.
        share: of the training time, at most.
    """

    name = "update"

    def __init__(self, write: Write, share: float = 0.005):
        super().__init__(write, share)
        self._before: list[list[Tensor]] | None = None
        self._found: dict[str, Any] | None = None

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Keep the weights and look at the gradient, which is clipped by now."""
        step = state.global_step + 1
        logged = step % state.logging_steps == 0 or (step == 1 and args.logging_first_step)
        if not (logged and state.is_world_process_zero) or self.share > self.limit:
            return
        with self.measuring():
            self._before = [
                [p.detach().clone() for p in g["params"]] for g in optimizer.param_groups
            ]
            squares = [_square(p.grad for p in g["params"]) for g in optimizer.param_groups]
            rates = [group["lr"] for group in optimizer.param_groups]
            weighted = sum(rate * square for rate, square in zip(rates, squares, strict=True))
            self._found = {"penalty": weighted / 4, "square": sum(squares)}

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Compare the weights with those before."""
        if self._before is None or self._found is None:
            return
        with self.measuring():
            moved: dict[str, list[float]] = {}
            for group, before in zip(optimizer.param_groups, self._before, strict=True):
                sums = moved.setdefault(group.get("depth", "all"), [0.0, 0.0])
                sums[1] += _square(before)
                for weight, parameter in zip(before, group["params"], strict=True):
                    weight.sub_(parameter.detach())
                sums[0] += _square(before)
            self._before = None
            self._found["ratios"] = {name: _ratio(*sums) for name, sums in moved.items()}
            self._found["ratio"] = _ratio(*map(sum, zip(*moved.values(), strict=True)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Write, now that the norm before clipping and the loss are known."""
        if self._found is None or not logs or "grad_norm" not in logs:
            return
        found, self._found = self._found, None
        unclipped = logs["grad_norm"] ** 2 / found["square"] if found["square"] else 0.0
        penalty, loss = found["penalty"] * unclipped, logs.get("loss")
        self.write(
            "update",
            step=state.global_step,
            update_ratio=found["ratio"],
            update_ratios=found["ratios"] if len(found["ratios"]) > 1 else None,
            implicit_penalty=penalty,
            implicit_share=penalty / loss if loss else None,
        )
        self.measurements += 1


class SharpnessMonitor(_Metered):
    """Now and then: how much further than it went the step could have gone before the loss rises.

    Writes a ``sharpness`` record (docs/run-folder.md) with the critical learning rate γ_c along the
    update that the optimizer has just made (weight decay included), on the step's own batches with
    one set of dropout masks, and with the critical sharpness 2 / γ_c beside 2 / γ: where it is the
    larger of the two, the step overshot. It costs up to 8 forward passes. The weights and the
    random state are as without it, bit for bit. Of several processes the first measures, on its own
    share of the batch. Kalra et al., 2026, arXiv 2601.16979.

    The steps at which it measures are spread evenly over those that are left, as many as fit into
    ``share`` of their time if each costs what the dearest one did. Where one alone fits, that is in
    the middle of the training; a training that is too short for one has none.

    Args:
        write: takes the records, e.g. ``RunLog.write``.
        loss: the loss of the step's batches at the present weights, e.g. ``Trainer.update_loss``.
        share: of the training time, at most.
    """

    name = "sharpness"
    PASSES = 8

    def __init__(self, write: Write, loss: Callable[[], Tensor], share: float = 0.014):
        super().__init__(write, share)
        self.loss = loss
        self.next = -1
        self._before: list[Tensor] | None = None
        self._start = 0.0  # what was spent before the measurement that is under way
        self._cost = 0.0  # of the dearest measurement
        self._multiple = 2.0  # γ_c / γ of the last measurement

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin with the second step: the first has the libraries' first calls in it."""
        self.next = state.global_step + 2

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Keep the weights, if it is time."""
        if state.global_step + 1 != self.next or not state.is_world_process_zero:
            return
        if not self._cost and self.steps:  # a third of a step goes forward
            self._cost = self.PASSES / 3 * self.training / self.steps
        times, left = self._affordable(state), state.max_steps - state.global_step
        early = times == 1 and not self.measurements and 2 * left > state.max_steps
        if early:
            self.next += left // 2
        if early or times < 1:
            return
        self._start = self.spent
        with self.measuring():
            self._before = [p.detach().clone() for p in weights_of(optimizer)]

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Measure, write, and plan the next time."""
        if self._before is None:
            return
        before, self._before = self._before, None
        rate = peak_rate(args, optimizer)
        # From below γ the search could only go down, where differences are rounding errors.
        guess = max(self._multiple, 1.0) * rate
        with self.measuring():
            found = rate_of_update(
                self.loss, weights_of(optimizer), before, rate, guess=guess, max_passes=self.PASSES
            )
        step = state.global_step + 1
        if found is not None and rate:
            if 0 < found.rate < math.inf:
                self._multiple = found.rate / rate
            self.write(
                "sharpness",
                step=step,
                learning_rate=rate,
                critical_learning_rate=found.rate,
                critical_sharpness=found.sharpness,
                threshold=2 / rate,
                passes=found.passes,
                seconds=round(self.spent - self._start, 3),
            )
            self.measurements += 1
        self._cost = max(self._cost, self.spent - self._start)
        times = self._affordable(state)
        self.next = step + math.ceil((state.max_steps - step) / times) if times >= 1 else -1

    def _affordable(self, state: TrainerState) -> int:
        """Measurements as costly as the dearest for which there is time until the training ends."""
        if not self._cost:
            return 0
        left = (state.max_steps - state.global_step) * self.training / self.steps
        return int((self.limit * (self.training + left) - self.spent) / self._cost)


def rate_of_update(
    loss: Callable[[], Tensor],
    weights: Sequence[Tensor],
    before: Sequence[Tensor],
    rate: float,
    *,
    guess: float,
    tolerance: float = 0.1,
    max_passes: int = 12,
) -> CriticalRate | None:
    """The critical learning rate along an update of size ``rate`` that has just been made.

    Args:
        loss: at the present weights.
        weights: as the update left them; they are so again afterwards, bit for bit.
        before: as they were before.
        rate: the learning rate of the update; None comes back if it moved nothing.
        guess: where the search begins.
        tolerance: relative; a pass more halves it.
        max_passes: forward passes after which to stop.
    """
    after = [weight.detach().clone() for weight in weights]
    direction = [(old - new) / rate for old, new in zip(before, after, strict=True)] if rate else []
    if not any(bool(part.any()) for part in direction):
        return None
    with torch.no_grad():
        try:
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
            return critical_learning_rate(
                loss, weights, direction, guess=guess, tolerance=tolerance, max_passes=max_passes
            )
        finally:
            for weight, new in zip(weights, after, strict=True):
                weight.copy_(new)


def weights_of(optimizer: Any) -> list[Tensor]:
    """The weights that an optimizer moves."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def peak_rate(args: TrainingArguments, optimizer: Any) -> float:
    """The learning rate of this step: ``args.learning_rate`` as far as the schedule has come.

    Groups with a rate of their own, by depth or for the head, follow the same schedule.
    """
    group = optimizer.param_groups[0]
    if not group.get("initial_lr"):
        return float(group["lr"])
    return float(args.learning_rate * group["lr"] / group["initial_lr"])


def _square(tensors: Any) -> float:
    """Σ ‖t‖², those that are None left out."""
    return float(get_total_norm([t for t in tensors if t is not None])) ** 2


def _ratio(moved: float, weight: float) -> float:
    return math.sqrt(moved / weight) if weight else 0.0
