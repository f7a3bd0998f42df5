"""Large batches in little memory: the encoder runs in chunks, and once more for their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longarc.errors import DataError


def encode_in_chunks(encoder: nn.Module, view: Any, size: int) -> Tensor:
    """Return the codes (b, d) of a view, holding the activations of ``size`` examples at a time.

    The loss of a contrastive batch needs all codes but not all activations. The chunks are encoded
    without them; when the gradient of the codes arrives, each chunk is encoded again, with the
    same random state, and its gradient goes on into the encoder. The result is that of the whole
    batch, for one forward pass more. In the usual call there is nothing else to do: backward,
    gradient scaling, accumulation and autocast work as ever.

    Whatever looks at other examples must come after the encoder. Batch normalisation *in* it sees
    a chunk, and takes note of each twice.

    Args:
        encoder: called with each chunk; returns (chunk, d).
        view: a tensor, or a mapping, list or tuple of tensors, all with the b examples along the
            first dimension.
        size: examples in a chunk.

    Raises:
        DataError: a view that cannot be cut so.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup" (arXiv 2101.06983).

    >>> encoder = nn.Linear(3, 2)
    >>> view = torch.randn(5, 3)
    >>> torch.allclose(encode_in_chunks(encoder, view, size=2), encoder(view))
    True
    """
    number = _count(view)
    parts = [_part(view, start, start + size) for start in range(0, number, size)]
    return torch.cat([_encode(encoder, part) for part in parts])


def _encode(encoder: nn.Module, part: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return encoder(part)
    return checkpoint(encoder, part, use_reentrant=False)  # pyright: ignore[reportReturnType]


def _tensors(view: Any) -> list[Tensor]:
    held = [view] if isinstance(view, Tensor) else view
    held = list(held.values()) if isinstance(held, Mapping) else held
    if (
        not isinstance(held, list | tuple)
        or not held
        or any(not isinstance(value, Tensor) or value.ndim == 0 for value in held)
    ):
        raise DataError(
            f"A view of type {type(view).__name__} cannot be cut in chunks. Expected a tensor, or "
            "a mapping, list or tuple of tensors, with the examples along the first dimension."
        )
    return list(held)


def _count(view: Any) -> int:
    numbers = {len(value) for value in _tensors(view)}
    if len(numbers) > 1:
        raise DataError(
            f"The tensors of a view have {' and '.join(map(str, sorted(numbers)))} examples along "
            "the first dimension; expected the same number in all."
        )
    return numbers.pop()


def _part(view: Any, start: int, end: int) -> Any:
    if isinstance(view, Tensor):
        return view[start:end]
    if isinstance(view, Mapping):
        return {name: value[start:end] for name, value in view.items()}
    parts = [value[start:end] for value in view]
    return parts if isinstance(view, list) else tuple(parts)
