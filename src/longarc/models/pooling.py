"""From token vectors to one vector a document."""

from __future__ import annotations

from torch import Tensor


def mean_pool(hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Mean of a document's token vectors; padding takes no part.

    The sum runs in float32 at least, so that 512 bfloat16 addends keep their digits.

    Shapes: ``hidden`` (b, n, d), ``attention_mask`` (b, n) of 0/1, result (b, d). A document
    without any token gives zeros.

    >>> import torch
    >>> mean_pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    exact = hidden if hidden.dtype.itemsize >= 4 else hidden.float()
    if attention_mask is None:
        return exact.mean(dim=1)
    mask = attention_mask.to(exact.dtype).unsqueeze(-1)
    return (exact * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
