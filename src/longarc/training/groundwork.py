"""What precedes fine-tuning: the model, its attention, baselines, probe, loss and learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from longarc.data.examples import Examples
from longarc.data.terminal import print_check
from longarc.errors import Interrupted, ModelError, OptionError, RunError
from longarc.files import write_json
from longarc.models.head import final_linear
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.registry import build_loss, loss_names
from longarc.objectives.regularizers.embeddings import check_same_by_embeddings
from longarc.objectives.regularizers.registry import build_regularizers
from longarc.training.arguments import training_arguments
from longarc.training.baseline import LinearBaseline
from longarc.training.batches import Documents
from longarc.training.callbacks import RunLog
from longarc.training.checkpoint import last_checkpoint
from longarc.training.disk_space import CHECKPOINTS, is_full_disk, refuse_full_disk
from longarc.training.evaluation import score, score_decisions
from longarc.training.learning_rate.search import search_learning_rate
from longarc.training.measured_baselines import MeasuredBaselines
from longarc.training.prediction import Predictor, bfloat16_is_fast, chosen_device, decisions
from longarc.training.preparation import Prepared
from longarc.training.probe import Probe
from longarc.training.probe_temperature import (
    FEWEST,
    cross_fitted_temperature,
    temperature,
)
from longarc.training.progress import Reporter
from longarc.training.recipes.loss_choice import candidate_losses, probe_losses
from longarc.training.recipes.sampling import sampling_weights
from longarc.training.recipes.second_stage import check_head
from longarc.training.recipes.trials import Trials
from longarc.training.recording.run_recorder import bytes_of_path
from longarc.training.run_folder import RunFolder, create_run_folder, describe_origin
from longarc.training.starting_model import fit_attention, starting_model


class Groundwork:
    """A run as far as it comes before fine-tuning; its methods are the stages, in order."""

    copies = 1 + CHECKPOINTS
    """Of the model's weights that the disk has to hold."""

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
        self.unlabelled = len(prepared.unlabelled.texts) if prepared.unlabelled else 0
        self.args = training_arguments(
            self.config, device, len(self.splits.train) + self.unlabelled
        )
        self.main = self.args.process_index == 0
        self.baselines = MeasuredBaselines()
        self.recipe: dict[str, Any] = {}
        self.frozen: dict[str, torch.Tensor] = {}  # features by split, while they are of use

    def _start(self) -> None:
        """Load the model, refuse what does not fit it, and open the folder."""
        torch.manual_seed(self.config.seed)
        self._settle_loss(self.config.loss)
        self.model: Any = starting_model(self.config, self.space, self.prepared.tokenizer)
        self.model.to(self.args.device)
        # Before any choice by probes there is no loss, and none of its candidates needs the head.
        needs_head = self.config.loss != "auto" and self.loss.uses_class_vectors
        if needs_head or self.config.head_start == "probe" or self._has_second_stage():
            # Refuses a model without such a layer before anything is written.
            check_head(final_linear(self.model), self.config.recipe)
        for flag, given in (
            ("--record-path", self.config.record_path),
            ("--learning-rate auto", self.config.learning_rate == "auto"),
        ):
            if given:
                _refuse_several(flag, self.args.world_size * max(1, self.args.n_gpu))
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

    def _lay(self) -> str | None:
        """Make all that fine-tuning starts from; return the checkpoint to go on from, if any."""
        resumed = last_checkpoint(self.folder.checkpoints) if self.config.resume else None
        if self.config.attention == "learned" and resumed is None:
            with self.reporter.timed("attention"):
                fit_attention(self.model, self.prepared, self.reporter)
        if self.main:
            self._fit_baselines(resumed is not None)
        self._wait()
        self._agree_on_loss()
        if self.config.learning_rate == "auto":
            self._choose_rate()
        return str(resumed) if resumed else None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What can stop a run, in the words of its options."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"the {self.args.device.type} ran out of memory. Use a smaller --batch-size with a "
                "larger --accumulation (the same update), or a smaller --max-length."
            ) from error
        except Exception as error:
            if is_full_disk(error):
                raise RunError(self._full_disk()) from error
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"stopped. {self._how_to_resume()}") from None

    # Stages

    def _open_folder(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        path = 0
        if not self.config.resume:  # else it is there in part
            path = bytes_of_path(self.config, self.model, len(self.splits.train))
        copies = 1 if self.config.freeze else self.copies
        refuse_full_disk(self.config.run, parameters, copies, path)
        origin = describe_origin(
            self.prepared.data_sha256,
            encoder=type(self.model.base_model).__name__,
            parameters=parameters,
            processes=self.args.world_size * max(1, self.args.n_gpu),
        )
        if self.config.resume and self.config.loss == "auto":
            self._settle_loss(self.folder.config().loss)  # "auto" still, if it was stopped so early
        if self.config.resume and self.config.learning_rate == "auto":
            self._settle_rate(self.folder.config().learning_rate)
        create_run_folder(self.config, origin)
        self.recipe = self.folder.recipe()
        self.space.save(self.folder.labels_file)
        write_json(self.folder.check_file, self.prepared.check.to_dict())
        self.folder.checkpoints.mkdir(exist_ok=True)
        if self.reporter.console is not None:
            print_check(self.prepared.check, self.reporter.console)
        loss = "a loss to be chosen" if self.config.loss == "auto" else self.config.loss
        added = f"hybrid {self.config.hybrid:g}, " if self.config.hybrid else ""
        self.reporter.say(
            f"{self.config.model} ({parameters / 1e6:.1f} M parameters), {loss}, {added}"
            f"{self.config.max_length} tokens, {self.config.precision} on {self.args.device.type}"
        )

    def _fit_baselines(self, resumed: bool) -> None:
        """TF-IDF + LinearSVC, and the linear probe, which also becomes the head's start."""
        kept = MeasuredBaselines.load(self.folder.checkpoints) if resumed else None
        if kept is not None:
            self.baselines = kept
            return
        if self.config.baseline or self.config.hybrid:
            with self.reporter.timed("baseline"), self.reporter.task("TF-IDF + LinearSVC"):
                linear = LinearBaseline()
                train = self.splits.train
                linear.fit(train.texts, self._codes(train), space=self.space, seed=self.config.seed)
                if self.config.baseline:
                    for split, part in self._held_out():
                        decided = linear.predict(part.texts)
                        figures = score_decisions(part, self.space, decided)
                        self.baselines.add("tfidf-svm", split, figures, decided)
                if self.config.hybrid:
                    linear.scaled(self.config.hybrid).save(self._kept_linear)
        if self.config.head_start == "probe":
            with self.reporter.timed("probe"):
                probe, features = self._fit_probe()
                if not self.config.freeze:  # else the model itself is the probe
                    for split, part in self._held_out():
                        logits = probe.logits(features[split]).numpy()
                        figures = score(part, self.space, logits, loss=self.loss)
                        decided = decisions(logits, multi_label=self.space.multi_label)
                        self.baselines.add("frozen-probe", split, figures, decided)
                elif self._has_second_stage():
                    self.frozen = features
        self.baselines.save(self.folder.checkpoints)

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
        # Frozen, the model is the probe itself.
        start = probe if self.config.freeze else self._softened(probe, features)
        head = final_linear(self.model)
        with torch.no_grad():
            head.weight.copy_(start.weight)
            if head.bias is not None:
                head.bias.copy_(start.bias)
        return probe, features

    def _softened(self, probe: Probe, features: dict[str, torch.Tensor]) -> Probe:
        """What training starts from: as sure as documents that it was not fitted to allow."""
        codes = torch.from_numpy(self._validation_codes())
        enough = len(codes) if codes.ndim == 2 else int((codes >= 0).sum())
        with self.reporter.task("softening the linear probe"):
            if enough >= FEWEST:
                divisor = temperature(probe, features["validation"], codes, self.loss)
            else:
                divisor = cross_fitted_temperature(
                    features["train"],
                    torch.from_numpy(self._codes(self.splits.train)),
                    self.loss,
                    classes=len(self.space),
                    penalty=probe.penalty,
                    seed=self.config.seed,
                )
        log = RunLog(self.folder.log_file)
        log.write("probe", penalty=probe.penalty, temperature=round(divisor, 4))
        return probe.divided(divisor)

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

    @property
    def _kept_linear(self) -> Path:
        return self.folder.checkpoints / "linear"

    def _choose_rate(self) -> None:
        """Make the rate that a search recommends the run's, in config.yaml too."""
        with self.reporter.timed("learning_rate"):
            found = self._search_rate()
        self._note_recipe(learning_rate=found)  # first, as it says why
        self._settle_rate(found["recommended"])
        self.folder.settle(learning_rate=found["recommended"])
        self.reporter.say(f"learning rate: {found['why']}")

    def _search_rate(self, **options: Any) -> dict[str, Any]:
        validation = self.splits.validation
        if validation is None:  # options without a split are refused before
            raise OptionError("there is no validation split to choose a learning rate on.")
        return search_learning_rate(
            self.model,
            self.args,
            self.config,
            train=self._training_documents(),
            validation=self._documents(validation, sort=True),
            tokenizer=self.prepared.tokenizer,
            loss=self.loss,
            sampling_weights=sampling_weights(self._codes(self.splits.train), self.config.sampler),
            reporter=self.reporter,
            **options,
        )

    # Pieces

    def _build_loss(self, name: str) -> Loss:
        return build_loss(
            name,
            class_counts=self.space.counts,
            num_examples=len(self.splits.train),
            options=self.config.loss_options,
            multi_label=self.space.multi_label,
        )

    def _settle_rate(self, rate: float | Literal["auto"]) -> None:
        self.config = dataclasses.replace(self.config, learning_rate=rate)
        if rate != "auto":  # else to be searched
            self.args.learning_rate = rate

    def _settle_loss(self, name: str) -> None:
        self.config = dataclasses.replace(self.config, loss=name)
        if name != "auto":  # else chosen by probes
            self.loss = self._build_loss(name)

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

    def _training_documents(self) -> Documents:
        """Those of the training split, and after them the ones without a label."""
        if self.prepared.unlabelled is None:
            return self._documents(self.splits.train)
        target = self._codes(self.splits.train)
        return Documents(
            [*self.splits.train.texts, *self.prepared.unlabelled.texts],
            self.prepared.tokenizer,
            self.config.max_length or 0,
            np.concatenate(
                [
                    target,
                    np.full(
                        (self.unlabelled, *target.shape[1:]), self.loss.ignore_index, target.dtype
                    ),
                ]
            ),
        )

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
            f"Free some space. {self._how_to_resume()}"
        )

    def _how_to_resume(self) -> str:
        return self.folder.how_to_resume(self.config.data)

    def _wait(self) -> None:
        if self.args.world_size > 1:
            torch.distributed.barrier()


def _refuse_several(flag: str, processes: int) -> None:
    """Raise OptionError unless one process trains on one device, before the baselines' minutes."""
    if processes > 1:
        raise OptionError(
            f"{flag} is for one process on one device, and there are {processes}. Drop it, "
            "or train with one."
        )
