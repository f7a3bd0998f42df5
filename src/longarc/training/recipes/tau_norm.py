"""τ-normalisation: class vectors of frequent classes are longer, and are made shorter.

Kang et al., 2020, "Decoupling representation and classifier for long-tailed recognition", arXiv
1910.09217.
"""

from __future__ import annotations

import torch
from torch import Tensor

TAU_NORM_TAUS = tuple(round(0.1 * step, 1) for step in range(21))
"""τ that are tried: 0 (nothing) to 2, in tenths. The paper stays between 0 and 1."""


def tau_normalize(
    weight: Tensor, bias: Tensor | None = None, tau: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Class vectors w_c / ‖w_c‖^τ, and each class's bias scaled with its vector.

    The paper drops the bias. Scaling it with its row is a choice of ours: a linear probe's bias
    also makes up for the mean of the features, and the logit of a class is then as a whole divided
    by ‖w_c‖^τ. With several labels a decision is the sign of each logit, so there it changes none.
    A row of zeros stays one. The logits have another scale afterwards, so confidences mean little
    until a temperature is fitted.

    Args:
        weight: (C, d).
        bias: (C,), or None for a layer without one.
        tau: 0 changes nothing; 1 makes all class vectors equally long.

    >>> weight, bias = tau_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.5]]), torch.ones(2))
    >>> weight, bias
    (tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]]), tensor([0.2000, 2.0000]))
    """
    norm = weight.norm(dim=1)
    factor = torch.where(norm > 0, norm, 1) ** -tau
    return weight * factor[:, None], None if bias is None else bias * factor
