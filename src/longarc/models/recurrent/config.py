"""The configuration of a recurrent encoder."""

from __future__ import annotations

from typing import Any, get_args

from transformers import PreTrainedConfig

from longarc.errors import OptionError
from longarc.models.recurrent.options import Cell, Pooling
from longarc.options import check_choice, check_flag, check_number, check_whole

_SHARES = ("embedding_dropout", "layer_dropout", "word_dropout", "classifier_dropout")


class RecurrentConfig(PreTrainedConfig):
    """Token embeddings, layers of a recurrent cell in one or both directions, a pooling.

    Attributes:
        cell: ``rnn`` (tanh), ``relu-rnn``, ``lstm``, ``gru`` or ``output-gated-gru``.
        vocab_size: rows of the embeddings.
        embedding_size: their width.
        cell_size: H, numbers in the state of one direction. ``hidden_size`` is the width of a
            token's vector, 2H with both directions.
        num_hidden_layers: layers one above the other.
        bidirectional: read each document from both ends.
        pooling: a document's vector: ``last``, the states at the ends of the reading; ``mean`` or
            ``max`` over tokens; ``attention``, a mean weighted by a learnt query (Yang et al. 2016,
            "Hierarchical attention networks"); ``max-attention``, both side by side.
        embedding_dropout, layer_dropout: variational: one draw a document, the same at each step,
            on the embeddings and on what enters each further layer (Gal & Ghahramani 2016, arXiv
            1512.05287).
        word_dropout: share of a document's tokens whose vector is 0 in training, as an unknown
            word's would be.
        classifier_dropout: on the document's vector.
        forget_bias: at the start, of the LSTM's forget gate: 1, so that it remembers before it has
            learnt to (Jozefowicz et al. 2015).
        initializer_range: of the embeddings and of the classifier.
        tie_word_embeddings: whether a masked language model's output has the embeddings' weights.

    >>> RecurrentConfig(cell="gru", cell_size=128).hidden_size
    256
    """

    model_type = "longarc-recurrent"

    cell: str = "lstm"
    vocab_size: int = 30522
    embedding_size: int = 384
    cell_size: int = 256
    num_hidden_layers: int = 1
    bidirectional: bool = True
    pooling: str = "max"
    embedding_dropout: float = 0.3
    layer_dropout: float = 0.3
    word_dropout: float = 0.0
    classifier_dropout: float = 0.3
    forget_bias: float = 1.0
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        try:
            check_choice("cell", self.cell, get_args(Cell))
            check_choice("pooling", self.pooling, get_args(Pooling))
            for name in ("vocab_size", "embedding_size", "cell_size", "num_hidden_layers"):
                check_whole(name, getattr(self, name), at_least=1)
            for name in _SHARES:
                check_number(name, getattr(self, name), below=1.0)
            check_flag("bidirectional", self.bidirectional)
        except OptionError as error:
            raise OptionError(f"RecurrentConfig: {error}") from None
        kwargs.pop("hidden_size", None)  # follows from the others
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of a token's vector."""
        return self.cell_size * (2 if self.bidirectional else 1)
