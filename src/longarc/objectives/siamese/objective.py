"""What the objectives share: an encoder of any kind, its projections, and what a step gives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longarc.errors import DataError, ModelError
from longarc.objectives.siamese.gradient_cache import encode_in_chunks
from longarc.options import check_whole


class SiameseOutput(NamedTuple):
    """The loss of a batch, and for a look at collapse what it was computed from, detached.

    Shapes: ``loss`` (), ``codes`` (2, b, d) of the encoder for both views, ``projections``
    (2, b, p).
    """

    loss: Tensor
    codes: Tensor
    projections: Tensor


class SiameseObjective(nn.Module):
    """Base of the objectives: an encoder, a projection head, and how a view goes through them.

    Args:
        encoder: called with one view, whatever that is, and returns the codes (b, d).
        projector: from (b, d) to (b, p), see ``projection_head``; None compares the codes
            themselves.
        chunk: examples that the encoder works on at a time, see ``encode_in_chunks``; None for all.
    """

    def __init__(
        self, encoder: nn.Module, projector: nn.Module | None = None, *, chunk: int | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Identity() if projector is None else projector
        self.chunk = None if chunk is None else check_whole("chunk", chunk, at_least=1)

    def encode(self, view: Any, encoder: nn.Module | None = None) -> Tensor:
        """Return the codes (b, d) of a view; by another encoder if one is given.

        Raises:
            ModelError: the encoder returns something else.
        """
        encoder = self.encoder if encoder is None else encoder
        codes = encoder(view) if self.chunk is None else encode_in_chunks(encoder, view, self.chunk)
        if not isinstance(codes, Tensor) or codes.ndim != 2:
            shape = f" of shape {tuple(codes.shape)}" if isinstance(codes, Tensor) else ""
            raise ModelError(
                f"The encoder returned a {type(codes).__name__}{shape}; expected codes (b, d), one "
                "vector an example. Wrap it in a module that pools what it gives."
            )
        return codes

    def encode_pair(self, first: Any, second: Any) -> tuple[Tensor, Tensor]:
        """Return the codes (b, d) of both views.

        Raises:
            DataError: the views have different numbers of examples.
        """
        codes = self.encode(first), self.encode(second)
        if codes[0].shape != codes[1].shape:
            raise DataError(
                f"The views have codes of shapes {tuple(codes[0].shape)} and "
                f"{tuple(codes[1].shape)}; expected the same examples in both, in the same order."
            )
        return codes


def output(
    loss: Tensor, codes: tuple[Tensor, ...], projections: tuple[Tensor, ...]
) -> SiameseOutput:
    """Put a step's results together, without graphs but the loss's."""
    return SiameseOutput(loss, torch.stack(codes).detach(), torch.stack(projections).detach())
