"""Codes of documents by an encoder with its pooling, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from longarc.models.loading import load_encoder, load_tokenizer
from longarc.models.pooled_encoder import PooledEncoder
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.prediction import bfloat16_is_fast, chosen_device
from longarc.training.pretraining.folder import PretrainFolder


@torch.no_grad()
def codes_of(
    encoder: PooledEncoder,
    documents: Sequence[list[int]],
    collate: PaddedBatches,
    *,
    batch_size: int,
    bf16: bool,
) -> Tensor:
    """Codes (N, d) float32 of documents' ids, without dropout, in the order given.

    The encoder's mode and all random states stay as they were.
    """
    device = next(encoder.parameters()).device
    order = np.argsort([-len(ids) for ids in documents], kind="stable")
    out = torch.zeros(len(documents), encoder.width)
    was_training = encoder.training
    encoder.eval()
    try:
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            batch = collate([{"input_ids": documents[i]} for i in some])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                out[torch.from_numpy(some)] = encoder(batch).float().cpu()
    finally:
        encoder.train(was_training)
    return out


def encode(folder: PretrainFolder, texts: Sequence[str]) -> np.ndarray:
    """Codes (N, d) of length 1 of texts, by a finished run's encoder."""
    config = folder.config()
    device = chosen_device(config.device)
    encoder = PooledEncoder(load_encoder(folder.model), config.pooling).to(device)
    tokenizer = load_tokenizer(folder.model)
    documents = Documents(texts, tokenizer, config.max_length)
    codes = codes_of(
        encoder,
        documents.inputs["input_ids"],
        PaddedBatches(tokenizer, config.max_length),
        batch_size=config.batch_size,
        bf16=config.precision == "bf16" and bfloat16_is_fast(device),
    )
    return functional.normalize(codes).numpy()
