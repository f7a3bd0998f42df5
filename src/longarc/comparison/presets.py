"""Candidates that come with longarc, and what a comparison of them needs. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longarc.comparison.budget import Budget

PRETRAINED_LENGTH = 512
"""Tokens that the packaged encoder has positions for."""

SCRATCH_OPTIONS: dict[str, Any] = {
    "head_start": "scratch",
    "learning_rate": 5e-4,
    "layer_decay": 1.0,
}
"""A Transformer from scratch has no features for a probe, and much to learn at every depth."""


@dataclass(frozen=True)
class Preset:
    """Candidates by name for a length and a kind of labels, and what they are compared with.

    ``length`` is that of the candidates which name none. ``budget`` and ``limit`` are what holds
    where none is named; ``fractions`` are (validation, test) of the packaged texts.
    """

    candidates: Callable[[int, bool], dict[str, dict[str, Any]]]
    length: int
    budget: Budget | None = None
    limit: int | None = None
    fractions: tuple[float, float] | None = None


def _attention(length: int, multi_label: bool) -> dict[str, dict[str, Any]]:
    """Every kernel on the packaged encoder, then encoders from scratch of the same size."""
    longer: dict[str, Any] = {} if length <= PRETRAINED_LENGTH else {"positions": "hierarchical"}
    kernels = ("exact", "performer", "linear", "block-sparse", "local-performer", "local-clustered")
    scratch = ("bert", "longformer", "big-bird")
    return {
        **{name: {"attention": name, **longer} for name in kernels},
        "learned": {"attention": "learned", "attention_minutes": 2.0, **longer},
        "lstm": {"model": "lstm", "embeddings": "minilm"},
        **{
            f"{name} from scratch": {"model": f"scratch-{name}", **SCRATCH_OPTIONS}
            for name in scratch
        },
    }


def _tail(length: int, multi_label: bool) -> dict[str, dict[str, Any]]:
    """Losses and second stages for rare classes on one encoder."""
    if multi_label:
        losses = ("binary-cross-entropy", "focal", "asymmetric", "multilabel-softmax")
        recipes = ("post-hoc", "crt")
    else:
        losses = (
            "cross-entropy",
            "class-weighted",
            "class-balanced",
            "focal",
            "ldam",
            "logit-adjusted",
        )
        recipes = ("post-hoc", "tau-norm", "crt")
    return {
        **{loss: {"loss": loss} for loss in losses},
        **{recipe: {"loss": losses[0], "recipe": recipe} for recipe in recipes},
        "square-root sampler": {"loss": losses[0], "sampler": "square-root"},
        f"{losses[-1]}, hybrid": {"loss": losses[-1], "hybrid": 8.0},
    }


def _everything_small(length: int, multi_label: bool) -> dict[str, dict[str, Any]]:
    """Something of each: lengths, kernels, a cell, a loss, no training at all."""
    adjusted = {} if multi_label else {"loss": "logit-adjusted"}
    return {
        f"exact, {length // 2} tokens": {"max_length": length // 2},
        f"exact, {length} tokens": {},
        "logit-adjusted" if adjusted else "asymmetric": adjusted or {"loss": "asymmetric"},
        "probe only": {"freeze": True, "accumulation": 1, "head_learning_rate": None},
        "performer": {"attention": "performer", "attention_options": {"num_features": 64}},
        "linear": {"attention": "linear"},
        "block-sparse": {"attention": "block-sparse"},
        "local-clustered": {"attention": "local-clustered"},
        "lstm": {"model": "lstm", "embeddings": "minilm"},
        "longformer from scratch": {"model": "scratch-longformer", **SCRATCH_OPTIONS},
    }


PRESETS: dict[str, Preset] = {
    "attention": Preset(_attention, length=512),
    "tail": Preset(_tail, length=256),
    "everything-small": Preset(
        _everything_small,
        length=128,
        budget=Budget("examples", 320),
        limit=600,
        fractions=(0.1, 0.3),
    ),
}
