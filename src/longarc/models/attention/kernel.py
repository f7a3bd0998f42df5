"""What every attention kernel is: tensors in, tensors out, one module for each attention layer.

Shapes, here and in all of ``models/attention``: b documents, h heads, n tokens, d width of a head,
dv width of a value, m random or learnt features, c clusters.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from longarc.errors import OptionError


class AttentionKernel(nn.Module):
    """A layer's attention: what stands in for softmax(scale · q kᵀ) v.

    A kernel knows the number of heads and their width, and nothing of models. Its constructor's
    other keyword arguments are its options, those of :func:`longarc.set_attention`. What it draws
    at random follows from ``seed`` alone and is not in the state dict; what it learns is.

    Args:
        heads: h.
        width: d, of queries and keys.
        seed: of everything random in the kernel; differs from layer to layer.
    """

    causal: ClassVar[bool] = False
    """Whether ``forward`` takes ``causal=True``."""

    def __init__(self, heads: int, width: int, *, seed: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.width = width
        self.seed = seed

    def refuse_causal(self, causal: bool) -> None:
        """Raise OptionError if ``causal`` is asked of a kernel that has no such form."""
        if causal and not self.causal:
            raise OptionError(
                f"{type(self).__name__} attention has no causal form. Drop causal=True, or use the "
                "performer or linear kernel."
            )

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
        """Attend; rows of padding may hold anything in the result, but nothing that is not finite.

        Args:
            query: (b, h, n, d).
            key: (b, h, n, d).
            value: (b, h, n, dv).
            mask: (b, n), true at the tokens that can be attended to; None for all. A document
                without any gives zeros.
            scale: of the products; d^−½ by default.
            dropout: probability that a weight of the attention matrix is dropped, where the kernel
                has weights to drop.
            causal: whether a token sees itself and earlier ones only.

        Returns:
            (b, h, n, dv), in the type of ``value``. Sums over tokens are float32 at least.
        """
        raise NotImplementedError
