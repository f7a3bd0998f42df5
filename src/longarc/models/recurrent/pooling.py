"""From the states of a recurrent layer to one vector a document."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longarc.models.pooling import mean_pool
from longarc.models.recurrent.config import RecurrentConfig


class RecurrentPooling(nn.Module):
    """``last``, ``mean``, ``max``, ``attention`` or ``max-attention``; padding takes no part.

    ``attention``: weights softmax(qᵀ tanh(W s_t + b)) over a document's states s_t. q starts at 0,
    which is the mean. ``max-attention`` gives both codes, one after the other.
    """

    def __init__(self, config: RecurrentConfig):
        super().__init__()
        self.kind = config.pooling
        self.size = config.cell_size
        self.width = config.hidden_size * (2 if self.kind == "max-attention" else 1)
        self.query = None
        if "attention" in self.kind:
            self.keys = nn.Linear(config.hidden_size, config.hidden_size)
            self.query = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(b, n, D·H) and a mask (b, n) → (b, width); a document without a token gives zeros."""
        if self.kind == "mean":
            return mean_pool(states, attention_mask)
        if attention_mask is None:
            mask = torch.ones_like(states[..., 0], dtype=torch.bool)
        else:
            mask = attention_mask.bool()
        if self.kind == "last":
            return self._ends(states, mask)
        if self.kind == "max":
            return _largest(states, mask)
        if self.kind == "attention":
            return self._weighted(states, mask)
        return torch.cat([_largest(states, mask), self._weighted(states, mask)], dim=1)

    def _weighted(self, states: Tensor, mask: Tensor) -> Tensor:
        """The mean by attention."""
        assert self.query is not None
        empty = ~mask.any(dim=1, keepdim=True)
        scores = torch.tanh(self.keys(states)) @ self.query.to(states.dtype)
        scores = scores.masked_fill(~mask & ~empty, float("-inf"))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = scores.softmax(dim=1).to(states.dtype)
        return (weights.unsqueeze(1) @ states).squeeze(1)

    def _ends(self, states: Tensor, mask: Tensor) -> Tensor:
        """Each direction's state at the end of its reading."""
        rows = torch.arange(len(states), device=states.device)
        steps = torch.arange(mask.shape[1], device=states.device)
        last = (steps * mask).amax(dim=1)
        first = mask.long().argmax(dim=1)
        onward, returning = states[rows, last, : self.size], states[rows, first, self.size :]
        return torch.cat([onward, returning], dim=1)


def _largest(states: Tensor, mask: Tensor) -> Tensor:
    """The largest of each number over a document's tokens."""
    lowest = torch.finfo(states.dtype).min
    found = states.masked_fill(~mask[..., None], lowest).amax(dim=1)
    return found.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)
