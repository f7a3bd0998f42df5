"""The callback that records a training, step by step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longarc.errors import ModelError, OptionError
from longarc.options import check_number
from longarc.training.disk_space import free_space
from longarc.training.recording.recorded_path import (
    FORMAT,
    DiskPlan,
    PathWriter,
    RecordedBatch,
    RecordedPath,
    plan_disk,
)
from longarc.training.recording.replay import Drift, Replay, fingerprint, generator_bytes, logits_of
from longarc.version import __version__

if TYPE_CHECKING:
    from longarc.training.trainer import Trainer

OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""What can be explained: their update is linear in the gradients, given the second moments."""


class PathRecorder(TrainerCallback):
    """Record the path of a training, from its first weights to its last.

    A callback for any ``transformers.Trainer``, longarc's included, with any loss that is computed
    from the model's logits. For each batch it keeps which documents were in it, the gradient of the
    loss with respect to the logits, and the random state that dropout drew from; every ~√T of T
    steps also the trained parameters with the optimizer's state. From that
    :class:`~longarc.training.recording.replay.Replay` repeats every step, and
    :func:`longarc.attribution.sweep.explain` says what each document did (docs/explanations.md).
    Training itself is not changed by a bit.

    A resumed training goes on with its path.

    Args:
        folder: where to write; None for ``path/`` in ``args.output_dir``.
        budget: gigabytes the path may take. Within it, snapshots are kept every √T steps or as
            often as it allows; fewer of them make an explanation use more temporary disk.
        say: is told beforehand how much disk it will be; None for Python's log.

    Raises:
        OptionError: on the start of training, what cannot be replayed: an optimizer other than
            torch's SGD, Adam and AdamW; several processes or GPUs; float16; regularizers but
            flooding of each document's loss; a data set without indices; a budget that is too
            small.

    >>> recorder = PathRecorder("runs/tickets/path", budget=2.0)
    >>> recorder.budget
    2.0
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        budget: float = 10.0,
        say: Callable[[str], Any] | None = None,
    ):
        self.folder = None if folder is None else Path(folder).expanduser()
        self.budget = check_number("budget", budget)
        self.say = say or logging.getLogger(__name__).info
        self.plan: DiskPlan | None = None
        self.seconds = 0.0
        self._hooks: list[Any] = []

    # The life of a training

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Refuse what cannot be replayed, plan the disk, and begin or go on."""
        started = time.perf_counter()
        self._let_go()
        self.model = cast(nn.Module, parts["model"])
        self.device = args.device
        self.optimizer = getattr(parts["optimizer"], "optimizer", parts["optimizer"])
        loader = parts["train_dataloader"]
        self.loader: Any = getattr(loader, "base_dataloader", loader)
        _refuse(args, self.model, self.optimizer, self.loader)
        self._names = _trained_names(self.model, self.optimizer)
        # What a resumed training skips of its first epoch.
        updates = max(-(-len(self.loader) // args.gradient_accumulation_steps), 1)
        skipped = state.global_step % updates * args.gradient_accumulation_steps
        self.skipped = 0 if args.ignore_data_skip else skipped
        folder = self.folder or Path(cast(str, args.output_dir)) / "path"
        self.plan = self._plan(args, state)
        about = {
            "format": FORMAT,
            "longarc": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": args.device.type,
            "steps": state.max_steps,
            "every": self.plan.every,
            "documents": len(self.loader.dataset),
            "autocast": "bfloat16" if args.bf16 else None,
            "max_grad_norm": args.max_grad_norm or 0.0,
            "optimizer": type(self.optimizer).__name__,
            "groups": [
                {
                    "parameters": [self._names[p] for p in group["params"] if p in self._names],
                    "options": _options(group),
                }
                for group in self.optimizer.param_groups
            ],
            "kept": None,
        }
        self._refuse_full_disk(folder)
        self.writer = PathWriter(folder, about)
        if state.global_step:
            self.writer.go_on(state.global_step)
        else:
            self.writer.create(self._constants())
        self._watch()
        self.say(
            f"recording the training path in {folder}: up to {self.plan.bytes / 1e9:.2f} GB "
            f"({self.plan.snapshots} snapshots, one every {self.plan.every} steps)"
        )
        self.seconds = time.perf_counter() - started

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the batches anew."""
        self._next = self.skipped
        self.skipped = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep a snapshot where one is due; no batch of this update has been seen yet."""
        self._passes: list[_Pass] = []
        self._batches = 1
        self.step = state.global_step
        if self.step % self.writer.every == 0:
            self._snapshot(self.step)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the batches whose update is still to come."""
        self._batches += 1

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Keep the batches of this update."""
        started = time.perf_counter()
        if len(self._passes) != self._batches:
            self._stop(OptionError(_PASSES.format(step=self.step)))
        options = [_options(group) for group in self.optimizer.param_groups]
        if options != [group["options"] for group in self.writer.about["groups"]]:
            self._stop(
                OptionError(
                    f"the optimizer's options changed in step {self.step}, and not the learning "
                    "rate alone. A path cannot be recorded with such a schedule; use one of the "
                    "learning rate."
                )
            )
        rates = tuple(float(group["lr"]) for group in self.optimizer.param_groups)
        for done in self._passes:
            if done.gradient is None:
                self._stop(
                    ModelError(
                        f"the loss of step {self.step} does not depend on the model's logits, so "
                        "nothing can be recorded. Expected a loss computed from outputs.logits."
                    )
                )
            self.writer.rows.append(done.row(self.step, rates))
        self.seconds += time.perf_counter() - started

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Be on the disk before a checkpoint is, and keep the end."""
        self._next += self._batches
        if state.global_step >= state.max_steps:
            self.writer.flush()
            self._snapshot(state.global_step)
        elif control.should_save or control.should_training_stop:
            self.writer.flush()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Be on the disk before a checkpoint is."""
        self.writer.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note whose weights are handed over."""
        self._let_go()
        best = args.load_best_model_at_end and state.best_model_checkpoint is not None
        self.writer.flush()
        self.writer.save_about(kept=state.best_global_step if best else state.global_step)

    def verify(self) -> list[Drift]:
        """Replay the recorded training and compare; see :meth:`Replay.verify`.

        On the same machine and with as many threads, every drift should be exactly 0.
        """
        return Replay(
            RecordedPath(self.writer.folder),
            self.model,
            self.loader.dataset,
            self.loader.collate_fn,
        ).verify()

    # What is watched

    def _watch(self) -> None:
        """Note the batches that are drawn, and the passes through the model."""
        self._drawn = _DrawnBatches(self.loader.batch_sampler)
        # DataLoader forbids this to protect iterators that have begun; here none has.
        object.__setattr__(self.loader, "batch_sampler", self._drawn)
        self._hooks = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after),
        ]

    def _let_go(self) -> None:
        for handle in self._hooks:
            handle.remove()
        if self._hooks:
            object.__setattr__(self.loader, "batch_sampler", self._drawn.inner)
        self._hooks = []

    def _stop(self, error: Exception) -> None:
        self._let_go()
        raise error

    def _before(self, model: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        started = time.perf_counter()
        if len(self._passes) >= self._batches:
            self._stop(OptionError(_PASSES.format(step=self.step)))
        documents = self._drawn.batches[self._next + len(self._passes)]
        self._passes.append(
            _Pass(documents, fingerprint(inputs, keywords), *generator_bytes(self.device))
        )
        self.seconds += time.perf_counter() - started

    def _after(self, model: nn.Module, inputs: tuple, outputs: Any) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        logits, done = logits_of(outputs), self._passes[-1]
        if len(done.documents) != len(logits):
            self._stop(
                ModelError(
                    f"a batch of {len(done.documents)} documents gave logits of shape "
                    f"{tuple(logits.shape)}; expected a row for each document."
                )
            )
        logits.register_hook(done.keep)

    # What is written

    def _snapshot(self, step: int) -> None:
        started = time.perf_counter()
        tensors: dict[str, Tensor] = {}
        for parameter, name in self._names.items():
            tensors[f"parameter.{name}"] = parameter
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"state.{name}.{key}"] = value
        self.writer.snapshot(step, tensors)
        self.seconds += time.perf_counter() - started

    def _constants(self) -> dict[str, Tensor]:
        trained = set(self._names.values())
        kept = {n: p for n, p in self.model.named_parameters() if n not in trained}
        return kept | dict(self.model.named_buffers())

    def _plan(self, args: TrainingArguments, state: TrainerState) -> DiskPlan:
        trained = sum(_bytes(parameter) for parameter in self._names)
        options = self.optimizer.param_groups[0]
        if isinstance(self.optimizer, torch.optim.SGD):
            moments = 1 if options["momentum"] else 0
        else:
            moments = 3 if options["amsgrad"] else 2
        classes = getattr(getattr(self.model, "config", None), "num_labels", 2)
        batch = 8 * args.train_batch_size * (classes + 1) + 256
        batch += sum(map(len, generator_bytes(self.device)))
        return plan_disk(
            steps=state.max_steps,
            snapshot=trained * (1 + moments),
            constants=sum(map(_bytes, self._constants().values())),
            row=batch * args.gradient_accumulation_steps,
            budget=1e9 * self.budget,
        )

    def _refuse_full_disk(self, folder: Path) -> None:
        place, free = free_space(folder)
        needed = cast(DiskPlan, self.plan).bytes
        there = sum(f.stat().st_size for f in folder.glob("*") if f.is_file())  # to be replaced
        free += there
        if free < needed:
            raise OptionError(
                f"the training path takes up to {needed / 1e9:.2f} GB, and {place} has "
                f"{free / 1e9:.2f} GB free. Free some, lower the path budget, or name another "
                "folder."
            )


@dataclass
class _Pass:
    """One batch on its way through the model and back."""

    documents: tuple[int, ...]
    inputs: str
    random: bytes
    device_random: bytes
    gradient: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach().to("cpu", copy=True)

    def row(self, step: int, rates: tuple[float, ...]) -> RecordedBatch:
        gradient = cast(Tensor, self.gradient)
        return RecordedBatch(
            step, rates, self.documents, gradient, self.inputs, self.random, self.device_random
        )


class _DrawnBatches(Sampler[list[int]]):
    """A batch sampler that remembers what it has drawn since it was last begun."""

    def __init__(self, inner: Any):
        self.inner = inner
        self.batches: list[tuple[int, ...]] = []

    def __iter__(self) -> Iterator[list[int]]:
        self.batches = []
        for batch in self.inner:
            batch = list(batch)
            self.batches.append(tuple(int(i) for i in batch))
            yield batch

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is being unpickled for a worker
            raise AttributeError(name)
        return getattr(self.inner, name)


_PASSES = (
    "step {step} does not pass each of its batches through the model once, and a path can be "
    "recorded only where it does. Train without regularizers and the like, or without a recorder."
)


def check_recordable(trainer: Trainer) -> None:
    """Raise OptionError where longarc's trainer has a recorder and something it cannot record."""
    if not any(isinstance(c, PathRecorder) for c in trainer.callback_handler.callbacks):
        return
    if beyond := [r for r in trainer.regularizers if not r.sums_over_documents]:
        names = ", ".join(type(regularizer).__name__ for regularizer in beyond)
        raise OptionError(
            f"a training path cannot be recorded with {names}: the step is then no plain sum over "
            "the documents of gradients at the present weights, or passes them through the model "
            "several times. Train without regularizers or with flooding of each document's loss "
            "(per_example), or without a recorder."
        )
    if trainer.loss is not None and trainer.loss.uses_class_vectors:
        raise OptionError(
            f"a training path cannot be recorded with {type(trainer.loss).__name__}: it reaches "
            "the head's weights past the logits. Use another loss, such as LogitAdjustedLoss, or "
            "train without a recorder."
        )


def _refuse(args: TrainingArguments, model: nn.Module, optimizer: Any, loader: Any) -> None:
    """Raise OptionError for what a replay could not repeat."""
    reasons = {
        f"{args.world_size * max(1, args.n_gpu)} processes or GPUs": (
            args.world_size > 1 or args.n_gpu > 1
        ),
        "float16, whose gradients are scaled": args.fp16,
        "torch.compile": args.torch_compile,
        "noise on the embeddings (NEFTune)": bool(args.neftune_noise_alpha),
        "a data set without indices": isinstance(loader.dataset, IterableDataset),
        f"{type(optimizer).__name__}, not torch's SGD, Adam or AdamW": (
            type(optimizer) not in OPTIMIZERS
        ),
        "batch normalisation, which ties the documents of a batch together": any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()
        ),
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise OptionError(
            f"a training path cannot be recorded with {'; '.join(found)}. Change that, or train "
            "without a recorder."
        )


def _trained_names(model: nn.Module, optimizer: Any) -> dict[nn.Parameter, str]:
    """The optimizer's parameters that are trained, in its order, with their names in the model."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if strange := sum(p not in names for p in trained):
        raise OptionError(
            f"the optimizer has {strange} parameters that are not the model's. A path is of one "
            "model: give the optimizer its parameters alone."
        )
    return {p: names[p] for p in trained}


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group's options, as JSON has them; step sizes are kept for each step instead."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in group.items()}
    return {k: v for k, v in plain.items() if k not in ("params", "lr", "initial_lr")}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
