"""Every option of a pretraining run, with its default and the reason for it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longarc.errors import OptionError
from longarc.models.loading import is_recurrent
from longarc.models.recurrent.options import CELLS, settled_options
from longarc.training.model_defaults import RECURRENT
from longarc.training.option_fields import (
    check_choices,
    check_kinds,
    check_only_with,
    check_out,
    check_ranges,
    differing,
    option,
)

TWO_VIEWS = ("simsiam", "byol", "simcse")
"""Objectives that compare two views of a document; ``mlm`` has one, with masked tokens."""

PREDICTING = ("simsiam", "byol")

_ONLY_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "views": ("objective", TWO_VIEWS),
    "crop_min": ("views", ("crops",)),
    "crop_max": ("views", ("crops",)),
    "overlap": ("views", ("crops",)),
    "shuffle": ("objective", TWO_VIEWS),
    "delete": ("objective", TWO_VIEWS),
    "chunk": ("objective", TWO_VIEWS),
    "temperature": ("objective", ("simcse",)),
    "ema_decay": ("objective", ("byol",)),
    "ema_schedule": ("objective", ("byol",)),
    "stop_gradient": ("objective", ("simsiam",)),
    "head_norm": ("objective", PREDICTING),
    "predictor_factor": ("objective", PREDICTING),
    "fixed_predictor_rate": ("objective", PREDICTING),
    "stop_on_collapse": ("objective", TWO_VIEWS),
}
"""Options that would change nothing without another's value."""


