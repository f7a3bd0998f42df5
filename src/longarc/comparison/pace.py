"""Seconds that a step of a training takes, before the training: for budgets of minutes."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from longarc.training.config import TrainConfig
from longarc.training.groundwork import Groundwork
from longarc.training.preparation import prepare
from longarc.training.progress import Reporter
from longarc.training.recipes.sampling import sampling_weights
from longarc.training.run_trainer import run_trainer, trial_arguments

WARM = 2
TIMED = 10
"""Steps. The median of so few is some per cent off; what was really taken is measured as well."""


def seconds_per_step(config: TrainConfig) -> float:
    """The median of a few steps of the run that ``config`` describes; nothing is left on the disk.

    Batches are the first ones of the training, in its order.
    """
    with tempfile.TemporaryDirectory(prefix="longarc-pace-") as scratch:
        config = dataclasses.replace(
            config,
            out=str(Path(scratch) / "run"),
            epochs=1000.0,
            head_start="scratch",
            learning_rate=1e-5 if config.learning_rate == "auto" else config.learning_rate,
            recipe="none",
            recipe_tau=None,
            calibrate=False,
            hybrid=0.0,
            resume=False,
            overwrite=False,
            baseline=False,
        )
        return _Pace(prepare(config, Reporter(None)), Reporter(None)).measure()


class _Pace(Groundwork):
    """A run that ends after its first steps."""

    copies = 0

    def measure(self) -> float:
        self._start()
        clock = _Clock()
        train = self.splits.train
        trainer = run_trainer(
            self.model,
            trial_arguments(self.args, max_steps=WARM + TIMED),
            self.config,
            train=self._documents(train),
            tokenizer=self.prepared.tokenizer,
            loss=self.loss,
            sampling_weights=sampling_weights(self._codes(train), self.config.sampler),
            callbacks=[clock],
        )
        with self._explained():
            trainer.train()
        return statistics.median(clock.seconds[WARM:])


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)
