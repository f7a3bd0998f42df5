"""The training job: a checked table becomes a run folder with a trained, evaluated classifier.

``prepare`` refuses what can be refused; then baseline, linear probe, fine-tuning, second stage and
evaluation follow, each writing its part of the folder. Under ``torchrun`` every process prepares
the same data and trains; the first one alone writes and speaks.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_model, save_model

from longarc.data.examples import Examples
from longarc.data.terminal import print_check
from longarc.errors import Interrupted, ModelError, RunError
from longarc.files import whole_file, whole_folder, write_json
from longarc.models.head import final_linear
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.registry import build_loss, loss_names
from longarc.objectives.regularizers.embeddings import check_same_by_embeddings
from longarc.objectives.regularizers.registry import build_regularizers
from longarc.training.arguments import training_arguments
from longarc.training.baseline import LinearBaseline
from longarc.training.batches import Documents
from longarc.training.checkpoint import last_checkpoint
from longarc.training.config import TrainConfig
from longarc.training.disk_space import CHECKPOINTS, refuse_full_disk
from longarc.training.evaluation import (
    score,
    score_decisions,
    write_predictions,
)
from longarc.training.fine_tuning import fine_tune
from longarc.training.prediction import (
    Predictor,
    bfloat16_is_fast,
    chosen_device,
    trained_loss,
)
from longarc.training.preparation import Prepared, prepare
from longarc.training.probe import Probe
from longarc.training.progress import Reporter
from longarc.training.recipes.loss_choice import candidate_losses, probe_losses
from longarc.training.recipes.sampling import sampling_weights
from longarc.training.recipes.second_stage import SecondStage, check_head
from longarc.training.recipes.trials import Trials
from longarc.training.run_folder import (
    RunFolder,
    create_run_folder,
    describe_origin,
    refuse_existing,
)
from longarc.training.run_recorder import recorder_of, refuse_several
from longarc.training.starting_model import fit_attention, starting_model
from longarc.training.trainer import is_main_process


def train(config: TrainConfig, *, data: Any = None, console: Console | None = None) -> RunFolder:
    """Run the whole job and return the finished folder.

    Args:
        config: see :class:`~longarc.training.config.TrainConfig`.
        data: a table in memory (DataFrame, datasets.Dataset, dict of columns) instead of
            ``config.data``.
        console: where to say what happens; None for silence.

    Raises:
        LongarcError: bad input or options, before anything is written; Interrupted after Ctrl-C.
    """
    reporter = Reporter(console if is_main_process() else None)
    config.validate()
    refuse_existing(config)
    prepared = prepare(config, reporter, data)
    return _Job(prepared, reporter).run()


class _Job:
    """One run; its methods are the stages, in order."""

    def __init__(self, prepared: Prepared, reporter: Reporter):
        self.prepared = prepared
        self.reporter = reporter
        self.space = prepared.space
        self.splits = prepared.splits
        device = chosen_device(prepared.config.device)
        bf16 = prepared.config.precision == "bf16" or (
            prepared.config.precision == "auto"
            # Contributions add up to the arithmetic's rounding, which is coarse in bfloat16.
            and not prepared.config.record_path
            and bfloat16_is_fast(device)
        )
        self.config = dataclasses.replace(prepared.config, precision="bf16" if bf16 else "fp32")
        self.folder = RunFolder(self.config.run)
        self.args = training_arguments(self.config, device, len(self.splits.train))
        self.main = self.args.process_index == 0
        self.baselines: dict[str, dict[str, Any]] = {}
        self.recipe: dict[str, Any] = {}
        self.frozen: dict[str, torch.Tensor] = {}  # features by split, while they are of use

    def run(self) -> RunFolder:
        torch.manual_seed(self.config.seed)
        self._settle_loss(self.config.loss)
        self.model: Any = starting_model(self.config, self.space, self.prepared.tokenizer)
        self.model.to(self.args.device)
        # Before any choice by probes there is no loss, and none of its candidates needs the head.
        needs_head = self.config.loss != "auto" and self.loss.uses_class_vectors
        if needs_head or self.config.head_start == "probe" or self._has_second_stage():
            # Refuses a model without such a layer before anything is written.
            check_head(final_linear(self.model), self.config.recipe)
        if self.config.record_path:
            refuse_several(self.args.world_size * max(1, self.args.n_gpu))
        if any(r.uses_embeddings for r in build_regularizers(self.config.regularizers)):
            check_same_by_embeddings(self.model)
        self.predictor = Predictor(
            self.model,
            self.prepared.tokenizer,
            max_length=self.config.max_length or 0,
            bf16=self.config.precision == "bf16",
            batch_size=2 * self.config.batch_size,
        )
        self._wait()
        if self.main:
            self._open_folder()
        self._wait()
        try:
            resumed = last_checkpoint(self.folder.checkpoints) if self.config.resume else None
            if self.config.attention == "learned" and resumed is None:
                with self.reporter.timed("attention"):
                    fit_attention(self.model, self.prepared, self.reporter)
            if self.main:
                self._fit_baselines(resumed is not None)
            self._wait()
            self._agree_on_loss()
            if not self.config.freeze:
                self._fine_tune(str(resumed) if resumed else None)
            if self.main:
                self._second_stage()
                self._finish()
            self._wait()
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"the {self.args.device.type} ran out of memory. Use a smaller --batch-size with a "
                "larger --accumulation (the same update), or a smaller --max-length."
            ) from error
        except Exception as error:
            if "No space left on device" in str(error) or "os error 28" in str(error):
                raise RunError(self._full_disk()) from error
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"stopped. {self._how_to_resume()}") from None
        return self.folder

    # Stages

    def _open_folder(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        refuse_full_disk(self.config.run, parameters, 1 if self.config.freeze else 1 + CHECKPOINTS)
        origin = describe_origin(
            self.prepared.data_sha256,
            encoder=type(self.model.base_model).__name__,
            parameters=parameters,
            processes=self.args.world_size * max(1, self.args.n_gpu),
        )
        if self.config.resume and self.config.loss == "auto":
            self._settle_loss(self.folder.config().loss)  # "auto" still, if it was stopped so early
        create_run_folder(self.config, origin)
        self.recipe = self.folder.recipe()
        self.space.save(self.folder.labels_file)
        write_json(self.folder.check_file, self.prepared.check.to_dict())
        self.folder.checkpoints.mkdir(exist_ok=True)
        if self.reporter.console is not None:
            print_check(self.prepared.check, self.reporter.console)
        loss = "a loss to be chosen" if self.config.loss == "auto" else self.config.loss
        self.reporter.say(
            f"{self.config.model} ({parameters / 1e6:.1f} M parameters), {loss}, "
            f"{self.config.max_length} tokens, {self.config.precision} on {self.args.device.type}"
        )

    def _fit_baselines(self, resumed: bool) -> None:
        """TF-IDF + LinearSVC, and the linear probe, which also becomes the head's start."""
        kept = self.folder.checkpoints / "baselines.json"
        if resumed and kept.is_file():
            self.baselines = json.loads(kept.read_text(encoding="utf-8"))
            return
        if self.config.baseline or self.config.hybrid:
            with self.reporter.timed("baseline"), self.reporter.task("TF-IDF + LinearSVC"):
                linear = LinearBaseline()
                train = self.splits.train
                linear.fit(train.texts, self._codes(train), space=self.space, seed=self.config.seed)
                if self.config.baseline:
                    self.baselines["tfidf-svm"] = {
                        split: score_decisions(part, self.space, linear.predict(part.texts))
                        for split, part in self._held_out()
                    }
                if self.config.hybrid:
                    linear.scaled(self.config.hybrid).save(self._kept_linear)
        if self.config.head_start == "probe":
            with self.reporter.timed("probe"):
                probe, features = self._fit_probe()
                if not self.config.freeze:  # else the model itself is the probe
                    probed = {split: probe.logits(found) for split, found in features.items()}
                    self.baselines["frozen-probe"] = {
                        split: score(part, self.space, probed[split].numpy(), loss=self.loss)
                        for split, part in self._held_out()
                    }
                elif self._has_second_stage():
                    self.frozen = features
        write_json(kept, self.baselines)

    def _fit_probe(self) -> tuple[Probe, dict[str, torch.Tensor]]:
        features = self._features([split for split, _ in self.splits.items()])
        names: Sequence[str] = [self.config.loss]
        if self.config.loss == "auto":
            names = candidate_losses(multi_label=self.space.multi_label)
        trials = Trials(self._validation_codes(), self._trial_seconds())
        with self.reporter.task("fitting the linear probe"):
            name, probe = probe_losses(
                trials,
                {name: self._build_loss(name) for name in names},
                features["train"],
                torch.from_numpy(self._codes(self.splits.train)),
                features.get("validation", features["train"][:0]),
                classes=len(self.space),
            )
        if self.config.loss == "auto":
            self._note_loss(name, trials)
        head = final_linear(self.model)
        with torch.no_grad():
            head.weight.copy_(probe.weight)
            if head.bias is not None:
                head.bias.copy_(probe.bias)
        return probe, features

    def _note_loss(self, name: str, trials: Trials) -> None:
        """Make it the run's, in config.yaml too; recipe.json comes first, as it says why."""
        figures = ", ".join(f"{row['name']} {row['macro_f1']:.3f}" for row in trials.rows)
        why = f"{name}; validation macro-F1 of linear probes: {figures}"
        self._note_recipe(loss={**trials.to_dict(), "chosen": name, "why": why})
        self._settle_loss(name)
        self.folder.settle(loss=name)
        self.reporter.say(f"loss: {why}")

    def _agree_on_loss(self) -> None:
        """In every process the loss that the first one chose or found in config.yaml."""
        if self.prepared.config.loss != "auto":
            return
        names = loss_names()
        chosen = torch.tensor(names.index(self.config.loss) if self.main else 0)
        if self.args.world_size > 1:
            chosen = chosen.to(self.args.device)
            torch.distributed.broadcast(chosen, 0)
        self._settle_loss(names[int(chosen)])

    def _fine_tune(self, resume_from: str | None) -> None:
        """Train all of the model; a run that was interrupted goes on from its checkpoint."""
        validation = self.splits.validation
        with self.reporter.timed("training"), self.reporter.task("fine-tuning") as advance:
            try:
                best = fine_tune(
                    self.model,
                    self.args,
                    self.config,
                    train=self._documents(self.splits.train),
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
            self.reporter.say(
                "fine-tuning did not beat the linear probe on the validation split: the probe was "
                "kept. Try a smaller --learning-rate or more data."
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
                    metrics[split] = {
                        "model": score(part, self.space, logits, loss=loss),
                        "baselines": {
                            name: figures[split] for name, figures in self.baselines.items()
                        },
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

    # Pieces

    def _build_loss(self, name: str) -> Loss:
        return build_loss(
            name,
            class_counts=self.space.counts,
            num_examples=len(self.splits.train),
            options=self.config.loss_options,
            multi_label=self.space.multi_label,
        )

    def _settle_loss(self, name: str) -> None:
        self.config = dataclasses.replace(self.config, loss=name)
        if name != "auto":  # else chosen by probes
            self.loss = self._build_loss(name)

    def _scores(self) -> LinearBaseline | None:
        """What a hybrid adds to the logits; the temperature is for both."""
        if not self.config.hybrid:
            return None
        temperature = self.recipe.get("second_stage", {}).get("temperature")
        linear = LinearBaseline.load(self._kept_linear)
        return linear.scaled(1 / temperature["value"]) if temperature else linear

    @property
    def _kept_linear(self) -> Path:
        return self.folder.checkpoints / "linear"

    def _validation_codes(self) -> np.ndarray:
        """The labels that choices are made by; none without a validation split."""
        validation = self.splits.validation
        return self._codes(validation) if validation else self._codes(self.splits.train)[:0]

    def _has_second_stage(self) -> bool:
        return self.config.recipe != "none" or self.config.calibrate

    def _trial_seconds(self) -> float:
        """What is left of --recipe-minutes after the losses that were tried."""
        tried = self.recipe.get("loss", {}).get("trials", [])
        return 60 * self.config.recipe_minutes - sum(row["seconds"] for row in tried)

    def _note_recipe(self, **part: Any) -> None:
        self.recipe |= part
        write_json(self.folder.recipe_file, self.recipe)

    def _features(self, wanted: list[str]) -> dict[str, torch.Tensor]:
        """What enters the head for the documents of some splits, each (N, d)."""
        parts = [(split, part) for split, part in self.splits.items() if split in wanted]
        total = sum(len(part) for _, part in parts)
        with self.reporter.task("reading with the encoder", total) as advance:
            return {
                split: torch.from_numpy(self.predictor.features(part.texts, advance))
                for split, part in parts
            }

    def _held_out(self) -> list[tuple[str, Examples]]:
        return [(split, part) for split, part in self.splits.items() if split != "train"]

    def _codes(self, part: Examples) -> np.ndarray:
        return self.space.encode(part.labels or [])

    def _documents(self, part: Examples, *, sort: bool = False) -> Documents:
        target = self._codes(part)
        if target.ndim == 1:  # a class never seen in training has no logit to score
            target = np.where(target < 0, self.loss.ignore_index, target)
        documents = Documents(
            part.texts, self.prepared.tokenizer, self.config.max_length or 0, target
        )
        return documents.sorted_by_length() if sort else documents

    def _full_disk(self) -> str:
        kept = last_checkpoint(self.folder.checkpoints)
        state = f"The checkpoint {kept.name} is whole" if kept else "No checkpoint was saved yet"
        return (
            f"no space left on the disk of {self.folder.path}. {state}. "
            f"Free some space; then {self._how_to_resume()[0].lower()}{self._how_to_resume()[1:]}"
        )

    def _how_to_resume(self) -> str:
        if self.config.data.startswith("<"):
            return "Go on with: longarc.fit(the same data and options, resume=True)"
        return f"Go on with: longarc train --resume --out {shlex.quote(str(self.folder.path))}"

    def _wait(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()
