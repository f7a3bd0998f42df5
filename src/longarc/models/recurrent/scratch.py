"""A recurrent encoder with its head, from nothing but the name of its cell and a few options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from longarc.errors import OptionError
from longarc.models.loading import load_encoder, load_tokenizer
from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.model import RecurrentForMaskedLM, RecurrentForSequenceClassification
from longarc.models.recurrent.options import CELLS, EMBEDDING_SIZE, settled_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START = 0.1
"""Of random token vectors: gates see next to nothing of smaller ones until they have grown.

Transformers' usual 0.02 was behind in short trainings (docs/recurrent.md).
"""


def starting_tokenizer(
    model: str,
    options: Mapping[str, Any] | None = None,
    embeddings: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a pretrained model; for a cell that of the embeddings, or as options say.

    A cell's reads documents of any length.

    Raises:
        OptionError: both are named, and are not the same.
        ModelError: there is no such tokenizer.
    """
    if model not in CELLS:
        return load_tokenizer(model, trust_remote_code=trust_remote_code)
    if embeddings is not None and "tokenizer" in (options or {}):
        raise OptionError(
            f"--embeddings {embeddings} brings its own tokenizer. Drop the tokenizer from "
            "--model-options."
        )
    tokenizer = load_tokenizer(embeddings or settled_options(options)["tokenizer"])
    tokenizer.model_max_length = VERY_LARGE_INTEGER  # transformers' word for no limit
    return tokenizer


def scratch_classifier(
    cell: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: str,
    options: Mapping[str, Any] | None = None,
    embeddings: str | None = None,
    **head: Any,
) -> RecurrentForSequenceClassification:
    """A classifier whose weights are drawn from torch's random state.

    Args:
        cell: one of ``CELLS``.
        tokenizer: as :func:`starting_tokenizer` gives it.
        pooling: one of ``POOLINGS``.
        options: as ``SCRATCH`` lists them.
        embeddings: the pretrained encoder whose token vectors it starts from.
        head: ``num_labels``, ``id2label`` and so on.

    Raises:
        OptionError: options that do not exist or do not fit the embeddings.
        ModelError: embeddings that cannot be found.
    """
    table = None if embeddings is None else _vectors(embeddings, tokenizer)
    config = scratch_config(cell, tokenizer, options, table, pooling=pooling, **head)
    model = RecurrentForSequenceClassification(config)
    if table is not None:
        start: Any = model.get_input_embeddings()
        with torch.no_grad():
            start.weight.copy_(table)
    return model


def scratch_masked_lm(
    cell: str, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None = None
) -> RecurrentForMaskedLM:
    """The same encoder under a head for masked tokens."""
    return RecurrentForMaskedLM(scratch_config(cell, tokenizer, options))


def scratch_config(
    cell: str,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any] | None = None,
    table: torch.Tensor | None = None,
    **more: Any,
) -> RecurrentConfig:
    """The configuration that the options ask for; ``table`` (V, d) are vectors to start from."""
    settled = settled_options(options)
    width = settled["embedding_size"] or EMBEDDING_SIZE
    if table is not None:
        width = table.shape[1]
        if settled["embedding_size"] not in (None, width):
            raise OptionError(
                f"embedding_size is {settled['embedding_size']}, and the vectors of --embeddings "
                f"have {width} numbers. Leave one of the two out."
            )
    dropout = settled["dropout"]
    return RecurrentConfig(
        cell=cell,
        vocab_size=len(tokenizer),
        embedding_size=width,
        cell_size=settled["cell_size"],
        num_hidden_layers=settled["layers"],
        bidirectional=settled["bidirectional"],
        embedding_dropout=dropout,
        layer_dropout=dropout,
        classifier_dropout=dropout,
        word_dropout=settled["word_dropout"],
        pad_token_id=_padding(tokenizer),
        initializer_range=START,
        **more,
    )


def _padding(tokenizer: Any) -> int | None:
    return tokenizer.pad_token_id


def _vectors(embeddings: str, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The token vectors (V, d) of a pretrained encoder, zeros at padding."""
    encoder: Any = load_encoder(embeddings)
    table = encoder.get_input_embeddings().weight.detach()[: len(tokenizer)].clone()
    if (padding := _padding(tokenizer)) is not None:
        table[padding] = 0.0
    return table
