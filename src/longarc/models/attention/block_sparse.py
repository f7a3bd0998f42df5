"""Exact attention over a sparse pattern: a window, global tokens and a few random blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from longarc.models.attention.chosen_blocks import far_blocks
from longarc.models.attention.window import (
    Far,
    attend_near,
    num_blocks,
    window_pattern,
)
from longarc.models.attention.windowed import WindowedKernel
from longarc.options import check_whole


class BlockSparse(WindowedKernel):
    """Softmax attention over near, global and randomly drawn tokens; the others do not exist.

    The text is cut into blocks of ``window`` tokens. A query sees its own block, the two beside it,
    the first ``num_global`` tokens, and ``num_random`` further blocks, drawn for each head and
    block of queries. The global tokens see everything. The cost is
    O(n · ((3 + num_random) · window + num_global)).

    The rest of a document is cut into ``num_random`` equal stretches and one block is drawn from
    each, so that the blocks differ and are spread over the text. The draw follows from ``seed``
    and the document's own length, however much it is padded. A text of up to two blocks is exact.

    Args:
        window: tokens of a block, ≥ 1. 64 by default, the paper's.
        num_global: g ≥ 0. 1 by default, the [CLS] of BERT's relatives; the paper has two blocks.
        num_random: random blocks, ≥ 0. 3 by default, the paper's.

    Raises:
        OptionError: a value out of range.

    Source: Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences" (arXiv 2007.14062).

    >>> import torch
    >>> x = torch.randn(1, 2, 12, 8)
    >>> kernel = BlockSparse(2, 8, window=2, num_random=1)
    >>> kernel(x, x, x).shape
    torch.Size([1, 2, 12, 8])
    >>> kernel.pattern(12)[0].sum(dim=1)  # of the first head: what each query sees
    tensor([12,  6,  8,  8,  9,  9,  8,  8,  9,  9,  7,  7])
    """

    def __init__(
        self,
        heads: int,
        width: int,
        *,
        seed: int = 0,
        window: int = 64,
        num_global: int = 1,
        num_random: int = 3,
    ) -> None:
        super().__init__(heads, width, seed=seed, window=window, num_global=num_global)
        self.num_random = check_whole("num_random", num_random)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """Attend, as in :class:`~longarc.models.attention.windowed.WindowedKernel`."""
        far = self._random_blocks(key, value, mask) if self.num_random else None
        return attend_near(
            query, key, value,
            window=self.window, num_global=self.num_global, mask=mask, scale=scale,
            dropout=dropout, far=far,
        )  # fmt: skip

    def pattern(self, tokens: int) -> Tensor:
        """Which key each query of a text of n tokens sees, (h, n, n); for looking and testing."""
        seen = window_pattern(tokens, self.window, self.num_global).repeat(self.heads, 1, 1)
        if tokens <= 2 * self.window:
            return torch.ones_like(seen)
        length = torch.tensor([num_blocks(tokens, self.window)])
        drawn, is_drawn = self._draw(length, int(length))
        for block, head, slot in is_drawn[0].nonzero().tolist():
            rows = slice(block * self.window, (block + 1) * self.window)
            first = int(drawn[0, block, head, slot]) * self.window
            seen[head, rows, first : first + self.window] = True
        return seen

    def _draw(self, lengths: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
        """The blocks drawn for each block of queries, (b, nb, h, r), and whether there was one.

        Args:
            lengths: blocks of each document, (b,).
            blocks: nb, of the longest.
        """
        generator = torch.Generator().manual_seed(self.seed)
        # Drawn in order of the blocks: a longer text adds to the draw of a shorter one.
        uniform = torch.rand(
            blocks, self.heads, self.num_random, generator=generator, dtype=torch.float64
        ).to(lengths.device)
        index = torch.arange(blocks, device=lengths.device)
        length = lengths[:, None]
        first = (index - 1).clamp(min=0)  # the blocks of its window: first to last
        last = torch.minimum(index + 1, length - 1)
        num_near = (last - first + 1).clamp(min=0)
        others = (length - num_near)[..., None, None]
        slot = torch.arange(self.num_random, device=lengths.device)
        start, stop = (others * s // self.num_random for s in (slot, slot + 1))
        drawn = start + ((stop - start) * uniform).long().clamp(max=blocks)
        is_drawn = (stop > start) & (index < length)[..., None, None]
        drawn = drawn + num_near[..., None, None] * (drawn >= first[:, None, None])
        return drawn.clamp(0, blocks - 1), is_drawn.expand(drawn.shape)

    def _random_blocks(self, key: Tensor, value: Tensor, mask: Tensor | None) -> Far:
        b, _, n, _ = key.shape
        blocks = num_blocks(n, self.window)
        lengths = torch.full((b,), blocks, device=key.device)
        if mask is not None:
            position = torch.arange(n, device=key.device)
            lengths = torch.where(mask.bool(), position, -1).amax(dim=-1) // self.window + 1
        drawn, is_drawn = self._draw(lengths, blocks)
        return far_blocks(
            key, value, drawn, is_drawn,
            window=self.window, num_global=self.num_global, mask=mask,
        )  # fmt: skip
