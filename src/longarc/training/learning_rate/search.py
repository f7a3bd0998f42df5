"""The search for a learning rate: the range is measured, rates in it are tried in short runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from longarc.dynamics.replay import replayed
from longarc.errors import ModelError
from longarc.training.arguments import UNUSED_OUTPUTS, count_steps
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.bootstrap import resampled_figures
from longarc.training.callbacks import Bar, FiniteLoss
from longarc.training.evaluation import validation_metrics
from longarc.training.learning_rate.bounds import (
    Range,
    best_of,
    learning_rate_range,
    next_rate,
    spread,
)
from longarc.training.learning_rate.options import CANDIDATES, FRACTION, check_search
from longarc.training.learning_rate.stability import LONGEST, SHORTEST, RisingWarmup
from longarc.training.prediction import decisions
from longarc.training.run_trainer import run_trainer, trial_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from longarc.objectives.losses.contract import Loss
    from longarc.training.config import TrainConfig
    from longarc.training.progress import Advance, Reporter
    from longarc.training.trainer import Trainer

FEWEST = 10
"""Steps of a short run, as far as the run has as many."""

OF_A_SHORT_RUN = ("macro_f1", "macro_f1_error", "accuracy", "loss")
"""Figures on the validation documents; the second is the standard error of the first."""

SAMPLE = 4
"""Batches that stability is measured on, at most; one for every 200 steps of the run."""


def search_learning_rate(
    model: PreTrainedModel,
    args: TrainingArguments,
    config: TrainConfig,
    *,
    train: Documents,
    validation: Documents,
    tokenizer: PreTrainedTokenizerBase,
    loss: Loss,
    sampling_weights: np.ndarray | None,
    reporter: Reporter,
    candidates: int = CANDIDATES,
    fraction: float = FRACTION,
) -> dict[str, Any]:
    """Find a learning rate for a run, and the reasons for it (``learning_rate`` of recipe.json).

    First the optimizer takes a warm-up whose rate rises until the model has lost what it knew, and
    the critical learning rate along its steps is measured by forward passes: that gives a range, by
    :func:`~longarc.training.learning_rate.bounds.learning_rate_range`. Then a few rates in it are
    tried, each in a run of ``fraction`` of the steps with the run's own schedule, seed, loss,
    regularizers and sampler, from the same weights. Recommended is the one with the best macro-F1
    on the validation documents; of those within two of its standard errors the one with the least
    loss. The start's figures are noted beside theirs: a training that is no better keeps the start.

    A short run favours larger rates than a long one does, as it has less time; the larger
    ``fraction``, the less so.

    Args:
        model: what the run starts from; left as it was.
        args: of the run; its learning rate is not looked at.
        config: of the run.
        train: documents to train on.
        validation: documents to choose by.
        tokenizer: for padding.
        loss: of the run.
        sampling_weights: as for :class:`~longarc.training.trainer.Trainer`.
        reporter: says what happens.
        candidates: rates tried.
        fraction: of the run's steps, in each short run.

    Raises:
        OptionError: less than 1 candidate, a fraction outside (0, 1].
        ModelError: every candidate diverged.
    """
    check_search(candidates, fraction)
    search = _Search(model, args, config, train, validation, tokenizer, loss, sampling_weights)
    return search.run(reporter, candidates, fraction)


class _Search:
    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        config: TrainConfig,
        train: Documents,
        validation: Documents,
        tokenizer: PreTrainedTokenizerBase,
        loss: Loss,
        sampling_weights: np.ndarray | None,
    ):
        self.model, self.args, self.config = model, args, config
        self.train, self.validation = train, validation
        self.tokenizer, self.loss, self.weights = tokenizer, loss, sampling_weights
        self.start = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        self.steps = count_steps(config, len(train))
        self.warmup = args.get_warmup_steps(self.steps)

    def run(self, reporter: Reporter, candidates: int, fraction: float) -> dict[str, Any]:
        """The record of the search."""
        short = min(self.steps, max(FEWEST, round(fraction * self.steps)))
        reporter.say(
            f"searching a learning rate: a rising warm-up, then {candidates} runs of {short} "
            f"steps; the training has {self.steps}"
        )
        with self._borrowed():
            start = _figures(self._trainer(learning_rate=0.0, max_steps=1))
        rising = self._measure(reporter)
        # A linear schedule's rates add up to its peak times half the steps, its warm-up included.
        found = learning_rate_range(
            rising.measured, rising.lost, self.steps / 2, ignorant=rising.ignorant
        )
        reporter.say(
            f"learning rates from {found.low:.1e} to {found.high:.1e} are worth trying, by "
            f"{rising.steps} steps of a warm-up"
        )
        rows: list[dict[str, Any]] = []
        rates = spread(found.low, found.high, min(3, candidates))
        while rates or len(rows) < candidates:
            rate = rates.pop(0) if rates else next_rate(rows, found.low, found.high)
            if rate is None:
                break
            name = f"candidate {len(rows) + 1} of {candidates}, {rate:.1e}"
            with reporter.task(name, short) as advance:
                rows.append(self._try(rate, short, advance))
            reporter.say(_sentence(rows[-1]))
        return self._record(start, rising, found, rows, short)

    def _measure(self, reporter: Reporter) -> RisingWarmup:
        """Take the rising warm-up."""
        sample = self._sample()
        ignorant = self._ignorant(sample)
        steps = min(max(self.warmup, SHORTEST), LONGEST)
        with self._borrowed():
            trainer = self._trainer(
                learning_rate=1e-4, lr_scheduler_type="constant", warmup_steps=0,
            )  # fmt: skip
            # One set of dropout masks, so that losses of different steps can be compared.
            loss = replayed(lambda: trainer.loss_of(sample), self.model.parameters())
            rising = RisingWarmup(loss, ignorant=ignorant, steps=steps)
            trainer.args.max_steps = rising.longest
            trainer.add_callback(rising)
            with reporter.task("measuring which steps are stable", steps) as advance:
                rising.advance = advance
                trainer.train()
        return rising

    def _sample(self) -> list[dict[str, Tensor]]:
        """Batches of training documents, drawn at random, of similar lengths each."""
        batch = self.args.per_device_train_batch_size
        number = batch * min(max(1, self.steps // 200), SAMPLE)
        targets = np.asarray(self.train.targets).reshape(len(self.train), -1)
        labelled = np.flatnonzero((targets != self.loss.ignore_index).any(1))
        drawn = np.random.default_rng(self.config.seed).permutation(labelled)[:number]
        drawn = drawn[np.argsort(-self.train.lengths[drawn], kind="stable")]
        parts = [drawn[i : i + batch] for i in range(0, len(drawn), batch)]
        collate = PaddedBatches(self.tokenizer, self.config.max_length)
        return [collate([self.train[int(i)] for i in part]) for part in parts]

    def _ignorant(self, sample: list[dict[str, Tensor]]) -> float:
        """The sample's loss for a model that says of each document how frequent the classes are."""
        target = torch.cat([batch["labels"] for batch in sample]).to(self.args.device)
        classes = self.model.config.num_labels or 2
        codes = torch.from_numpy(np.asarray(self.train.targets))
        if codes.ndim == 2:
            known = codes[(codes != self.loss.ignore_index).all(1)]
            share = ((known.float().sum(0) + 0.5) / (len(known) + 1)).logit()
        else:
            known = codes[codes >= 0]
            share = (torch.bincount(known, minlength=classes).float() + 0.5).log()
        more = {}
        if self.loss.uses_class_vectors:
            more = {"class_vectors": torch.zeros(classes, 1, device=target.device)}
        loss = self.loss.to(self.args.device)
        rows = (torch.zeros(classes), share)
        found = [
            loss(row.to(target.device).expand(len(target), -1), target, **more) for row in rows
        ]
        return min(float(value) for value in found)

    def _try(self, rate: float, steps: int, advance: Advance) -> dict[str, Any]:
        """A short run and its figures on the validation documents."""
        started = time.monotonic()
        figures: dict[str, float | None] = dict.fromkeys(OF_A_SHORT_RUN)
        with self._borrowed(), suppress(ModelError):  # its loss is no number
            trainer = self._trainer(FiniteLoss(), Bar(advance), learning_rate=rate, max_steps=steps)
            trainer.train()
            figures = _figures(trainer)
        seconds = round(time.monotonic() - started, 1)
        return {"learning_rate": rate, **figures, "steps": steps, "seconds": seconds}

    def _trainer(self, *callbacks: Any, **changes: Any) -> Trainer:
        """As the run's own, without its checkpoints, evaluations and log."""
        return run_trainer(
            self.model,
            trial_arguments(self.args, **changes),
            self.config,
            train=self.train,
            validation=self.validation,
            tokenizer=self.tokenizer,
            loss=self.loss,
            sampling_weights=self.weights,
            callbacks=callbacks,
            compute_metrics=_figures_with_error,
        )

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """The model for a training, afterwards as it was: weights, mode, and its own forward."""
        training, before = self.model.training, dict(vars(self.model))
        try:
            yield
        finally:
            for name in vars(self.model).keys() - before.keys():
                del vars(self.model)[name]  # accelerate's wrapping, once more for each training
            vars(self.model).update(before)
            self.model.load_state_dict(self.start)
            self.model.zero_grad()
            self.model.train(training)
            self.loss.set_progress(0.0)

    def _record(
        self,
        start: dict[str, float | None],
        rising: RisingWarmup,
        found: Range,
        rows: list[dict[str, Any]],
        short: int,
    ) -> dict[str, Any]:
        chosen = best_of(rows)
        if chosen["macro_f1"] is None:
            tried = ", ".join(f"{row['learning_rate']:.1e}" for row in rows)
            raise ModelError(
                f"training diverged at each of the learning rates tried ({tried}). Try "
                "--precision fp32, or name a smaller --learning-rate."
            )
        update = self.config.batch_size * self.config.accumulation
        batches = rising.passes * len(self._sample()) * self.config.batch_size / update
        # A step goes forward once and backward at twice the cost.
        cost = rising.steps + batches / 3 + sum(row["steps"] for row in rows)
        return {
            "recommended": chosen["learning_rate"],
            "why": _why(chosen, rows, short / self.steps),
            "range": found.to_dict(),
            "stability": {
                "steps": rising.steps,
                "passes": rising.passes,
                "documents": sum(len(batch["labels"]) for batch in self._sample()),
                "lost": rising.lost if math.isfinite(rising.lost) else None,
                "ignorant": rising.ignorant if math.isfinite(rising.ignorant) else None,
                "measured": [step.to_dict() for step in rising.measured],
            },
            "start": start,
            "candidates": sorted(rows, key=lambda row: row["learning_rate"]),
            "validation": len(self.validation),
            "run_steps": self.steps,
            "cost_steps": round(cost, 1),
            "cost": round(cost / self.steps, 3),
        }


