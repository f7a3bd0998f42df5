"""Per-example gradients in few numbers, so that inner products stay what they are on average.

:class:`Sketches` never forms a layer's gradient, which pays for layers thousands of units wide;
:class:`~longarc.attribution.index.hashed.Hashed` does, and errs less for its size.

The gradient of a matrix parameter is a sum over tokens of outer products, G = Σ_t l_t r_tᵀ: for a
linear layer of what came back at its output and what went in, for an embedding of an index and
what came back. With random signs P (rows, w) and Q (cols, w), PᵀGQ/w = Σ_t (Pᵀl_t)(Qᵀr_t)ᵀ/w needs
neither G nor a product of its size (LoGra, https://arxiv.org/abs/2405.13954), and
E⟨PᵀUQ, PᵀGQ⟩/w² = ⟨U, G⟩ for every U. One such sketch of width w errs by up to O(1/√w) where
gradients have few tokens, so several narrow ones are averaged; how far they disagree is the error.
Sketches of all parameters are added up: together they are one of the whole gradient.

Legend: b examples, t tokens, S sketches, w their width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from longarc.errors import OptionError

Balance = Mapping[str, tuple[Tensor, ...]]
"""Parameter → positive factors of its rows and of its columns; for a vector of its entries."""


class Projection(Protocol):
    """Adds up parts of per-example gradients in rows of ``size`` numbers, (b, size).

    A row is ``sketches`` estimates side by side: of an inner product, each part gives 1/sketches.
    """

    size: int
    sketches: int

    def add_outer(self, into: Tensor, name: str, left: Tensor, right: Tensor) -> None:
        """Σ_t left_t right_tᵀ of a matrix parameter: (b, t, rows) and (b, t, cols)."""
        ...

    def add_lookup(self, into: Tensor, name: str, index: Tensor, right: Tensor) -> None:
        """The same where left_t is 1 at an index: (b, t) and (b, t, cols)."""
        ...

    def add_vector(self, into: Tensor, name: str, values: Tensor) -> None:
        """The gradient of a parameter with one axis: (b, n)."""
        ...

    def direction(self, parts: Mapping[str, Tensor]) -> Tensor:
        """(size,), whose inner product with a row is that of the parts with the gradient."""
        ...

    def scale(self, name: str) -> Tensor | float:
        """What gradients of a parameter are multiplied with, entry by entry."""
        ...


class Sketches:
    """Random sketches of the whole gradient.

    Args:
        shapes: of the parameters, by name.
        size: numbers a row, S w²; the error of an inner product falls with its root.
        width: w. Narrow sketches err less for the same size and take more arithmetic, 2S w for
            each input and output of a layer; 8 is a third of the forward pass at 512 numbers.
        seed: the signs depend on it and on the parameter's name, on nothing else.
        balance: multiplies gradients before, and divides directions: the product is the same, and
            its error less where it makes both of even size.
        like: a tensor of the type and on the device to compute with.

    Raises:
        OptionError: a size that is no multiple of w², or of fewer than two sketches; a parameter
            of more axes than two.

    >>> sketch = Sketches({"weight": (3, 4)}, size=512, like=torch.ones(1))
    >>> row = torch.zeros(1, 512)
    >>> left, right = torch.ones(1, 1, 3), torch.ones(1, 1, 4)
    >>> sketch.add_outer(row, "weight", left, right)
    >>> (row @ sketch.direction({"weight": torch.ones(3, 4)})).round(decimals=1)  # about 12
    tensor([...])
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        size: int,
        *,
        width: int = 8,
        seed: int = 0,
        balance: Balance | None = None,
        like: Tensor,
    ):
        self.size, self.width, self.seed = size, width, seed
        self.sketches = size // width**2
        if size % width**2 or self.sketches < 2:
            raise OptionError(
                f"the dimensions of an index must be a multiple of {width**2}, and two or more; "
                f"found {size}."
            )
        self.shapes, self.balance, self.like = shapes, balance or {}, like
        for name, shape in shapes.items():
            if len(shape) > 2:
                raise OptionError(
                    f"{name} has {len(shape)} axes; expected a vector or a matrix. Leave it out of "
                    "the index with parameters=."
                )
        self._known: dict[str, tuple[Tensor, ...]] = {}

    def add_outer(self, into: Tensor, name: str, left: Tensor, right: Tensor) -> None:
        """See :class:`Projection`."""
        rows, cols = self._scaled(name)
        self._add(into, left.to(rows) @ rows, right.to(cols) @ cols)

    def add_lookup(self, into: Tensor, name: str, index: Tensor, right: Tensor) -> None:
        """See :class:`Projection`."""
        rows, cols = self._scaled(name)
        self._add(into, rows[index], right.to(cols) @ cols)

    def _add(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        b, t, _ = left.shape
        parts = (b, t, self.sketches, self.width)
        each = torch.einsum("btsp,btsq->bspq", left.view(parts), right.view(parts))
        into.add_(each.reshape(b, self.size))

    def add_vector(self, into: Tensor, name: str, values: Tensor) -> None:
        """Each entry goes, with a sign, to one number of every sketch (a count sketch)."""
        place, signs, factor = self._scaled(name)
        spread = (values.to(factor) * factor).T[:, None] * signs[:, :, None]  # (n, S, b)
        sums = torch.zeros(self.size, len(values), dtype=into.dtype, device=into.device)
        into.add_(sums.index_add_(0, place.flatten(), spread.flatten(0, 1)).T)

    def direction(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Projection`."""
        into = torch.zeros(1, self.size, dtype=self.like.dtype, device=self.like.device)
        for name, part in parts.items():
            if part.ndim < 2:
                place, signs, factor = self._scaled(name)
                spread = (part.reshape(-1).to(factor) / factor)[:, None] * signs
                into[0].index_add_(0, place.flatten(), spread.flatten())
                continue
            rows, cols = self._signs(name)
            if name in self.balance:
                down, across = (factor.to(rows) for factor in self.balance[name])
                part = part.to(rows) / down[:, None] / across
            used = part.any(dim=1).nonzero()[:, 0]  # of an embedding, the rows of few tokens
            if len(used) < len(part):
                rows, part = rows[used], part[used]
            left = (rows.T @ part).view(self.sketches, self.width, -1)
            right = cols.view(-1, self.sketches, self.width).permute(1, 0, 2)
            into.add_((left @ right).reshape(1, -1))
        return into[0]

    def scale(self, name: str) -> Tensor | float:
        """See :class:`Projection`."""
        if name not in self.balance:
            return 1.0
        factors = [factor.to(self.like) for factor in self.balance[name]]
        return factors[0] if len(factors) == 1 else factors[0][:, None] * factors[1]

    def _scaled(self, name: str) -> tuple[Tensor, ...]:
        """A matrix's signs with the balance on them; of a vector places, signs and balance."""
        if name not in self._known:
            if len(self.shapes[name]) < 2:
                self._known[name] = self._places(name)
            else:
                signs = self._signs(name)
                if name in self.balance:
                    both = zip(signs, self.balance[name], strict=True)
                    signs = tuple(each * factor.to(each)[:, None] for each, factor in both)
                self._known[name] = signs
        return self._known[name]

    def _signs(self, name: str) -> tuple[Tensor, ...]:
        """(rows, S w) and (cols, S w); the factor 1/(w √S) is in the first."""
        rows, cols = (
            self._draw(f"{name}/{side}", 2, (length, self.sketches * self.width))
            for side, length in zip(("rows", "cols"), self.shapes[name], strict=True)
        )
        factor = 1 / (self.width * self.sketches**0.5)
        return (rows * 2 - 1).to(self.like) * factor, (cols * 2 - 1).to(self.like)

    def _places(self, name: str) -> tuple[Tensor, ...]:
        """(n, S) where an entry goes, (n, S) its sign over √S, and the balance (n,)."""
        shape = (torch.Size(self.shapes[name]).numel(), self.sketches)
        each = self.width**2
        place = self._draw(f"{name}/place", each, shape)
        place = place + each * torch.arange(self.sketches)
        signs = (self._draw(f"{name}/sign", 2, shape) * 2 - 1).to(self.like)
        factor = self.balance[name][0] if name in self.balance else torch.ones(shape[0])
        return place.to(self.like.device), signs / self.sketches**0.5, factor.to(self.like)

    def _draw(self, what: str, below: int, shape: tuple[int, ...]) -> Tensor:
        """Whole numbers from 0; on the CPU, so that every device has the same."""
        return torch.randint(below, shape, generator=generator_of(self.seed, what))


class Whole:
    """Every number of the gradient: for small models, and to check the sketches by."""

    sketches = 1

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, like: Tensor):
        self.shapes, self.like = shapes, like
        self._at = dict(zip(shapes, _offsets(shapes), strict=True))
        self.size = sum(torch.Size(shape).numel() for shape in shapes.values())

    def add_outer(self, into: Tensor, name: str, left: Tensor, right: Tensor) -> None:
        """See :class:`Projection`."""
        each = torch.bmm(left.to(into).transpose(1, 2), right.to(into))
        self._place(into, name).add_(each.flatten(1))

    def add_lookup(self, into: Tensor, name: str, index: Tensor, right: Tensor) -> None:
        """See :class:`Projection`."""
        each = self._place(into, name).view(len(into), *self.shapes[name])
        every = torch.arange(len(into), device=into.device)[:, None].expand_as(index)
        each.index_put_((every, index), right.to(into), accumulate=True)

    def add_vector(self, into: Tensor, name: str, values: Tensor) -> None:
        """See :class:`Projection`."""
        self._place(into, name).add_(values.to(into))

    def direction(self, parts: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Projection`."""
        into = torch.zeros(1, self.size, dtype=self.like.dtype, device=self.like.device)
        for name, part in parts.items():
            self._place(into, name).copy_(part.reshape(1, -1))
        return into[0]

    def scale(self, name: str) -> float:
        """See :class:`Projection`."""
        return 1.0

    def _place(self, into: Tensor, name: str) -> Tensor:
        at = self._at[name]
        return into[:, at : at + torch.Size(self.shapes[name]).numel()]


def generator_of(seed: int, what: str) -> torch.Generator:
    """Random numbers that depend on a seed and a text; on the CPU, so that every device agrees."""
    digest = hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def _offsets(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
    at = 0
    for shape in shapes.values():
        yield at
        at += torch.Size(shape).numel()


def balanced(scale: Tensor) -> tuple[Tensor, ...]:
    """Factors whose outer product is as near as it can be, in logarithms, to √scale.

    Entries that are 0, where nothing ever moved, do not count.

    >>> rows, cols = balanced(torch.tensor([[4.0, 16.0], [16.0, 64.0]]))
    >>> rows[:, None] * cols
    tensor([[2.0000, 4.0000],
            [4.0000, 8.0000]])
    """
    if scale.ndim < 2:
        flat = scale.reshape(-1)
        return (torch.where(flat > 0, flat, 1.0).sqrt(),)
    counted = scale > 0
    logs = torch.where(counted, scale, 1.0).log() / 2
    down, across = counted.sum(dim=1).clamp(min=1), counted.sum(dim=0).clamp(min=1)
    mean = logs.sum() / counted.sum().clamp(min=1)
    rows = logs.sum(dim=1) / down
    # What the rows leave: exact where every entry counts, one step of fitting where some do not.
    cols = ((logs - rows[:, None]) * counted).sum(dim=0) / across
    shift = (mean - rows.mean()) / 2
    return (rows + shift).exp(), (cols - shift).exp()
