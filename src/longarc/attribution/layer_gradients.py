"""A layer's gradient for each example, from what entered it and the gradient of what left it.

Legend: b examples in the batch, n tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Outer(NamedTuple):
    """Σ_t left_t right_tᵀ of a matrix, not summed up: (b, n, rows) and (b, n, columns)."""

    left: Tensor
    right: Tensor


class Lookup(NamedTuple):
    """The same where left_t is 1 at an index: (b, n), and (b, n, columns)."""

    rows: Tensor
    right: Tensor


Part = Tensor | Outer | Lookup
"""The gradient of one parameter for each example: (b, …) of its shape, or what it is made of."""


def gradient_of(module: nn.Module, own: str, x: Tensor, gradient: Tensor) -> Part:
    """The gradient of a parameter of one of the ``LAYERS``, in the parameter's type.

    Args:
        own: the parameter's name in the module.
        x: what entered, (b, …).
        gradient: of what left, (b, …).

    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> gradient_of(layer, "bias", torch.ones(3, 4, 2), torch.ones(3, 4, 1)).tolist()
    [[4.0], [4.0], [4.0]]
    """
    return LAYERS[type(module)](module, own, x, gradient.to(getattr(module, own)))


def _linear(module: Any, own: str, x: Tensor, gradient: Tensor) -> Part:
    d = gradient.reshape(len(x), -1, gradient.shape[-1])
    if own == "bias":
        return d.sum(dim=1)
    return Outer(d, x.reshape(len(x), -1, x.shape[-1]).to(d))


def _embedding(module: Any, own: str, x: Tensor, gradient: Tensor) -> Part:
    if module.padding_idx is not None:
        gradient = gradient * (x != module.padding_idx)[..., None]
    return Lookup(x.reshape(len(x), -1), gradient.reshape(len(x), -1, gradient.shape[-1]))


def _norm(module: Any, own: str, x: Tensor, gradient: Tensor) -> Part:
    size = module.normalized_shape
    if own == "weight":
        x = x.to(gradient)
        if isinstance(module, nn.LayerNorm):
            plain = F.layer_norm(x, size, None, None, module.eps)
        else:
            plain = F.rms_norm(x, size, None, module.eps)
        gradient = gradient * plain
    dims = list(range(1, x.ndim - len(size)))
    return gradient.sum(dim=dims) if dims else gradient


LAYERS: dict[type, Callable[[Any, str, Tensor, Tensor], Part]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
}
"""The layers whose gradients can be taken apart."""
