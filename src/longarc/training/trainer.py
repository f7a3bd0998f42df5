"""transformers' Trainer with longarc's losses, exact accumulation and pickle-free checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers.trainer_utils import rotate_checkpoints

from longarc.dynamics.replay import buffers_kept
from longarc.models.head import final_linear
from longarc.training.batches import LengthGroupedSampler, SeededSampler
from longarc.training.checkpoint import (
    SCALER,
    load_gathered,
    load_optimizer,
    load_random_state,
    publish,
    save_gathered,
    save_optimizer,
    save_random_state,
)
from longarc.training.parameters import parameter_groups
from longarc.training.recording.path_recorder import check_recordable
from longarc.training.regularized_step import check_with_regularizers, regularized_step

if TYPE_CHECKING:
    import numpy as np

    from longarc.objectives.losses.contract import Loss
    from longarc.objectives.regularizers.contract import Regularizer


class Trainer(transformers.Trainer):
    """A drop-in ``transformers.Trainer`` that knows long tails and long documents.

    What differs from transformers':

    - ``loss``: any longarc loss. Accumulated batches, unequal batches and data-parallel processes
      give the same update as one big batch: each step divides the sum of the per-example losses by
      the denominator of all its batches (transformers averages means, or forgets to divide).
      Only where an epoch's documents do not fill the last step of several processes does
      accelerate repeat a few of them, so that each process has as many batches.
    - ``regularizers``: any of longarc's, in any order, for the whole step in the same way.
    - ``layer_decay``, ``embedding_factor`` and ``head_learning_rate``: see
      :func:`~longarc.training.parameters.parameter_groups`.
    - With ``args.train_sampling_strategy="group_by_length"`` and a training set that has
      ``lengths``, the order is a function of seed and epoch alone.
    - With ``args.eval_on_start`` the start takes part in the choice of the best checkpoint, so a
      head that starts from a linear probe is never traded for something worse.
    - Checkpoints hold safetensors and JSON, and appear whole or not at all.

    Everything else is transformers': arguments, callbacks, devices, ``torchrun``.

    Args:
        loss: what to minimise; None leaves the loss to the model.
        regularizers: what a step does besides, from the innermost to the outermost. They need a
            ``loss``; the loss that is logged stays the plain one. Perturbations of embeddings leave
            [CLS], [SEP] and the like alone where a ``processing_class`` tells their ids.
        layer_decay: factor on the step size for each layer further from the head; 1 for none.
        embedding_factor: one more factor on the step size of the embeddings; 1 for none.
        head_learning_rate: peak step size of the head; None for ``args.learning_rate``.
        sampling_weights: (N,) the probability with which each training document is drawn, with
            replacement, N of them an epoch; None visits each once an epoch.

    Example (see ``docs/training.md`` for one that runs)::

        trainer = longarc.Trainer(model, args, train_dataset=documents,
                                  loss=longarc.LogitAdjustedLoss(class_counts))
        trainer.train()
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: transformers.TrainingArguments | None = None,
        *positional: Any,
        loss: Loss | None = None,
        regularizers: Sequence[Regularizer] = (),
        layer_decay: float = 1.0,
        embedding_factor: float = 1.0,
        head_learning_rate: float | None = None,
        sampling_weights: np.ndarray | None = None,
        **keywords: Any,
    ):
        super().__init__(model, args, *positional, **keywords)  # pyright: ignore[reportArgumentType]
        self.loss = loss.to(self.args.device) if loss is not None else None
        self.regularizers = list(regularizers)
        check_with_regularizers(self)
        self.layer_decay = layer_decay
        self.embedding_factor = embedding_factor
        self.head_learning_rate = head_learning_rate
        self.sampling_weights = sampling_weights
        # Ours divides by the denominator of the whole step; a model's own mean is divided by the
        # number of batches, which transformers omits for heads that accept **kwargs.
        self.loss_is_scaled_for_ga = loss is not None
        self._sampler: SeededSampler | None = None
        self._update: Sequence[dict[str, Any]] = ()
        self._denominator: Tensor | int | None = None

    def train(self, *positional: Any, **keywords: Any) -> Any:
        """Train as transformers' does; refuse first what a path recorder among us cannot record."""
        check_recordable(self)
        return super().train(*positional, **keywords)

    # The loss of a step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The share of this batch in the step's mean loss.

        ``num_items_in_batch`` is the loss's denominator over all batches and processes of the step
        (without it: of this batch).
        """
        if self.loss is None or "labels" not in inputs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        more = self._class_vectors(model)
        if num_items_in_batch is None:
            loss = self.loss(logits, labels, **more)
        else:
            # Data-parallel processes average their gradients, hence the factor.
            total = self.loss(logits, labels, **more, reduction="sum")
            loss = total * self.args.world_size / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _class_vectors(self, model: nn.Module) -> dict[str, Tensor]:
        """What a loss needs of the model besides its logits."""
        if self.loss is None or not self.loss.uses_class_vectors:
            return {}
        return {"class_vectors": final_linear(self.accelerator.unwrap_model(model)).weight}

    def get_batch_samples(self, *args: Any, **keywords: Any) -> Any:
        """Fetch the batches of the next update, and say how far the training is."""
        if self.loss is not None:
            # Before the denominator is taken, which may depend on it.
            done = self.state.global_step / self.state.max_steps
            for part in (self.loss, *self.regularizers):
                part.set_progress(done)
        self._update, self._denominator = super().get_batch_samples(*args, **keywords)
        return self._update, self._denominator

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Differentiate one batch; with regularizers all batches of the update, at its last."""
        if not self.regularizers:
            return super().training_step(model, inputs, num_items_in_batch)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        model.train()
        optimizer: Any = self.optimizer
        if callable(getattr(optimizer, "train", None)):  # schedule-free ones have two modes
            optimizer.train()
        batches = [cast(dict[str, Any], self._prepare_inputs(batch)) for batch in self._update]
        return regularized_step(
            self, model, batches, num_items_in_batch, self._class_vectors(model)
        )

    def over_processes(self, value: Tensor) -> Tensor:
        """The sum of a scalar over all processes."""
        if self.args.world_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value

    @torch.no_grad()
    def update_loss(self) -> Tensor:
        """The loss of the update's batches, as training computes it, at the weights as they are.

        For callbacks, which see neither loss nor inputs. Several processes have the mean over their
        own batches each.
        """
        return self._loss_of(self._update, self._denominator)

    @torch.no_grad()
    def loss_of(self, batches: Sequence[dict[str, Any]]) -> Tensor:
        """The same for other batches, as collated, as if they were those of one update."""
        return self._loss_of(batches, self._get_num_items_in_batch(batches, self.args.device))

    def _loss_of(
        self, batches: Sequence[dict[str, Any]], denominator: Tensor | int | None
    ) -> Tensor:
        model = cast(nn.Module, self.model)
        total = torch.zeros((), device=self.args.device)
        with buffers_kept(model):
            for batch in batches:
                inputs = cast(dict[str, Any], self._prepare_inputs(batch))
                with self.compute_loss_context_manager():
                    total += self.compute_loss(model, inputs, num_items_in_batch=denominator)
        return total if denominator is not None else total / max(len(batches), 1)

    def _get_num_items_in_batch(
        self, batch_samples: Sequence[dict[str, Any]], device: torch.device
    ) -> Tensor | int | None:
        if self.loss is None or not batch_samples or "labels" not in batch_samples[0]:
            return None
        classes = self.accelerator.unwrap_model(cast(nn.Module, self.model)).config.num_labels
        parts = [self.loss.denominator(b["labels"].to(device), classes) for b in batch_samples]
        count = self.over_processes(torch.stack(parts).sum())
        return count.clamp(min=torch.finfo(torch.float32).tiny)

    # Order and step sizes

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        lengths = getattr(dataset, "lengths", None)
        if self.args.train_sampling_strategy != "group_by_length":
            lengths = None
        weights = self.sampling_weights
        if lengths is None and weights is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if lengths is not None:
            update = self.args.train_batch_size * self.args.gradient_accumulation_steps
            batch = update * self.args.world_size
            self._sampler = LengthGroupedSampler(lengths, batch, seed, weights)
        else:
            self._sampler = SeededSampler(len(cast(Sized, dataset)), seed, weights)
        return self._sampler

    def _run_epoch(self, *args: Any, **keywords: Any) -> None:
        if self._stopped_early():
            return  # a run that was interrupted after its last step has none left to make
        if self._sampler is not None:
            self._sampler.set_epoch(keywords["epoch"])
        super()._run_epoch(*args, **keywords)

    def _stopped_early(self) -> bool:
        """Whether early stopping's patience was used up before this run was resumed."""
        return any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, transformers.EarlyStoppingCallback)
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or what ``args.optim`` names, with a step size for each depth."""
        plain = self.layer_decay == self.embedding_factor == 1 and self.head_learning_rate is None
        if self.optimizer is not None or plain:
            return super().create_optimizer(model)
        model = cast(nn.Module, self.model if model is None else model)
        optimizer, keywords = self.get_optimizer_cls_and_kwargs(self.args, cast(Any, model))
        groups = parameter_groups(
            model,
            learning_rate=self.args.learning_rate,
            layer_decay=self.layer_decay,
            embedding_factor=self.embedding_factor,
            head_learning_rate=self.head_learning_rate,
            weight_decay=self.args.weight_decay,
        )
        self.optimizer = optimizer(groups, **keywords)
        return self.optimizer

    # Checkpoints

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        at_start = skip_scheduler  # transformers says so only of the evaluation on start
        if at_start and self.state.log_history:
            # A resumed run was evaluated already; once more would use up early stopping's patience.
            return {}
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=skip_scheduler)
        if at_start and self.args.load_best_model_at_end:
            self._determine_best_metric(metrics=metrics, trial=trial)
            self._save_checkpoint(cast(nn.Module, self.model), trial)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial))
        place = folder / f"checkpoint-{self.state.global_step}"
        unfinished = folder / f".{place.name}-unfinished"
        if self.args.should_save:
            for left in folder.glob(".checkpoint-*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self._wait()
        try:
            self.save_model(str(unfinished), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(unfinished))
                self._save_scaler(str(unfinished))
                self._save_rng_state(str(unfinished))
                if self.loss is not None:
                    save_gathered(unfinished, self.args.process_index, self.loss)
            self._wait()
            best = folder / f"checkpoint-{self.state.best_global_step}"
            if best == place or best.is_dir():
                self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self._save_state(unfinished)
                publish(unfinished, place)
                rotate_checkpoints(
                    output_dir=str(folder),
                    save_total_limit=self.args.save_total_limit,
                    best_model_checkpoint=self.state.best_model_checkpoint,
                )
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        self._wait()

    def _save_state(self, folder: Path) -> None:
        from transformers.trainer_callback import ExportableState

        kept = cast(dict[str, Any], self.state.stateful_callbacks)
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                kept[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = output_dir or self.args.output_dir
        if not (self.args.should_save and folder):
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(model, transformers.PreTrainedModel):
            model.save_pretrained(folder, state_dict=state_dict)
        else:
            save_model(model, str(Path(folder) / "model.safetensors"))
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            save_optimizer(Path(output_dir), self.optimizer, self.lr_scheduler)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
        if self.loss is not None and checkpoint is not None:
            load_gathered(Path(checkpoint), self.args.process_index, self.loss)

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)  # float16 alone has one
        if scaler is not None and self.args.should_save:
            text = json.dumps(scaler.state_dict())
            (Path(output_dir) / SCALER).write_text(text, encoding="utf-8")

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and checkpoint and (path := Path(checkpoint) / SCALER).is_file():
            scaler.load_state_dict(json.loads(path.read_text(encoding="utf-8")))

    def _save_rng_state(self, output_dir: str) -> None:
        save_random_state(Path(output_dir), self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_state(Path(checkpoint), self.args.process_index)

    def _wait(self) -> None:
        if self.args.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.barrier()


def is_main_process() -> bool:
    """Whether this process writes the files and talks to the user."""
    return int(os.environ.get("RANK", "0")) == 0