def _figures(trainer: Trainer) -> dict[str, float | None]:
    """Of the trainer's model as it is, on the validation documents; None if the loss is no number.

    Named as in ``OF_A_SHORT_RUN``.
    """
    found = trainer.evaluate(ignore_keys=UNUSED_OUTPUTS)
    if not math.isfinite(found.get("eval_loss", math.nan)):
        return dict.fromkeys(OF_A_SHORT_RUN)
    return {name: float(found[f"eval_{name}"]) for name in OF_A_SHORT_RUN}


def _figures_with_error(evaluated: Any) -> dict[str, float]:
    """Figures by which a run chooses, and macro-F1's standard error by resampling documents."""
    logits, target = np.asarray(evaluated.predictions), np.asarray(evaluated.label_ids)
    predicted = decisions(logits, multi_label=target.ndim == 2)
    if target.ndim == 2:
        predicted, target = predicted.astype(bool), target.astype(bool)
    else:  # macro-F1 leaves out classes that training lacks
        predicted, target = predicted[target >= 0], target[target >= 0]
    error = 0.0
    if len(target):
        drawn = resampled_figures(target, predicted, groups=["head"] * logits.shape[1])["macro_f1"]
        drawn = drawn[np.isfinite(drawn)]
        error = float(drawn.std()) if len(drawn) else 0.0
    return {**validation_metrics(evaluated), "macro_f1_error": error}


def _why(chosen: dict[str, Any], rows: list[dict[str, Any]], fraction: float) -> str:
    others = ", ".join(
        f"{row['learning_rate']:.1e} {_figure(row)}"
        for row in sorted(rows, key=lambda row: row["learning_rate"])
    )
    return (
        f"{chosen['learning_rate']:.1e}; validation macro-F1 after {fraction:.0%} of the steps: "
        f"{others}"
    )


def _figure(row: dict[str, Any]) -> str:
    return "diverged" if row["macro_f1"] is None else f"{row['macro_f1']:.3f}"


def _sentence(row: dict[str, Any]) -> str:
    rate = f"learning rate {row['learning_rate']:.1e}"
    if row["macro_f1"] is None:
        return f"{rate}: diverged"
    return f"{rate}: validation macro-F1 {row['macro_f1']:.3f}, loss {row['loss']:.3f}"
