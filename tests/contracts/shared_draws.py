"""Dropout and noise that stay the same however a step's documents are divided into batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longarc.objectives.regularizers.batch import Batch


class SharedDropout(nn.Module):
    """Two masks in turn, each for all documents: one for R-Drop's first pass, one for its second.

    The seed of torch's generator says whose turn it is, so that a pass for which a step puts back
    the generator's state has the mask of that state, as with any dropout.
    """

    def __init__(self, share: float = 0.3):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        turn = torch.initial_seed() % 2
        torch.manual_seed(1 - turn)
        drawn = torch.rand(x.shape[-1], generator=torch.Generator().manual_seed(turn))
        return x * (drawn >= self.share) / (1 - self.share)


def shared_noise(batch: Batch, name: str) -> Tensor:
    """For ``Batch.noise``, whose draw follows the batch's shape: the same at any token."""
    where = batch.no_change().detach()
    return torch.arange(where.shape[2]).cos().expand_as(where) * batch.may_change
