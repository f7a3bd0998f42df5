"""Negative cosine similarity, the distance of SimSiam and BYOL."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return −mean_i cos(p_i, t_i) for predictions and targets (b, p): −1 where all agree.

    Computed in float32 at least, also under autocast: in bfloat16 a cosine near 1 has steps of
    1/256. It has gradients for both arguments; the caller detaches what is not to learn.

    Source: Chen & He 2021, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566),
    eq. 1. BYOL's ‖p/‖p‖ − t/‖t‖‖² (Grill et al. 2020, arXiv 2006.07733, eq. 2) is 2 more than
    twice this.

    >>> import torch
    >>> negative_cosine(torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0]] * 2))
    tensor(-0.8536)
    """
    return -F.cosine_similarity(at_least_float32(prediction), at_least_float32(target)).mean()


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32, anything wider as it is."""
    return values if values.dtype.itemsize >= 4 else values.float()