@dataclass
class PretrainConfig:
    """The options of ``longarc pretrain`` and :func:`longarc.pretrain`, kept in ``config.yaml``.

    >>> PretrainConfig(data="texts.csv", out="runs/adapted", objective="mlm").rate
    0.0001
    """

    data: str = option(
        "", "table of texts: CSV, TSV, JSON Lines, Parquet, a datasets folder or Hub id"
    )
    out: str = option("", "run folder to write")

    text: str | None = option(None, "column of texts; guessed when not named")
    label: str | None = option(
        None, "column of classes to evaluate with, never to train on; rows may lack one"
    )
    limit: int | None = option(None, "read only so many rows of DATA, the first")

    model: str = option(
        "minilm",
        "encoder: minilm (packaged), a local folder or a Hub id; with --objective mlm also lstm, gru "
        "and so on, from scratch",
    )
    model_options: dict | None = option(
        None, "options of a model from scratch, as of longarc train"
    )
    max_length: int = option(
        128, "tokens of a view, and of a document when the encoder is evaluated or used"
    )
    pooling: Literal["mean", "cls"] = option(
        "mean", "document vector: mean of the tokens, or the first token"
    )

    objective: Literal["simcse", "simsiam", "byol", "mlm"] = option(
        "simcse",
        "simcse: tell a document's other view from other documents; simsiam, byol: predict it; mlm: "
        "restore masked tokens",
    )
    views: Literal["crops", "whole"] = option(
        "crops", "two random passages of a document, or the document twice with other dropout"
    )
    crop_min: float = option(0.1, "shortest passage, as a share of the document")
    crop_max: float = option(0.5, "longest passage")
    overlap: bool = option(True, "whether the two passages may overlap")
    shuffle: int | None = option(None, "put spans of so many tokens in random order")
    delete: float = option(0.0, "share of a view's tokens that are left out")
    mask: float | None = option(
        None, "share of the tokens that are masked; default: 0.15 for mlm, else 0"
    )
    temperature: float = option(0.05, "τ of simcse: the smaller, the more the nearest ones count")
    ema_decay: float = option(0.99, "share of byol's target that a step keeps")
    ema_schedule: Literal["constant", "cosine"] = option(
        "cosine", "whether that share rises to 1 until the end"
    )
    stop_gradient: bool = option(
        True, "simsiam's target is a constant; without it the codes collapse"
    )
    head_norm: Literal["batch", "layer"] = option(
        "batch", "normalisation in the heads of simsiam and byol; with layer codes may collapse"
    )
    predictor_factor: float = option(1.0, "step size of the predictor, times --head-learning-rate")
    fixed_predictor_rate: bool = option(
        False, "keep the predictor's step size while the others fall"
    )
    chunk: int | None = option(
        None, "documents that the encoder works on at a time: large batches in little memory"
    )

    epochs: float = option(1, "passes over the documents")
    batch_size: int = option(64, "documents in a step; for simcse also the ones to tell apart")
    learning_rate: float | None = option(
        None,
        "peak step size of the encoder; default: 3e-5, for mlm 1e-4, of a recurrent model 2e-3",
    )
    head_learning_rate: float = option(1e-3, "peak step size of what is new: the heads")
    weight_decay: float = option(0.01, "decoupled weight decay")
    warmup: float = option(0.1, "part of the steps over which the step size rises")
    max_grad_norm: float = option(1.0, "clip the gradient to this norm; 0 for never")
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "auto: bfloat16 arithmetic where the machine has it, float32 weights always"
    )

    held_out: int = option(
        400, "documents to evaluate on, which are not trained on; at most a fifth of them"
    )
    labelled: int = option(
        800, "with --label: training documents that teach the nearest neighbours and the probe"
    )
    evaluations: int = option(5, "evaluations during the training, besides the one at the start")
    stop_on_collapse: bool = option(
        True, "stop when the codes of the held-out documents become alike"
    )

    seed: int = option(0, "seed of held-out documents, order, views, heads and dropout")
    device: Literal["auto", "cpu"] = option("auto", "auto: a GPU where there is one")
    checkpoint_minutes: float = option(10.0, "save resumable state this often")
    keep_checkpoints: bool = option(
        False, "keep checkpoints/ and documents/ when the run is complete"
    )
    resume: bool = option(False, "go on from the last checkpoint of the run in --out")
    overwrite: bool = option(False, "replace an existing run folder")

    def validate(self) -> None:
        """Refuse values of the wrong kind or out of range, before any work: OptionError."""
        check_kinds(self)
        ranges: dict[str, tuple[float, float | None]] = {
            "limit": (1, None), "max_length": (8, None), "crop_min": (0, 1), "crop_max": (0, 1),
            "shuffle": (1, None), "delete": (0, 0.95), "mask": (0, 0.95), "temperature": (0, None),
            "ema_decay": (0, 1), "predictor_factor": (0, None), "chunk": (1, None),
            "epochs": (0, None), "batch_size": (1, None), "learning_rate": (0, None),
            "head_learning_rate": (0, None), "weight_decay": (0, None), "warmup": (0, 1),
            "max_grad_norm": (0, None), "held_out": (10, None), "labelled": (10, None),
            "evaluations": (1, None), "seed": (0, 2**32 - 1), "checkpoint_minutes": (0, None),
        }  # fmt: skip
        check_ranges(self, ranges)
        check_choices(self)
        check_only_with(self, _ONLY_WITH)
        if self.model in CELLS:
            settled_options(self.model_options)
            if self.objective != "mlm":
                raise OptionError(
                    f"--model {self.model} starts from random weights, from which --objective "
                    f"{self.objective} learns little. Use --objective mlm first, and then --model "
                    "with the folder it made."
                )
        elif self.model_options is not None:
            raise OptionError(
                f"--model-options is for a model that is trained from scratch, and {self.model} is "
                f"not: expected --model {' or '.join(CELLS)}."
            )
        if self.views == "crops" and self.objective != "mlm":
            if not 0 < self.crop_min <= self.crop_max:
                raise OptionError(
                    f"--crop-min is {self.crop_min:g} and --crop-max {self.crop_max:g}: expected "
                    "0 < shortest ≤ longest."
                )
            if not self.overlap and self.crop_max > 0.5:
                raise OptionError(
                    f"passages of up to {self.crop_max:g} of a document overlap at times. Take "
                    "--crop-max 0.5 at most, or leave out --no-overlap."
                )
        if self.batch_size < 2 and self.objective != "mlm":
            raise OptionError(
                f"--batch-size is {self.batch_size}, and --objective {self.objective} compares "
                "documents. Expected at least 2."
            )
        if self.objective == "simcse" and self.temperature == 0:
            raise OptionError("--temperature is 0, and similarities are divided by it.")
        if self.objective == "mlm" and self.mask == 0:
            raise OptionError("--mask is 0, so --objective mlm has no tokens to restore.")
        check_out(self)

    @property
    def rate(self) -> float:
        """Peak step size of the encoder."""
        if self.learning_rate is not None:
            return self.learning_rate
        if is_recurrent(self.model):
            return RECURRENT["learning_rate"]
        return 1e-4 if self.objective == "mlm" else 3e-5

    @property
    def mask_share(self) -> float:
        """Share of the tokens that are masked."""
        if self.mask is not None:
            return self.mask
        return 0.15 if self.objective == "mlm" else 0.0

    @property
    def run(self) -> Path:
        """The run folder as a path."""
        return Path(self.out).expanduser()

    def differences(self, other: PretrainConfig) -> dict[str, tuple[Any, Any]]:
        """Options that change the outcome and differ, as name → (this, other)."""
        free = {"out", "resume", "overwrite", "keep_checkpoints", "checkpoint_minutes"}
        return differing(self, other, free)
