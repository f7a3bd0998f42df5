"""The pretraining job: a table of texts becomes an encoder that knows them.

The table is read once into token ids on the disk; some documents are held out; the encoder is
trained under its objective, evaluated as it goes, and saved. One process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from contextlib import nullcontext
from typing import Any

import torch
from rich.console import Console
from transformers.trainer_callback import PrinterCallback

from longarc.data.augment import TextViews, special_ids
from longarc.data.columns import Columns, choose_columns
from longarc.data.table import Table, open_table
from longarc.data.token_file import TokenFile, open_token_file, write_token_file
from longarc.dynamics.collapse_detector import CollapseAlarm
from longarc.errors import Interrupted, LongarcError, ModelError, OptionError, RunError
from longarc.files import whole_folder, write_json
from longarc.hold import ASIDE, held, restored
from longarc.models.loading import usable_length
from longarc.models.recurrent.scratch import starting_tokenizer
from longarc.models.sentence_encoder import save_encoder
from longarc.stopping import stoppable
from longarc.training.arguments import common_arguments
from longarc.training.callbacks import (
    Bar,
    CheckpointClock,
    FiniteLoss,
    Interruption,
    RunLog,
    train_interruptibly,
)
from longarc.training.checkpoint import last_checkpoint
from longarc.training.disk_space import CHECKPOINTS, is_full_disk, refuse_full_disk
from longarc.training.prediction import bfloat16_is_fast, chosen_device
from longarc.training.pretraining.config import PretrainConfig
from longarc.training.pretraining.documents import (
    Drawn,
    MaskedBatches,
    Split,
    TwoViews,
    split_documents,
)
from longarc.training.pretraining.evaluation import HeldOut
from longarc.training.pretraining.folder import PretrainFolder
from longarc.training.pretraining.learners import build_learner, build_views, changes_tokens
from longarc.training.pretraining.trainer import WATCH, PretrainTrainer
from longarc.training.pretraining.watch import TargetUpdate, Watch
from longarc.training.progress import Advance, Reporter
from longarc.training.run_folder import create_run_folder, describe_origin, refuse_existing


def pretrain(
    config: PretrainConfig, *, data: Any = None, console: Console | None = None
) -> PretrainFolder:
    """Run the whole job and return the finished folder.

    A run whose codes collapse is stopped: its folder then has metrics and log, and no model.

    Args:
        config: see :class:`~longarc.training.pretraining.config.PretrainConfig`.
        data: a table in memory instead of ``config.data``.
        console: where to say what happens; None for silence.

    Raises:
        LongarcError: bad input or options, before anything is left behind; Interrupted after
            Ctrl-C or SIGTERM.
    """
    config.validate()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            "longarc pretrain runs in one process: contrastive batches are not gathered over "
            "several. Start it without torchrun; --chunk fits large batches into one GPU."
        )
    refuse_pretraining(config)
    with stoppable(), held(config.run):
        return _Job(config, Reporter(console), config.data if data is None else data).run()


def refuse_pretraining(config: PretrainConfig) -> None:
    """Raise RunError when ``--out`` is taken, or the run to resume has ended or collapsed."""
    if config.resume and PretrainFolder(config.run).collapsed:
        raise RunError(
            f"the run in {config.run} was stopped because its codes collapsed: nothing is left to "
            "resume. Start anew with --overwrite and other options."
        )
    refuse_existing(config, PretrainFolder)


class _Job:
    """One run; its methods are the stages, in order."""

    def __init__(self, config: PretrainConfig, reporter: Reporter, data: Any):
        self.reporter = reporter
        self.device = chosen_device(config.device)
        bf16 = config.precision == "bf16" or (
            config.precision == "auto" and bfloat16_is_fast(self.device)
        )
        self.folder = PretrainFolder(config.run)
        if config.resume and config.text is None:  # guessed then; a guess now could differ
            config = dataclasses.replace(config, text=self.folder.config().text)
        self.table, self.columns = self._open(config, data)
        self.config = dataclasses.replace(
            config, precision="bf16" if bf16 else "fp32", text=self.columns.text
        )
        self.tokenizer = starting_tokenizer(config.model, config.model_options)
        self._check_length()
        self.views = build_views(self.config, self.tokenizer)
        torch.manual_seed(config.seed)
        self.learner = build_learner(self.config, self.tokenizer)

    def run(self) -> PretrainFolder:
        try:
            # Whether the table will do is known when all of it has been read.
            if self.config.resume:  # of a process that was killed before it knew
                shutil.rmtree(self.folder.path / ASIDE, ignore_errors=True)
            with nullcontext() if self.config.resume else restored(self.folder.path):
                self._open_folder()
                with self.reporter.timed("prepare"):
                    self.documents = self._read()
                    self.split = self._split()
            watch = self._train()
            self._finish(watch)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"the {self.device.type} ran out of memory. Use a smaller --max-length or "
                "--batch-size, or --chunk with as many documents at a time as fit."
            ) from error
        except KeyboardInterrupt:
            raise Interrupted(f"stopped. {self._how_to_resume()}") from None
        except LongarcError:
            raise
        except Exception as error:
            if is_full_disk(error):
                raise RunError(
                    f"no space left on the disk of {self.folder.path}. Free some space. "
                    f"{self._how_to_resume()}"
                ) from error
            raise
        return self.folder

    # Stages

    def _open(self, config: PretrainConfig, data: Any) -> tuple[Table, Columns]:
        table = open_table(data, to_train=True)
        for note in table.notes:
            self.reporter.say(note)
        columns = choose_columns(table, config.text, config.label, need_label=False)
        for sentence in columns.guessed:
            self.reporter.say(sentence)
        return table, columns

    def _check_length(self) -> None:
        allowed = usable_length(self.config.model)
        if allowed is not None and self.config.max_length > allowed:
            raise OptionError(
                f"--max-length is {self.config.max_length}, but {self.config.model} has positions "
                f"for {allowed} tokens. Use --max-length {allowed} at most."
            )

    def _open_folder(self) -> None:
        parameters = sum(p.numel() for p in self.learner.parameters())
        refuse_full_disk(self.config.run, parameters, 1 + CHECKPOINTS)
        kept = self.folder.provenance().get("data_sha256") if self.config.resume else None
        origin = describe_origin(
            kept or "",
            encoder=type(self.learner.pooled.encoder).__name__,
            parameters=sum(p.numel() for p in self.learner.pooled.parameters()),
            processes=1,
        )
        create_run_folder(self.config, origin, PretrainFolder)
        self.folder.checkpoints.mkdir(exist_ok=True)
        self.reporter.say(
            f"{self.config.model} ({origin['parameters'] / 1e6:.1f} M parameters), "
            f"{self.config.objective}, {self.config.max_length} tokens, {self.config.precision} on "
            f"{self.device.type}"
        )

    def _read(self) -> TokenFile:
        """The documents as token ids; a resumed run may have them already."""
        if self.folder.documents.is_dir():
            return open_token_file(self.folder.documents)
        with self.reporter.task("reading the documents", self.config.limit) as advance:
            found = write_token_file(
                self.folder.documents,
                self.table,
                self.columns,
                self.tokenizer,
                limit=self.config.limit,
                advance=advance,
            )
        self.folder.settle(provenance=self.folder.provenance() | {"data_sha256": found.data_sha256})
        empty = f", {found.about['empty']:,} empty ones left out" if found.about["empty"] else ""
        self.reporter.say(f"{len(found):,} documents{empty}, {found.about['tokens']:,} tokens")
        return found

    def _split(self) -> Split:
        split = split_documents(
            self.documents,
            held_out=self.config.held_out,
            labelled=self.config.labelled,
            batch=self.config.batch_size,
            seed=self.config.seed,
        )
        labelled = f", {len(split.labelled):,} with labels for the probe" * bool(
            len(split.labelled)
        )
        self.reporter.say(
            f"{len(split.train):,} to train on, {len(split.held_out):,} held out{labelled}"
        )
        return split

    def _train(self) -> Watch:
        from transformers import TrainingArguments

        masked = self.config.objective == "mlm"
        collator = MaskedBatches if masked else TwoViews
        steps = len(self.split.train) // self.config.batch_size * self.config.epochs
        args = TrainingArguments(
            **common_arguments(self.config, self.device),
            learning_rate=self.config.rate,
            dataloader_drop_last=True,  # a last batch of one has nothing to compare
            logging_steps=max(1, round(steps / 200)),
        )
        args._n_gpu = min(args.n_gpu, 1)  # no DataParallel: it would split the batch
        log, interruption = RunLog(self.folder.log_file), Interruption()
        watch = Watch(
            self._held_out(),
            log,
            evaluations=self.config.evaluations,
            detect=not masked,
            stop=self.config.stop_on_collapse,
            say=self.reporter.say,
        )
        checkpoint = last_checkpoint(self.folder.checkpoints) if self.config.resume else None
        if checkpoint is not None:
            seen = (checkpoint / WATCH).read_text(encoding="utf-8")
            watch.detector.load_state_dict(json.loads(seen))
        with self.reporter.timed("training"), self.reporter.task("pretraining") as advance:
            trainer = PretrainTrainer(
                self.learner,
                args,
                train_dataset=Drawn(self.documents, self.split.train, self.views),
                data_collator=collator(self.tokenizer, self.config.max_length),
                processing_class=self.tokenizer,
                callbacks=self._callbacks(log, interruption, watch, advance),
                config=self.config,
                watched=watch.state,
            )
            trainer.remove_callback(PrinterCallback)
            if self.config.epochs:
                resumed = str(checkpoint) if checkpoint else None
                try:
                    train_interruptibly(trainer, interruption, resume_from_checkpoint=resumed)
                except Interrupted as stopped:
                    raise Interrupted(f"{stopped} {self._how_to_resume()}") from None
        self.steps = trainer.state.global_step
        return watch

    def _callbacks(
        self, log: RunLog, interruption: Interruption, watch: Watch, advance: Advance
    ) -> list[Any]:
        clock = CheckpointClock(self.config.checkpoint_minutes)
        # The target moves before the encoder is looked at, and all of it before it is saved.
        return [
            FiniteLoss(), log, TargetUpdate(self.learner), watch, clock, interruption, Bar(advance)
        ]  # fmt: skip

    def _held_out(self) -> HeldOut:
        views: Any = self.views
        if self.config.objective == "mlm" or not changes_tokens(self.config):
            views = TextViews(
                max_tokens=self.config.max_length,
                special=special_ids(self.tokenizer),
                seed=self.config.seed,
            )
        return HeldOut(
            self.learner.pooled.to(self.device),
            self.documents,
            self.split,
            views,
            self.tokenizer,
            max_length=self.config.max_length,
            bf16=self.config.precision == "bf16",
            batch_size=self.config.batch_size,
        )

    def _finish(self, watch: Watch) -> None:
        """Evaluate and save; metrics come last, and say what a collapsed run has instead."""
        collapsed = watch.alarm if self.config.stop_on_collapse else None
        with self.reporter.timed("evaluation"), self.reporter.task("evaluating"):
            end = watch.evaluate(self.steps)
        late = None
        if watch.alarm is None and watch.detector.low_since is not None:
            late = _late(watch.detector.low_since, self.steps)
            self.reporter.say(f"warning: {late['message']}")
        if collapsed is None:
            with whole_folder(self.folder.model) as temporary:
                save_encoder(
                    temporary,
                    self.learner.pooled.encoder,
                    self.tokenizer,
                    pooling=self.config.pooling,
                    max_length=self.config.max_length,
                )
        lengths = self.documents.lengths
        metrics = {
            "documents": {
                "train": len(self.split.train), "held_out": len(self.split.held_out),
                "labelled": len(self.split.labelled), "empty": self.documents.about["empty"],
                "tokens": self.documents.about["tokens"],
                "longer": float((lengths > self.config.max_length).mean()),
            },
            "classes": len(self.documents.names),
            "steps": self.steps,
            "start": self._start() or end,
            "end": end,
            "collapse": _described(watch.alarm),
            "late_collapse": late,
            "seconds": {k: round(v, 1) for k, v in self.reporter.seconds.items()},
        }  # fmt: skip
        write_json(self.folder.metrics_file, metrics)
        if not self.config.keep_checkpoints:
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
            shutil.rmtree(self.folder.documents, ignore_errors=True)

    def _start(self) -> dict[str, Any] | None:
        """The figures of the encoder as it was, which an interrupted run has in its log alone."""
        for line in self.folder.log_file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["event"] == "evaluation" and record["step"] == 0:
                return {k: v for k, v in record.items() if k not in ("event", "step", "time")}
        return None

    def _how_to_resume(self) -> str:
        return self.folder.how_to_resume(self.config.data)


def _late(onset: int, end: int) -> dict[str, Any]:
    """What to say of codes that were low at the end of a training, without an alarm."""
    message = (
        f"The codes were near collapse from step {onset} to the end, {end}, too late for an "
        "alarm. Look at the report's curves before the encoder is used."
    )
    return {"onset": onset, "message": message}


def _described(alarm: CollapseAlarm | None) -> dict[str, Any] | None:
    return None if alarm is None else dataclasses.asdict(alarm) | {"message": str(alarm)}
