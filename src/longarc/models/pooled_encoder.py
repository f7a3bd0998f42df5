"""An encoder with its pooling as one module: from token ids to one code a document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from longarc.models.loading import Pooling
from longarc.models.mean_pooled import drop_pooler
from longarc.models.pooling import mean_pool


class PooledEncoder(nn.Module):
    """Encoder → mean over tokens, or first token.

    Called with one mapping of the encoder's inputs, ``input_ids`` and ``attention_mask`` (b, n);
    returns codes (b, d) in the type of the encoder's weights.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    ...                   intermediate_size=16, vocab_size=30)
    >>> PooledEncoder(BertModel(tiny))({"input_ids": torch.tensor([[1, 2, 3]])}).shape
    torch.Size([1, 8])
    """

    def __init__(self, encoder: Any, pooling: Pooling = "mean") -> None:
        super().__init__()
        drop_pooler(encoder)
        self.encoder = encoder
        self.pooling: Pooling = pooling

    @property
    def width(self) -> int:
        """d, numbers in a code."""
        return self.encoder.config.hidden_size

    def forward(self, view: Mapping[str, Tensor]) -> Tensor:
        """Return the codes (b, d) of a batch."""
        states = self.encoder(**view).last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        return mean_pool(states, view.get("attention_mask")).to(self.encoder.dtype)
