"""What happens between the steps of a pretraining: target, collapse watch, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longarc.dynamics.collapse import collapse_measures
from longarc.dynamics.collapse_detector import CollapseAlarm, CollapseDetector
from longarc.training.callbacks import RunLog
from longarc.training.pretraining.evaluation import HeldOut
from longarc.training.pretraining.learners import Learner

LOOKS = 50
"""Times in a training that the codes are looked at for collapse."""


class TargetUpdate(TrainerCallback):
    """Let an averaged target follow each step of the optimizer."""

    def __init__(self, learner: Learner):
        self.learner = learner

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The step that was just made."""
        self.learner.update_target(min(1.0, state.global_step / state.max_steps))


class Watch(TrainerCallback):
    """Look for collapse and evaluate; both only read the encoder, without random numbers.

    ``log`` must be among the callbacks before this one. ``alarm`` is what the detector said.

    Args:
        held_out: measures.
        log: gets ``collapse`` and ``evaluation`` records.
        evaluations: times, besides the start; the last one, after the training, is the caller's.
        detect: whether codes can collapse under this objective; without it they are only logged.
        stop: whether an alarm ends the training.
        say: is told of an alarm that does not.
    """

    def __init__(
        self,
        held_out: HeldOut,
        log: RunLog,
        *,
        evaluations: int,
        detect: bool,
        stop: bool,
        say: Callable[[str], None],
    ):
        self.held_out, self.log, self.evaluations = held_out, log, evaluations
        self.detect, self.stop, self.say = detect, stop, say
        self.detector = CollapseDetector()

    @property
    def alarm(self) -> CollapseAlarm | None:
        """Given, if the codes have collapsed."""
        return self.detector.alarm

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Measure the start; a resumed run has done so."""
        if state.global_step == 0:
            self._look(0)
            self.evaluate(0)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Look, and evaluate, where it is time."""
        step, total = state.global_step, state.max_steps
        warned = self.alarm is not None
        if step % max(1, total // LOOKS) == 0 or step == total:
            self._look(step)
        if self.alarm is not None and self.detect:
            if self.stop:
                control.should_training_stop = True
                return
            if not warned:
                self.say(f"warning: {self.alarm}")
        if step < total and step in self._times(total):
            self.evaluate(step)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Measure, log and return the figures."""
        found = self.held_out.evaluate()
        self.log.write("evaluation", step=step, **found)
        return found

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return self.detector.state_dict()

    def _look(self, step: int) -> None:
        measures = collapse_measures(self.held_out.monitored_codes())
        before = self.alarm
        if self.detect:
            self.detector.update(measures, step)
        seen = {name: value for name, value in measures._asdict().items() if value is not None}
        self.log.write("collapse", step=step, **seen)
        if self.alarm is not None and before is None:
            self.log.write("alarm", **asdict(self.alarm))

    def _times(self, total: int) -> set[int]:
        return {round(total * i / self.evaluations) for i in range(1, self.evaluations)}
