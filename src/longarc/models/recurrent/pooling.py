"""From the states of a recurrent layer to one vector a document."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longarc.models.pooling import mean_pool
from longarc.models.recurrent.config import RecurrentConfig


class RecurrentPooling(nn.Module):
    """``last``, ``mean``, ``max`` or ``attention``; padding takes no part.

    ``attention``: weights softmax(qᵀ tanh(W s_t + b)) over a document's states s_t. q starts at 0,
    which is the mean.
    """

    def __init__(self, config: RecurrentConfig):
        super().__init__()
        self.kind = config.pooling
        self.size = config.cell_size
        self.query = None
        if self.kind == "attention":
            self.keys = nn.Linear(config.hidden_size, config.hidden_size)
            self.query = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(b, n, D·H) and a mask (b, n) → (b, D·H); a document without a token gives zeros."""
        if self.kind == "mean":
            return mean_pool(states, attention_mask)
        if attention_mask is None:
            mask = torch.ones_like(states[..., 0], dtype=torch.bool)
        else:
            mask = attention_mask.bool()
        if self.kind == "last":
            return self._ends(states, mask)
        empty = ~mask.any(dim=1, keepdim=True)
        if self.kind == "max":
            lowest = torch.finfo(states.dtype).min
            found = states.masked_fill(~mask[..., None], lowest).amax(dim=1)
            return found.masked_fill(empty, 0.0)
        assert self.query is not None
        scores = torch.tanh(self.keys(states)) @ self.query.to(states.dtype)
        scores = scores.masked_fill(~mask & ~empty, float("-inf"))
        weights = scores.float().softmax(dim=1).to(states.dtype)
        return (weights.unsqueeze(1) @ states).squeeze(1)

    def _ends(self, states: Tensor, mask: Tensor) -> Tensor:
        """Each direction's state at the end of its reading."""
        rows = torch.arange(len(states), device=states.device)
        steps = torch.arange(mask.shape[1], device=states.device)
        last = (steps * mask).amax(dim=1)
        first = mask.long().argmax(dim=1)
        onward, returning = states[rows, last, : self.size], states[rows, first, self.size :]
        return torch.cat([onward, returning], dim=1)
