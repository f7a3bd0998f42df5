"""A bare encoder as a folder that transformers, longarc and sentence-transformers open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longarc.models.loading import Pooling
from longarc.models.recurrent.config import RecurrentConfig

# The names of sentence-transformers 2, which every later version reads as well.
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize",
     "type": "sentence_transformers.models.Normalize"},
]  # fmt: skip
_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")


def save_encoder(
    folder: Path, encoder: Any, tokenizer: Any, *, pooling: Pooling, max_length: int
) -> None:
    """Write weights, tokenizer, and how token vectors become one code of length 1.

    Args:
        folder: exists.
        encoder: a transformers model without a head.
        tokenizer: its tokenizer.
        pooling: mean of the tokens, or the first one.
        max_length: tokens that sentence-transformers is to read.
    """
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if isinstance(encoder.config, RecurrentConfig):
        return  # sentence-transformers opens nothing that plain transformers does not know
    chosen = {"mean": "mean_tokens", "cls": "cls_token"}[pooling]
    pooled = {"word_embedding_dimension": encoder.config.hidden_size}
    pooled |= {f"pooling_mode_{mode}": mode == chosen for mode in _MODES}
    _write(folder / "modules.json", _MODULES)
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_length, "do_lower_case": False},  # lower case is the tokenizer's
    )
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir()
    _write(folder / "1_Pooling" / "config.json", pooled)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
