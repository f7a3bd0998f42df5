"""Names and options of recurrent encoders; free of torch, so that a wrong one costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from longarc.errors import OptionError
from longarc.options import check_flag, check_known, check_number, check_whole

Cell = Literal["rnn", "relu-rnn", "lstm", "gru", "output-gated-gru"]
Pooling = Literal["last", "mean", "max", "attention", "max-attention"]

CELLS: tuple[str, ...] = get_args(Cell)
"""What ``--model`` takes for an encoder trained from scratch."""

POOLINGS: tuple[str, ...] = get_args(Pooling)

SCRATCH: dict[str, Any] = {
    "cell_size": 256,
    "layers": 1,
    "bidirectional": True,
    "dropout": 0.3,
    "word_dropout": 0.1,
    "embedding_size": None,
    "tokenizer": "minilm",
}
"""Options of an encoder from scratch and their defaults.

``embedding_size`` None: 300 for random vectors, the usual width of word vectors, and a pretrained
table's own. ``dropout`` is for embeddings, between layers and on the document's vector. The
tokenizer is a pretrained model's: a table of texts is seldom enough to learn one from.
"""

EMBEDDING_SIZE = 300


def settled_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """``SCRATCH`` with the options given, or OptionError for one that is unknown or out of range.

    >>> settled_options({"layers": 2})["cell_size"]
    256
    """
    given = dict(options or {})
    check_known("A recurrent model", given, SCRATCH)
    found = {**SCRATCH, **given}
    for name in ("cell_size", "layers"):
        check_whole(name, found[name], at_least=1)
    if found["embedding_size"] is not None:
        check_whole("embedding_size", found["embedding_size"], at_least=1)
    check_flag("bidirectional", found["bidirectional"])
    for name in ("dropout", "word_dropout"):
        check_number(name, found[name], below=1.0)
    if not isinstance(found["tokenizer"], str):
        raise OptionError(
            f"tokenizer must name a model that has one; found {found['tokenizer']!r}."
        )
    return found
