"""How far one prediction is from another: Kullback–Leibler divergences from logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def divergence(logits: Tensor, other: Tensor, *, multi_label: bool = False) -> Tensor:
    """KL(p ‖ q) for each row, (b,), in nats.

    Args:
        logits: (b, C) of p.
        other: (b, C) of q.
        multi_label: p and q are a yes or no for each class, whose divergences add up, instead of
            one distribution over the classes.

    >>> divergence(torch.zeros(1, 2), torch.tensor([[0.0, 1.0986]]))  # ½ log(½·½ / (¼·¾))
    tensor([0.1438])
    """
    p, q = (_log_probabilities(z, multi_label=multi_label) for z in (logits, other))
    return functional.kl_div(q, p, reduction="none", log_target=True).flatten(1).sum(1)


def _log_probabilities(logits: Tensor, *, multi_label: bool) -> Tensor:
    """Log p (b, C), or (b, C, 2) of yes and no; in float32 at least."""
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    if multi_label:
        return torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], dim=2)
    return logits.log_softmax(1)
