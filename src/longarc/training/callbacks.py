"""What watches a training run: the log file, the bar, the clock for checkpoints, and Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longarc.errors import Interrupted, ModelError
from longarc.files import write_text
from longarc.stopping import give_back
from longarc.training.progress import Advance

_NAMES = {
    "grad_norm": "gradient_norm", "eval_loss": "loss", "eval_macro_f1": "macro_f1",
    "eval_accuracy": "accuracy",
}  # fmt: skip


class RunLog(TrainerCallback):
    """Append every record to ``log.jsonl``, a line each (schema: docs/run-folder.md).

    A resumed run first drops the records that lie after its checkpoint.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, event: str, **record: Any) -> None:
        """Add one record."""
        finite = {  # JSON has no NaN
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in record.items()
        }
        record = {"event": event, **finite, "time": round(time.time(), 3)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start, or cut back to the checkpoint and go on."""
        if not state.is_world_process_zero:
            return
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step(line) <= state.global_step]
            write_text(self.path, "".join(line + "\n" for line in kept))
        resumed = state.global_step or None
        self.write("start", steps=state.max_steps, resumed_from=resumed)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Translate transformers' names and write."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        validation = "eval_loss" in logs
        wanted = {"loss", "learning_rate", *_NAMES}
        record = {_NAMES.get(k, k): v for k, v in logs.items() if k in wanted}
        event = "validation" if validation else "train"
        self.write(event, step=state.global_step, epoch=round(state.epoch or 0, 4), **record)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note that resumable state was saved."""
        if state.is_world_process_zero:
            self.write("checkpoint", step=state.global_step, path=f"checkpoint-{state.global_step}")


def _step(line: str) -> float:
    """The step of a record; infinite for half a line, which a killed process can leave."""
    try:
        return json.loads(line).get("step", 0)
    except ValueError:
        return math.inf


class FiniteLoss(TrainerCallback):
    """Stop with an explanation when the loss is no longer a number."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Look at each logged training loss."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise ModelError(
                f"the loss is {loss} at step {state.global_step}: training diverged. Try a smaller "
                f"--learning-rate (it is {args.learning_rate:g}), or --precision fp32."
            )


class Bar(TrainerCallback):
    """Move the progress bar and remark on the loss."""

    def __init__(self, advance: Advance):
        self.advance = advance
        self.remarks: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Learn the number of steps; a resumed run starts where it stopped."""
        self.advance.total = state.max_steps
        if self.advance.bar is not None:
            self.advance.bar.update(self.advance.task, total=state.max_steps)
        self.advance(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """One step more."""
        self.advance(1, ", ".join(f"{k} {v}" for k, v in self.remarks.items()))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Keep the last loss and validation macro-F1."""
        for name, text in (("loss", "loss"), ("eval_macro_f1", "validation macro-F1")):
            if logs and name in logs:
                self.remarks[text] = f"{logs[name]:.3f}"


class CheckpointClock(TrainerCallback):
    """Save resumable state every few minutes, besides every epoch."""

    def __init__(self, minutes: float):
        self.seconds = minutes * 60
        self.last = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a checkpoint when it is time, in all processes when it is time in one."""
        due = time.monotonic() - self.last >= self.seconds
        if agreed(due, args) and not ends_epoch(state):
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start the clock anew."""
        self.last = time.monotonic()


class Interruption(TrainerCallback):
    """Ctrl-C and SIGTERM: finish the step, save, stop. A second one stops at once.

    In the last step of an epoch the epoch's own evaluation and checkpoint still follow, as a
    resumed run would not make up for them. ``args.save_total_limit`` must not be 1: transformers
    then deletes every checkpoint but the best when training ends, this one too.
    """

    def __init__(self) -> None:
        self.asked = False
        self.stopped = False
        self._before: dict[int, Any] = {}

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            self.restore()
            os.kill(os.getpid(), number)
        self.asked = True

    def restore(self) -> None:
        """Give the signals back to who had them; also after a training that raised."""
        give_back(self._before)
        self._before = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Listen, where this is the main thread (elsewhere Python allows no handler)."""
        import threading

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop after the step in which a signal came."""
        if agreed(self.asked, args):
            self.stopped = True
            control.should_save = not ends_epoch(state)
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """No evaluation in the middle of an epoch: an uninterrupted run would have none here."""
        if self.stopped and not ends_epoch(state):
            control.should_evaluate = False
            control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Give the signals back."""
        self.restore()


def train_interruptibly(trainer: Any, interruption: Interruption, **options: Any) -> None:
    """``trainer.train(**options)``; Interrupted where ``interruption``, a callback, stopped it."""
    try:
        trainer.train(**options)
    finally:
        interruption.restore()
    # In the last epoch's evaluation no step comes any more that would have stopped.
    if interruption.stopped or agreed(interruption.asked, trainer.args):
        state = trainer.state
        raise Interrupted(
            f"stopped after step {state.global_step} of {state.max_steps}; its state is saved."
        )


def ends_epoch(state: TrainerState) -> bool:
    """Whether the step was its epoch's last, after which evaluation and a checkpoint follow."""
    return state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()


def agreed(wish: bool, args: TrainingArguments) -> bool:
    """Whether any process wishes it, so that all do the same in the same step."""
    if args.world_size == 1:
        return wish
    flag = torch.tensor(float(wish), device=args.device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
