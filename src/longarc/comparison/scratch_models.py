"""Folders of untrained Transformers in the size of the packaged encoder, for ``--model``.

All three have its tokenizer and start with its token vectors, as ``--model lstm --embeddings
minilm`` does; everything else is random, and the same for the same seed.

transformers' Nyströmformer is not among them. Where its ``num_landmarks`` and
``segment_means_seq_len`` are the same number, as by default, it computes exact attention. Where
they differ, it takes batches padded to one fixed length alone, and longarc pads to the longest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, BertConfig, BigBirdConfig, LongformerConfig

from longarc.files import whole_folder
from longarc.models.loading import load_encoder, load_tokenizer

_KINDS: dict[str, tuple[Any, dict[str, Any], int]] = {
    # Configuration, its own options, and rows of the position table that carry no token.
    "scratch-bert": (BertConfig, {}, 0),
    "scratch-longformer": (LongformerConfig, {"attention_window": 128}, 2),
    "scratch-big-bird": (BigBirdConfig, {"block_size": 16, "num_random_blocks": 3}, 0),
}


def scratch_folder(name: str, length: int, where: Path, seed: int = 0) -> Path:
    """The folder of an untrained encoder for ``length`` tokens, written if it is not there.

    >>> import tempfile
    >>> folder = scratch_folder("scratch-bert", 64, Path(tempfile.mkdtemp()))
    >>> sorted(path.name for path in folder.iterdir())[:2]
    ['config.json', 'model.safetensors']
    """
    folder = where / f"{name}-{length}-{seed}"
    if folder.is_dir():
        return folder
    kind, options, offset = _KINDS[name]
    like = load_encoder("minilm")
    tokenizer = load_tokenizer("minilm")
    tokenizer.model_max_length = length
    shape = like.config
    config = kind(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=length + offset,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(like.get_input_embeddings().weight)
    where.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder
