"""How far one prediction is from another: Kullback–Leibler divergences from logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def divergence(logits: Tensor, other: Tensor, *, multi_label: bool = False) -> Tensor:
    """KL(p ‖ q) for each row, (b,), in nats.

    Args:
        logits: (b, C) of p.
        other: (b, C) of q.
        multi_label: p and q are a yes or no for each class, whose divergences add up, instead of
            one distribution over the classes.

    >>> import torch
    >>> divergence(torch.zeros(1, 2), torch.tensor([[0.0, 1.0986]]))  # ½ log(½·½ / (¼·¾))
    tensor([0.1438])
    """
    logits, other = _precise(logits), _precise(other)
    if not multi_label:
        p, q = logits.log_softmax(1), other.log_softmax(1)
        return (p.exp() * (p - q)).sum(1)
    yes, no = logsigmoid(logits), logsigmoid(-logits)
    apart = yes.exp() * (yes - logsigmoid(other)) + no.exp() * (no - logsigmoid(-other))
    return apart.sum(1)


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype.itemsize >= 4 else logits.float()
