"""A target that follows a network slowly: the exponential moving average of its weights."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal, get_args

import torch
from torch import nn

from longarc.errors import ModelError
from longarc.options import check_choice, check_number

Schedule = Literal["constant", "cosine"]


class EMATarget(nn.Module):
    """A copy of a network whose weights are a moving average of the network's.

    ``update`` sets ξ ← τ ξ + (1 − τ) θ. Calling the target is calling the copy, without gradients.
    Weights and buffers are saved with the module that holds the target. Buffers are the copy's
    own: in training mode batch normalisation takes statistics of what the target itself sees.

    Args:
        network: copied as it is now; it is not kept.

    Source: Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv 2006.07733), eq. 1; the schedule,
    its section 3.2.

    >>> network = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(network.weight, 1.0)
    >>> target = EMATarget(network)
    >>> _ = nn.init.constant_(network.weight, 2.0)
    >>> target.update(network, decay=0.9)
    >>> target(torch.ones(1, 1))
    tensor([[1.1000]])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """Return what the copy gives."""
        return self.network(*inputs)

    @torch.no_grad()
    def update(self, network: nn.Module, decay: float) -> None:
        """Move each weight by 1 − ``decay`` of the way to the network's.

        Raises:
            ModelError: weights in half precision, which would stay where they are: a step of
                1 − τ is less than their rounding. Autocast keeps weights in float32.
        """
        pairs = list(zip(self.network.parameters(), network.parameters(), strict=True))
        half = next((kept.dtype for kept, _ in pairs if kept.dtype.itemsize < 4), None)
        if half is not None:
            raise ModelError(
                f"A moving average of weights in {half} would stand still: its steps are below "
                "their rounding. Load the encoder in float32; autocast computes in half precision."
            )
        for kept, new in pairs:
            kept.lerp_(new.to(kept), 1 - decay)


def scheduled_decay(decay: float, schedule: Schedule, progress: float) -> float:
    """Return τ at ``progress``, the part of the training that is done, 0 to 1.

    ``"constant"`` is τ all the time; ``"cosine"`` rises from τ to 1, where the target stands still:
    1 − (1 − τ) (cos(π · progress) + 1) / 2.

    >>> scheduled_decay(0.9, "cosine", 0.0), scheduled_decay(0.9, "cosine", 1.0)
    (0.9, 1.0)
    """
    check_choice("schedule", schedule, get_args(Schedule))
    check_number("progress", progress, below=1 + 1e-9)
    if schedule == "constant":
        return decay
    return 1 - (1 - decay) * (math.cos(math.pi * progress) + 1) / 2
