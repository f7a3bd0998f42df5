"""A table of n trained positions that gives up to n²."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class HierarchicalPositions(nn.Embedding):
    """n trained positions read as n²: row (i − 1) n + j is α u_i + (1 − α) u_j.

    With u_i = (p_i − α p_1) / (1 − α) that is p_j + α/(1 − α) · (p_i − p_1), which is how it is
    computed: block i moves all of the trained vectors p_1 … p_n by one vector. Block 1 moves them
    by none, so the first n positions are what they were. With another ``origin`` o the vector is
    α/(1 − α) · (p_{o+i−1} − p_o), for n − o + 1 blocks.

    The parameter is the trained table itself, with its name and shape; vectors are computed for the
    positions asked for, and gradients flow to all trained vectors that made them. Rows for padding,
    the first ``offset``, stay as they are.

    Args:
        trained: the table, (offset + n, d). Its parameter is taken over, not copied.
        max_length: positions that can be asked for, from n to n².
        alpha: α, the share of the coarse position.
        offset: rows before the first position; 2 in RoBERTa's family.
        origin: o, the trained position that blocks are measured from.

    ``forward`` takes ids of any shape below offset + max_length, and returns (…, d) in the table's
    type; a larger id is an IndexError, as with any table.

    >>> table = nn.Embedding.from_pretrained(torch.tensor([[1.0], [4.0], [10.0]]))
    >>> HierarchicalPositions(table, 9, alpha=0.4)(torch.arange(9)).view(3, 3)
    tensor([[ 1.,  4., 10.],
            [ 3.,  6., 12.],
            [ 7., 10., 16.]])
    """

    def __init__(
        self,
        trained: nn.Embedding,
        max_length: int,
        *,
        alpha: float,
        offset: int = 0,
        origin: int = 1,
    ):
        rows, width = trained.weight.shape
        super().__init__(rows, width, trained.padding_idx, _weight=trained.weight.detach())
        self.weight = trained.weight  # the same object: an optimiser may hold it already
        self.train(trained.training)
        self.max_length, self.alpha, self.offset = max_length, alpha, offset
        self.origin = origin

    @property
    def trained(self) -> int:
        """n, the number of trained positions."""
        return self.num_embeddings - self.offset

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (nn.Embedding's name)
        """Vectors (…, d) of position ids (…)."""
        blocks = -(-self.max_length // self.trained)
        block = torch.div(input - self.offset, self.trained, rounding_mode="floor").clamp(min=0)
        fine = functional.embedding(input - block * self.trained, self.weight, self.padding_idx)
        # Past the end look up a block that does not exist: it fails as a row out of range does.
        block = torch.where(input < self.offset + self.max_length, block, blocks)
        return fine + functional.embedding(block, self._shifts(blocks))

    def _shifts(self, blocks: int) -> Tensor:
        """Each block's vector, (blocks, d): as few rows as there are blocks."""
        first = self.offset + self.origin - 1
        exact = self.weight[first : first + blocks]
        exact = exact.to(torch.promote_types(exact.dtype, torch.float32))
        shifts = self.alpha / (1 - self.alpha) * (exact[1:] - exact[0])
        # The first row is a constant, not p_o − p_o: no round-off in short documents' gradients.
        return functional.pad(shifts, (0, 0, 1, 0)).to(self.weight.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` says of it."""
        return (
            f"{super().extra_repr()}, max_length={self.max_length}, "
            f"alpha={self.alpha}, origin={self.origin}"
        )
