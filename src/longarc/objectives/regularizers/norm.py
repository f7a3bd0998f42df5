"""The length of a gradient that is a list of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm over all of them, a scalar.

    >>> norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    return torch.stack([tensor.norm() for tensor in tensors]).norm()
