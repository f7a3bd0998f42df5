"""Count sketches of gradients: every number goes, with a random sign, to one of few sums.

E⟨Sg, Su⟩ = ⟨g, u⟩ with a variance near (‖g‖²‖u‖² + ⟨g, u⟩²)/size, that of a dense random matrix
(Charikar, Chen and Farach-Colton 2002, https://doi.org/10.1007/3-540-45465-9_59). The gradient of
a layer is formed for the examples of a batch, and gone when it is summed up; that takes as much
arithmetic as the layer's forward pass. An embedding's is never formed.

Legend: b examples, t tokens, n numbers of a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from longarc.attribution.index.projection import generator_of


class Hashed:
    """A count sketch of the whole gradient; all parameters share the sums.

    Number x of a parameter goes to sum (j + h) mod size, where x = (a j + c) mod n, with a, c and h
    random: h, because the numbers of short parameters would else all share the first sums.

    Args:
        shapes: of the parameters, by name.
        size: sums, the numbers of a row; the error of an inner product falls with its root.
        seed: the signs depend on it and on the parameter's name, the places on the name alone.
        weights: multiply gradients before, and divide directions, entry by entry. The product is
            the same; its error is least where both come out alike. 0 leaves an entry out.
        like: a tensor of the type and on the device to compute with.

    >>> sketch = Hashed({"weight": (3, 4)}, size=256, like=torch.ones(1))
    >>> row = torch.zeros(1, 256)
    >>> sketch.add_outer(row, "weight", torch.ones(1, 1, 3), torch.ones(1, 1, 4))
    >>> row @ sketch.direction({"weight": torch.ones(3, 4)})
    tensor([12.])
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        size: int,
        *,
        seed: int = 0,
        weights: Mapping[str, Tensor] | None = None,
        like: Tensor,
    ):
        self.shapes, self.size, self.seed, self.like = shapes, size, seed, like
        self.sketches = size
        self.weights = weights or {}
        self._signs: dict[str, Tensor] = {}
        self._sorted: dict[str, tuple[Tensor, Tensor]] = {}

    def add_outer(self, into: Tensor, name: str, left: Tensor, right: Tensor) -> None:
        """See :class:`~longarc.attribution.index.projection.Projection`."""
        each = torch.bmm(left.to(self.like).transpose(1, 2), right.to(self.like))
        self.add_vector(into, name, each.flatten(1))

    def add_lookup(self, into: Tensor, name: str, index: Tensor, right: Tensor) -> None:
        """See :class:`~longarc.attribution.index.projection.Projection`."""
        values = right.to(self.like)
        if name in self.weights:
            values = values * self.weights[name][index].to(values)
        self._scatter(into, name, index, values)

    def add_vector(self, into: Tensor, name: str, values: Tensor) -> None:
        """Numbers are put in the order of their places, so that all are summed at once."""
        if name not in self._sorted:
            signs = self._signs_of(name)
            if name in self.weights:
                signs = signs * self.weights[name].flatten().to(signs)
            order = self._order(name)
            self._sorted[name] = order, signs[order]
        order, signs = self._sorted[name]
        self._sum(into, name, values.to(self.like).index_select(1, order).mul_(signs))

    def direction(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See :class:`~longarc.attribution.index.projection.Projection`."""
        into = torch.zeros(1, self.size, dtype=self.like.dtype, device=self.like.device)
        for name, part in parts.items():
            part = part.to(self.like)
            if (weights := self.weights.get(name)) is not None:
                part = torch.where(weights.to(part) > 0, part / weights.to(part), 0.0)
            part = part.view(len(part), -1) if part.ndim else part.view(1, 1)
            used = part.any(dim=1).nonzero()[:, 0]  # of an embedding, the rows of few tokens
            if 2 * len(used) < len(part):
                self._scatter(into, name, used[None], part[used][None])
                continue
            signed = part.flatten() * self._signs_of(name)
            self._sum(into, name, signed[self._order(name)][None])
        return into[0]

    def scale(self, name: str) -> Tensor | float:
        """See :class:`~longarc.attribution.index.projection.Projection`."""
        return self.weights[name].to(self.like) if name in self.weights else 1.0

    def _sum(self, into: Tensor, name: str, values: Tensor) -> None:
        """The j-th number of each row goes to sum (j + h) mod size."""
        whole = values.shape[1] // self.size * self.size
        sums = values[:, :whole].view(len(values), -1, self.size).sum(dim=1)
        rest = values[:, whole:]
        sums[:, : rest.shape[1]].add_(rest)
        into.add_(sums.roll(self._line(name)[3], dims=1))

    def _scatter(self, into: Tensor, name: str, index: Tensor, values: Tensor) -> None:
        """Rows of a matrix: (b, t) which, (b, t, cols) their numbers."""
        a, c, n, h = self._line(name)
        cols = values.shape[-1]
        at = index[..., None] * cols + torch.arange(cols, device=index.device)
        place = ((at - c) % n * pow(a, -1, n) % n + h) % self.size
        values = values * self._signs_of(name)[at]
        into.scatter_add_(1, place.flatten(1), values.flatten(1))

    def _order(self, name: str) -> Tensor:
        a, c, n, _ = self._line(name)
        return (torch.arange(n, device=self.like.device) * a + c) % n

    def _line(self, name: str) -> tuple[int, int, int, int]:
        """a, c, n and h; a has no factor in common with n, so that every number has its place."""
        n = torch.Size(self.shapes[name]).numel()
        generator = generator_of(0, f"{name}/places")
        h = int(torch.randint(self.size, (), generator=generator))
        while True:
            a, c = (1 + int(x) for x in torch.randint(n, (2,), generator=generator))
            if math.gcd(a, n) == 1:
                return a, c, n, h

    def _signs_of(self, name: str) -> Tensor:
        if name not in self._signs:
            n = torch.Size(self.shapes[name]).numel()
            generator = generator_of(self.seed, f"{name}/signs")
            drawn = torch.randint(2, (n,), generator=generator, dtype=torch.int8)
            self._signs[name] = drawn.to(self.like) * 2 - 1
        return self._signs[name]
