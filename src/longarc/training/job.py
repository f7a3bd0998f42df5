"""The training job: a checked table becomes a run folder with a trained, evaluated classifier.

``prepare`` refuses what can be refused; then baseline, linear probe, fine-tuning and evaluation
follow, each writing its part of the folder. Under ``torchrun`` every process prepares the same data
and trains; the first one alone writes and speaks.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from longarc.data.examples import Examples
from longarc.data.terminal import print_check
from longarc.errors import Interrupted, ModelError, RunError
from longarc.files import whole_folder, write_json
from longarc.models.head import final_linear
from longarc.models.loading import load_classifier
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.registry import build_loss
from longarc.training.baseline import LinearBaseline
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.callbacks import Bar, CheckpointClock, FiniteLoss, Interruption, RunLog
from longarc.training.checkpoint import last_checkpoint
from longarc.training.config import TrainConfig
from longarc.training.evaluation import macro_f1, score, score_decisions, write_predictions
from longarc.training.prediction import Predictor, bfloat16_is_fast, chosen_device, decisions
from longarc.training.preparation import Prepared, prepare
from longarc.training.probe import Probe, fit_probe
from longarc.training.progress import Reporter
from longarc.training.run_folder import (
    RunFolder,
    create_run_folder,
    describe_origin,
    refuse_existing,
)
from longarc.training.trainer import Trainer, is_main_process

if TYPE_CHECKING:
    from transformers import TrainingArguments


# Model outputs that evaluation must not collect: they are as long as the documents.
_UNUSED = [
    "hidden_states", "attentions", "past_key_values", "encoder_last_hidden_state",
    "encoder_hidden_states", "encoder_attentions", "cross_attentions",
]  # fmt: skip


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
            prepared.config.precision == "auto" and bfloat16_is_fast(device)
        )
        self.config = dataclasses.replace(prepared.config, precision="bf16" if bf16 else "fp32")
        self.folder = RunFolder(self.config.run)
        self.args = self._arguments(device)
        self.main = self.args.process_index == 0
        self.baselines: dict[str, dict[str, Any]] = {}

    def run(self) -> RunFolder:
        torch.manual_seed(self.config.seed)
        self.loss: Loss = build_loss(
            self.config.loss,
            class_counts=self.space.counts,
            num_examples=len(self.splits.train),
            options=self.config.loss_options,
            multi_label=self.space.multi_label,
        )
        self.model: Any = load_classifier(
            self.config.model,
            labels=self.space.names,
            multi_label=self.space.multi_label,
            pooling=self.config.pooling,
            trust_remote_code=self.config.trust_remote_code,
        )
        self.model.to(self.args.device)
        if self.config.head_start == "probe":
            final_linear(self.model)  # refuses a model without one before anything is written
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
            if self.main:
                self._fit_baselines(resumed is not None)
            self._wait()
            if not self.config.freeze:
                self._fine_tune(str(resumed) if resumed else None)
            if self.main:
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
        self._refuse_full_disk(parameters)
        origin = describe_origin(
            self.prepared.data_sha256,
            encoder=type(self.model.base_model).__name__,
            parameters=parameters,
            processes=self.args.world_size * max(1, self.args.n_gpu),
        )
        create_run_folder(self.config, origin)
        self.space.save(self.folder.labels_file)
        write_json(self.folder.check_file, self.prepared.check.to_dict())
        self.folder.checkpoints.mkdir(exist_ok=True)
        if self.reporter.console is not None:
            print_check(self.prepared.check, self.reporter.console)
        self.reporter.say(
            f"{self.config.model} ({parameters / 1e6:.1f} M parameters), {self.config.loss}, "
            f"{self.config.max_length} tokens, {self.config.precision} on {self.args.device.type}"
        )

    def _fit_baselines(self, resumed: bool) -> None:
        """TF-IDF + LinearSVC, and the linear probe, which also becomes the head's start."""
        kept = self.folder.checkpoints / "baselines.json"
        if resumed and kept.is_file():
            self.baselines = json.loads(kept.read_text(encoding="utf-8"))
            return
        if self.config.baseline:
            with self.reporter.timed("baseline"), self.reporter.task("TF-IDF + LinearSVC"):
                linear = LinearBaseline()
                linear.fit(
                    self.splits.train.texts,
                    self.space.encode(self.splits.train.labels or []),
                    space=self.space,
                    seed=self.config.seed,
                )
                self.baselines["tfidf-svm"] = {
                    split: score_decisions(part, self.space, linear.predict(part.texts))
                    for split, part in self._held_out()
                }
        if self.config.head_start == "probe":
            with self.reporter.timed("probe"):
                probe, features = self._fit_probe()
                if not self.config.freeze:  # else the model itself is the probe
                    self.baselines["frozen-probe"] = {
                        split: score(part, self.space, probe.logits(features[split]).numpy())
                        for split, part in self._held_out()
                    }
        write_json(kept, self.baselines)

    def _fit_probe(self) -> tuple[Probe, dict[str, torch.Tensor]]:
        parts = self.splits.items()
        total = sum(len(part) for _, part in parts)
        with self.reporter.task("reading with the frozen encoder", total) as advance:
            features = {
                split: torch.from_numpy(self.predictor.features(part.texts, advance))
                for split, part in parts
            }
        target = torch.from_numpy(self.space.encode(self.splits.train.labels or []))
        held_out = self.space.encode(self.splits.validation.labels or [])
        with self.reporter.task("fitting the linear probe"):
            probe = fit_probe(
                features["train"],
                target,
                self.loss,
                classes=len(self.space),
                score=lambda p: macro_f1(
                    held_out,
                    decisions(
                        p.logits(features["validation"]).numpy(),
                        multi_label=self.space.multi_label,
                    ),
                ),
            )
        head = final_linear(self.model)
        with torch.no_grad():
            head.weight.copy_(probe.weight)
            if head.bias is not None:
                head.bias.copy_(probe.bias)
        return probe, features

    def _fine_tune(self, resume_from: str | None) -> None:
        from transformers import EarlyStoppingCallback

        interruption = Interruption()
        with self.reporter.timed("training"), self.reporter.task("fine-tuning") as advance:
            trainer = Trainer(
                self.model,
                self.args,
                train_dataset=self._documents(self.splits.train),
                eval_dataset=self._documents(self.splits.validation, sort=True),
                data_collator=PaddedBatches(self.prepared.tokenizer, self.config.max_length),
                processing_class=self.prepared.tokenizer,
                compute_metrics=_validation_metrics,
                loss=self.loss,
                layer_decay=self.config.layer_decay,
                head_learning_rate=self.config.head_learning_rate,
                callbacks=[
                    FiniteLoss(),
                    RunLog(self.folder.log_file),
                    CheckpointClock(self.config.checkpoint_minutes),
                    interruption,
                    *([Bar(advance)] if self.main else []),
                    *(
                        [EarlyStoppingCallback(self.config.patience)]
                        if self.config.patience
                        else []
                    ),
                ],
            )
            from transformers.trainer_callback import PrinterCallback

            trainer.remove_callback(PrinterCallback)
            if resume_from:
                self.reporter.say(f"going on from {Path(resume_from).name}")
            try:
                trainer.train(resume_from_checkpoint=resume_from, ignore_keys_for_eval=_UNUSED)
            finally:
                interruption.restore()
        if interruption.stopped:
            raise Interrupted(
                f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}; "
                f"its state is saved. {self._how_to_resume()}"
            )
        if self.main:
            log = RunLog(self.folder.log_file)
            best = trainer.state.best_global_step
            log.write(
                "end",
                step=trainer.state.global_step,
                best_step=best,
                seconds=round(self.reporter.seconds["training"], 1),
            )
            if best == 0 and trainer.state.global_step:
                self.reporter.say(
                    "fine-tuning did not beat the linear probe on the validation split: the probe "
                    "was kept. Try a smaller --learning-rate or more data."
                )

    def _finish(self) -> None:
        """Evaluate, then write model, predictions and, last, metrics."""
        parts: list[tuple[str, Examples, np.ndarray]] = []
        metrics: dict[str, Any] = {}
        with self.reporter.timed("evaluation"):
            total = sum(len(part) for _, part in self._held_out())
            with self.reporter.task("evaluating", total) as advance:
                for split, part in self._held_out():
                    logits = self.predictor.logits(part.texts, advance)
                    parts.append((split, part, logits))
                    metrics[split] = {
                        "model": score(part, self.space, logits),
                        "baselines": {
                            name: figures[split] for name, figures in self.baselines.items()
                        },
                    }
        with whole_folder(self.folder.model) as temporary:
            self.model.save_pretrained(temporary)
            self.prepared.tokenizer.save_pretrained(temporary)
        write_predictions(self.folder.predictions_file, self.space, parts)
        metrics["seconds"] = {k: round(v, 1) for k, v in self.reporter.seconds.items()}
        write_json(self.folder.metrics_file, metrics)
        if not self.config.keep_checkpoints:
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)

    # Pieces

    def _held_out(self) -> list[tuple[str, Examples]]:
        return [(split, part) for split, part in self.splits.items() if split != "train"]

    def _documents(self, part: Examples, *, sort: bool = False) -> Documents:
        target = self.space.encode(part.labels or [])
        if target.ndim == 1:  # a class never seen in training has no logit to score
            target = np.where(target < 0, self.loss.ignore_index, target)
        documents = Documents(
            part.texts, self.prepared.tokenizer, self.config.max_length or 0, target
        )
        return documents.sorted_by_length() if sort else documents

    def _arguments(self, device: torch.device) -> TrainingArguments:
        from transformers import TrainingArguments

        updates = len(self.splits.train) / (self.config.batch_size * self.config.accumulation)
        return TrainingArguments(
            output_dir=str(self.folder.checkpoints),
            per_device_train_batch_size=self.config.batch_size,
            per_device_eval_batch_size=2 * self.config.batch_size,
            gradient_accumulation_steps=self.config.accumulation,
            num_train_epochs=self.config.epochs,
            learning_rate=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            warmup_steps=self.config.warmup,
            max_grad_norm=self.config.max_grad_norm,
            bf16=self.config.precision == "bf16",
            use_cpu=device.type == "cpu",
            seed=self.config.seed,
            train_sampling_strategy="group_by_length" if self.config.group_by_length else "random",
            logging_steps=max(1, math.ceil(updates * self.config.epochs / 200)),
            logging_nan_inf_filter=False,
            eval_strategy="epoch",
            eval_on_start=True,
            save_strategy="epoch",
            save_total_limit=2,  # the best and the last; with 1 transformers drops the last
            load_best_model_at_end=True,
            metric_for_best_model="macro_f1",
            greater_is_better=True,
            restore_callback_states_from_checkpoint=True,
            average_tokens_across_devices=False,
            remove_unused_columns=False,
            label_names=["labels"],
            ddp_timeout=7 * 24 * 3600,  # the others wait while the first fits the baselines
            dataloader_pin_memory=device.type != "cpu",
            disable_tqdm=True,
            report_to="none",
        )

    def _refuse_full_disk(self, parameters: int) -> None:
        place = self.config.run.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        copies = 1 if self.config.freeze else 1 + 3 * 3  # weights and two moments; best, last, next
        needed = 4 * parameters * copies
        if free < needed:
            raise RunError(
                f"{place} has {free / 1e9:.2f} GB free, and this run needs up to "
                f"{needed / 1e9:.2f} GB for checkpoints. Free some, or name a folder on another "
                "disk with --out."
            )

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


def _validation_metrics(evaluated: Any) -> dict[str, float]:
    """Macro-F1, which chooses the best checkpoint, and accuracy."""
    logits, target = np.asarray(evaluated.predictions), np.asarray(evaluated.label_ids)
    predicted = decisions(logits, multi_label=target.ndim == 2)
    exact = predicted == target if target.ndim == 1 else (predicted == target).all(axis=1)
    return {"macro_f1": macro_f1(target, predicted), "accuracy": float(exact.mean())}
