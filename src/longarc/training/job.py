"""The training job: a checked table becomes a run folder with a trained, evaluated classifier.

``prepare`` refuses what can be refused; then baseline, linear probe, fine-tuning, second stage and
evaluation follow, each writing its part of the folder. Under ``torchrun`` every process prepares
the same data and trains; the first one alone writes and speaks.
"""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_model, save_model

from longarc.data.examples import Examples
from longarc.errors import Interrupted
from longarc.files import whole_file, whole_folder, write_json
from longarc.hold import held
from longarc.models.head import final_linear
from longarc.stopping import stoppable
from longarc.training.baseline import LinearBaseline
from longarc.training.config import TrainConfig
from longarc.training.evaluation import score, write_predictions
from longarc.training.fine_tuning import fine_tune
from longarc.training.groundwork import Groundwork
from longarc.training.prediction import decisions, trained_loss
from longarc.training.preparation import prepare
from longarc.training.progress import Reporter
from longarc.training.recipes.sampling import sampling_weights
from longarc.training.recipes.second_stage import SecondStage
from longarc.training.recipes.trials import Trials
from longarc.training.recording.run_recorder import recorder_of
from longarc.training.run_folder import RunFolder, refuse_existing
from longarc.training.trainer import is_main_process


def train(config: TrainConfig, *, data: Any = None, console: Console | None = None) -> RunFolder:
    """Run the whole job and return the finished folder.

    Args:
        config: see :class:`~longarc.training.config.TrainConfig`.
        data: a table in memory (DataFrame, datasets.Dataset, dict of columns) instead of
            ``config.data``.
        console: where to say what happens; None for silence.

    Raises:
        LongarcError: bad input or options, before anything is written; Interrupted after Ctrl-C
            or SIGTERM.
    """
    reporter = Reporter(console if is_main_process() else None)
    config.validate()
    refuse_existing(config)
    # The others hold and write nothing, and a handler would wait for the barrier they wait at.
    main = is_main_process()
    with stoppable() if main else nullcontext(), held(config.run) if main else nullcontext():
        prepared = prepare(config, reporter, data)
        return _Job(prepared, reporter).run()


class _Job(Groundwork):
    """One run; its methods are the stages, in order."""

    def run(self) -> RunFolder:
        """Do everything, in order."""
        self._start()
        with self._explained():
            resumed = self._lay()
            if not self.config.freeze:
                self._fine_tune(resumed)
            if self.main:
                self._second_stage()
                self._finish()
            self._wait()
        return self.folder

    # Stages

    def _fine_tune(self, resume_from: str | None) -> None:
        """Train all of the model; a run that was interrupted goes on from its checkpoint."""
        validation = self.splits.validation
        with self.reporter.timed("training"), self.reporter.task("fine-tuning") as advance:
            try:
                best = fine_tune(
                    self.model,
                    self.args,
                    self.config,
                    train=self._training_documents(),
                    validation=self._documents(validation, sort=True) if validation else None,
                    tokenizer=self.prepared.tokenizer,
                    loss=self.loss,
                    sampling_weights=sampling_weights(
                        self._codes(self.splits.train), self.config.sampler
                    ),
                    resume_from=resume_from,
                    advance=advance if self.main else None,
                    recorder=recorder_of(
                        self.config, self.folder, self.splits.train, self.reporter.say
                    ),
                )
            except Interrupted as stopped:
                raise Interrupted(f"{stopped} {self._how_to_resume()}") from None
        if best == 0 and self.config.epochs:
            start = "linear probe" if self.config.head_start == "probe" else "random start"
            hybrid = ", to whose logits the hybrid adds" if self.config.hybrid else ""
            self.reporter.say(
                f"training did not beat the {start} on the validation split: the {start} was "
                f"kept{hybrid}. Try another --learning-rate, more --epochs or more data."
            )

    def _second_stage(self) -> None:
        """Change the head by --recipe and --calibrate, once: a resumed run finds what was done."""
        if not self._has_second_stage():
            return
        head = final_linear(self.model)
        kept = self.folder.checkpoints / "head.safetensors"
        if "second_stage" in self.recipe and kept.is_file():
            load_model(head, kept)
            return
        with self.reporter.timed("second_stage"):
            started = time.monotonic()
            texts = self.splits.validation.texts if self.splits.validation else []
            features = self.frozen or self._features(["validation"])
            reading = (time.monotonic() - started) / max(len(texts), 1)
            offset = None
            if self.config.hybrid:
                offset = torch.from_numpy(LinearBaseline.load(self._kept_linear).margins(texts))
            stage = SecondStage(
                head,
                features.get("validation", torch.zeros(0, head.in_features)),
                Trials(self._validation_codes(), self._trial_seconds()),
                space=self.space,
                examples=len(self.splits.train),
                loss=trained_loss(self.folder) or self.loss,
                training=self._training_features,
                training_seconds=0.0 if self.frozen else reading * len(self.splits.train),
                offset=offset,
                tau=self.config.recipe_tau,
            )
            record = stage.run(self.config.recipe, calibrate=self.config.calibrate)
            with whole_file(kept) as temporary:
                save_model(head, str(temporary))
            self._note_recipe(second_stage=record)
        self.reporter.say(f"second stage: {record['why']}")

    def _training_features(self) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.frozen or self._features(["train"])
        return features["train"], torch.from_numpy(self._codes(self.splits.train))

    def _finish(self) -> None:
        """Evaluate, then write model, predictions and, last, metrics."""
        loss = trained_loss(self.folder)
        linear = self._scores()
        self.predictor.offset = linear.margins if linear else None
        parts: list[tuple[str, Examples, np.ndarray]] = []
        metrics: dict[str, Any] = {}
        with self.reporter.timed("evaluation"):
            total = sum(len(part) for _, part in self._held_out())
            with self.reporter.task("evaluating", total) as advance:
                for split, part in self._held_out():
                    logits = self.predictor.logits(part.texts, advance)
                    parts.append((split, part, logits))
                    decided = decisions(logits, multi_label=self.space.multi_label)
                    metrics[split] = {
                        "model": score(part, self.space, logits, loss=loss),
                        **self.baselines.beside(split, part, self.space, decided),
                    }
        with whole_folder(self.folder.model) as temporary:
            self.model.save_pretrained(temporary)
            self.prepared.tokenizer.save_pretrained(temporary)
        if linear:
            linear.save(self.folder.linear)
        write_predictions(self.folder.predictions_file, self.space, parts, loss=loss)
        metrics["seconds"] = {k: round(v, 1) for k, v in self.reporter.seconds.items()}
        write_json(self.folder.metrics_file, metrics)
        if not self.config.keep_checkpoints:
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)

    def _scores(self) -> LinearBaseline | None:
        """What a hybrid adds to the logits; the temperature is for both."""
        if not self.config.hybrid:
            return None
        temperature = self.recipe.get("second_stage", {}).get("temperature")
        linear = LinearBaseline.load(self._kept_linear)
        return linear.scaled(1 / temperature["value"]) if temperature else linear
