"""What the kernels with a window have in common: they go by where a token stands in its text."""

from __future__ import annotations

import torch
from torch import Tensor

from longarc.models.attention.kernel import AttentionKernel
from longarc.models.attention.window import attend_all, or_default, zero_padding
from longarc.options import check_whole


class WindowedKernel(AttentionKernel):
    """A kernel whose blocks and global tokens are counted from a document's first token.

    Padding may stand on either side, or among the tokens: it is moved behind them, so that the
    result is that of the document alone. A text of up to two blocks is attended to exactly.

    Args:
        window: tokens of a block, ≥ 1.
        num_global: the first so many tokens of a document, ≥ 0, are seen by all and see all.
    """

    def __init__(
        self, heads: int, width: int, *, seed: int = 0, window: int = 64, num_global: int = 1
    ) -> None:
        super().__init__(heads, width, seed=seed)
        self.window = check_whole("window", window, at_least=1)
        self.num_global = check_whole("num_global", num_global)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> Tensor:
        """Attend; shapes as in :class:`AttentionKernel`. Dropout is that of the seen weights."""
        self.refuse_causal(causal)
        scale = or_default(scale, self.width)
        query, key, value = zero_padding(mask, query, key, value)
        if key.shape[2] <= 2 * self.window:
            return attend_all(query, key, value, mask=mask, scale=scale, dropout=dropout)
        order = None if mask is None else tokens_first(mask.bool())
        if mask is None or order is None:
            return self.attend(query, key, value, mask=mask, scale=scale, dropout=dropout)
        front, back = order
        query, key, value = (take_tokens(x, front) for x in (query, key, value))
        out = self.attend(
            query, key, value, mask=mask.gather(1, front), scale=scale, dropout=dropout
        )
        return take_tokens(out, back)

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
        """Attend to more than two blocks; padding is zeros and stands behind the tokens."""
        raise NotImplementedError


def tokens_first(mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """The places of each document's tokens and then of its padding, and the way back, (b, n) each.

    None where they stand so already, as far as that can be seen at no cost: on other devices than a
    CPU the look would have to wait, and a document in order stays as it is.

    >>> tokens_first(torch.tensor([[False, False, True, True, True]]))
    (tensor([[2, 3, 4, 0, 1]]), tensor([[3, 4, 0, 1, 2]]))
    >>> tokens_first(torch.tensor([[True, True, False]]))
    """
    looks = mask.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and bool((mask[:, :-1] >= mask[:, 1:]).all()):
        return None
    front = (~mask).long().argsort(dim=1, stable=True)
    return front, front.argsort(dim=1)


def take_tokens(x: Tensor, places: Tensor) -> Tensor:
    """From (b, h, n, d) the tokens at ``places`` (b, n), with all their heads at once."""
    b, h, n, d = x.shape
    rows = places + n * torch.arange(b, device=x.device)[:, None]
    taken = x.transpose(1, 2).reshape(b * n, h * d).index_select(0, rows.flatten())
    return taken.view(b, n, h, d).transpose(1, 2)
