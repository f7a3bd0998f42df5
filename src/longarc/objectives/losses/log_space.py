"""Logarithms of probabilities that stay finite, in value and gradient, where p rounds to 0 or 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_probabilities(logits: Tensor, multi_label: bool) -> tuple[Tensor, Tensor]:
    """Return log p and log(1 − p), (b, C) each: p a sigmoid for each label, or the softmax.

    >>> log_p, log_rest = log_probabilities(torch.tensor([[1e4, -1e4]]), multi_label=True)
    >>> log_p.tolist(), log_rest.tolist()
    ([[0.0, -10000.0]], [[-10000.0, 0.0]])
    """
    if multi_label:
        return F.logsigmoid(logits), F.logsigmoid(-logits)
    return F.log_softmax(logits, dim=1), log_one_minus_softmax(logits)


def log_one_minus_softmax(logits: Tensor) -> Tensor:
    """Return log(1 − softmax(z)_c) for every class, (b, C), from logits (b, C), C at least 2.

    Where p_c rounds to 1, log(1 − p_c) would be −∞. Only the largest p can: there the sum of the
    others is taken, from their logarithms. A logit of −∞ gives 0, as long as two classes are left.

    >>> log_one_minus_softmax(torch.tensor([[0.0, 0.0], [1e4, -1e4]]))[:, 0]
    tensor([-6.9315e-01, -2.0000e+04])
    """
    log_p = F.log_softmax(logits, dim=1)
    largest = logits.argmax(dim=1, keepdim=True)
    is_largest = torch.zeros_like(logits, dtype=torch.bool).scatter(1, largest, True)
    others = log_p.masked_fill(is_largest, -torch.inf).logsumexp(dim=1, keepdim=True)
    # 0 stands in for the largest p, or log1p's infinite slope would reach the gradient.
    return torch.where(is_largest, others, torch.log1p(-log_p.exp().masked_fill(is_largest, 0)))
