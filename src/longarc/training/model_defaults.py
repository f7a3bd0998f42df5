"""Defaults that depend on the model, and which options fit which model. Free of torch.

Fine-tuning moves weights that already know the language, by little and for few epochs; the lower
layers, which know most of what every text has in common, by the least. A recurrent encoder from
scratch has everything to learn, and few weights that a large step could spoil:

- ``learning_rate``: ten to twenty times as large, alike at every depth (``layer_decay`` 1).
- ``epochs``, ``patience``: more, as each takes a fraction of the time; the best epoch is kept.
- ``batch_size``: twice as large; larger steps of the loop over time cost little more.
- ``head_start``: a probe on random features would teach the head what training then unlearns.
- ``embedding_factor``: 0.1 for borrowed token vectors (``--embeddings``), 1 for all others: words
  that only later texts use keep the place that pretraining gave them among the others, if those
  have not moved far.
- ``pooling``: the largest of each state over the text: a cell that has met what a class is known by
  need not carry it to the end.

Measured: ``docs/recurrent.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from longarc.errors import OptionError, close_matches
from longarc.models.loading import is_recurrent
from longarc.models.recurrent.options import CELLS, POOLINGS, settled_options
from longarc.training.option_fields import flag

if TYPE_CHECKING:
    from longarc.training.config import TrainConfig

PRETRAINED: dict[str, Any] = {
    "pooling": "mean",
    "head_start": "probe",
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 1e-4,
    "layer_decay": 0.9,
    "patience": 3,
}
"""For Transformers, which come pretrained."""

RECURRENT: dict[str, Any] = {
    "pooling": "max",
    "head_start": "scratch",
    "epochs": 15,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "layer_decay": 1.0,
    "patience": 5,
}
"""For recurrent encoders, from scratch or pretrained."""

BORROWED = 0.1
"""The ``embedding_factor`` of token vectors that come from a pretrained encoder."""

AnyPooling = Literal["mean", "cls", "last", "max", "attention", "max-attention"]

_OF_TRANSFORMERS = {"positions": "trained", "attention": None, "residual_attention": "none"}
_OF_SCRATCH = ("model_options", "embeddings")


def fill_in(config: TrainConfig) -> None:
    """Give the options that were left open, None, what suits the model."""
    for name, value in (RECURRENT if is_recurrent(config.model) else PRETRAINED).items():
        if getattr(config, name) is None:
            setattr(config, name, value)
    if config.embedding_factor is None:
        config.embedding_factor = BORROWED if config.embeddings else 1.0


def default_of(name: str) -> str:
    """Both defaults, for a help text.

    >>> default_of("epochs")
    '3; of a recurrent model 15'
    """
    return f"{PRETRAINED[name]:g}; of a recurrent model {RECURRENT[name]:g}"


def check_fits_model(config: TrainConfig) -> None:
    """Raise OptionError for an option that is for another kind of model."""
    recurrent = is_recurrent(config.model)
    if recurrent:
        for name, without in _OF_TRANSFORMERS.items():
            if getattr(config, name) != without:
                raise OptionError(
                    f"{flag(name)} is for Transformers, and {config.model} is a recurrent model, "
                    f"which has no positions and no attention between tokens. Drop {flag(name)}."
                )
    if config.model in CELLS:
        settled_options(config.model_options)
        if config.freeze:
            raise OptionError(
                f"--freeze keeps an encoder as it is, and --model {config.model} starts from "
                "random weights. Drop one of the two."
            )
    else:
        for name in _OF_SCRATCH:
            if getattr(config, name) is not None:
                raise OptionError(
                    f"{flag(name)} is for a model that is trained from scratch, and {config.model} "
                    f"is not: expected --model {', '.join(CELLS[:-1])} or {CELLS[-1]}."
                )
    known = POOLINGS if recurrent else ("mean", "cls")
    if config.pooling in get_args(AnyPooling) and config.pooling not in known:
        raise OptionError(
            f"--pooling {config.pooling} is not for {config.model}. "
            f"{close_matches(config.pooling, known)}"
        )
