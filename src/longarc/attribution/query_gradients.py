"""Values of queries and their gradients, of several in one pass through the model.

A query's gradient is that of one example of a batch. Layer by layer it follows from what entered
the layer and from the gradient of what left it, so queries of one shape go through together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longarc.attribution.layer_gradients import LAYERS, Outer, Part, gradient_of
from longarc.attribution.products import hooked, rows_apart
from longarc.attribution.query import Query
from longarc.errors import ModelError
from longarc.training.recording.replay import logits_of

NUMBERS = 100_000_000
"""Numbers that the gradients of the queries of a batch may have together."""

TOGETHER = 128
"""Queries in a batch, at most."""


class QueryGradients:
    """Queries, in groups that share a pass.

    Where the model's layers are linear, embeddings and norms, the gradient of an embedding is
    kept for the rows alone that the queries look up: of a vocabulary these are few, and no step
    changes which.

    Args:
        model: is set to evaluation when asked, and its parameters are taken as they stand.
        queries: in any order.
        parameters: whose gradients are asked for, by name.

    Attributes:
        queries: in the order of the groups.
        order: the place that each had.
        groups: ranges of ``queries``.
        rows: of an embedding's weight, by name, the rows that count; of others all do.
    """

    def __init__(
        self, model: nn.Module, queries: Sequence[Query], parameters: Mapping[str, nn.Parameter]
    ):
        self.model, self.parameters = model, parameters
        kinds: dict[Any, list[int]] = {}
        for i, query in enumerate(queries):
            kinds.setdefault(_kind(query, i), []).append(i)
        size = sum(
            parameter.numel()
            for name, parameter in parameters.items()
            if not isinstance(_holder(model, name), nn.Embedding)
        )
        together = max(1, min(TOGETHER, NUMBERS // max(size, 1)))
        self.order = [i for kind in kinds.values() for i in kind]
        self.queries = [queries[i] for i in self.order]
        self.groups: list[range] = []
        first = 0
        for kind in kinds.values():
            for start in range(0, len(kind), together):
                number = min(together, len(kind) - start)
                self.groups.append(range(first, first + number))
                first += number
        self.modules = _modules(model, parameters)
        self.rows: dict[str, Tensor] = {}
        self.places: dict[str, Tensor] = {}
        if self.modules is not None and not self._layers_serve():
            self.modules = None
        if self.modules is None:
            self.groups = [range(q, q + 1) for q in range(len(self.queries))]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a query's gradient with respect to a parameter."""
        shape = tuple(self.parameters[name].shape)
        return (len(self.rows[name]), *shape[1:]) if name in self.rows else shape

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Of a tensor of a parameter's shape, what corresponds to a query's gradient."""
        if name not in self.rows:
            return whole
        return whole[self.rows[name].to(whole.device)]

    def whole(self, name: str, parts: Tensor) -> Tensor:
        """(Q, …) of a parameter's own shape; what no query looks up is 0."""
        if name not in self.rows:
            return parts
        found = parts.new_zeros(len(parts), *self.parameters[name].shape)
        return found.index_copy_(1, self.rows[name], parts)

    @torch.no_grad()
    def values(self) -> list[float]:
        """Of all queries at the present parameters, without dropout, in the model's precision."""
        return [float(v) for group in self.groups for v in self._values(group)]

    def gradients(self, some: Sequence[int]) -> dict[str, Tensor]:
        """(k, …) for k queries of one group; a parameter that no query reached is missing."""
        if self.modules is None:
            names = list(self.parameters)
            (value,) = self._values(some)
            each = torch.autograd.grad(
                value, [self.parameters[n] for n in names], allow_unused=True
            )
            return {n: g[None] for n, g in zip(names, each, strict=True) if g is not None}
        found = self._by_layers(some)
        if found is None:
            raise ModelError(
                "a layer of the model sees other numbers of rows at other times, so that gradients "
                "of several queries cannot be told apart. Ask one query at a time."
            )
        return found

    def _values(self, some: Sequence[int]) -> list[Tensor]:
        self.model.eval()
        queries = [self.queries[q] for q in some]
        inputs = dict(queries[0].inputs)
        if len(queries) > 1:
            for name, value in inputs.items():
                if isinstance(value, Tensor) and value.ndim:
                    inputs[name] = torch.cat([query.inputs[name] for query in queries])
        logits = logits_of(self.model(**inputs))
        return [query.value(z) for query, z in zip(queries, logits, strict=True)]

    def _by_layers(self, some: Sequence[int]) -> dict[str, Tensor] | None:
        """None where a layer's first axis is not the queries."""
        assert self.modules is not None
        found: dict[str, Tensor] = {}
        odd = False

        def take(module: nn.Module, x: Tensor, gradient: Tensor) -> None:
            nonlocal odd
            if len(x) != len(gradient) or len(x) != len(some):
                odd = True
                return
            for own, name in self.modules[module].items():  # type: ignore[index]
                part = gradient_of(module, own, x, gradient)
                each = _whole(part, module, self.places.get(name))
                found[name] = found[name] + each if name in found else each

        with hooked(self.model, self.modules, take, freeze=True), rows_apart(self.model):
            total = torch.stack(self._values(some)).sum()
            if total.requires_grad:
                total.backward()
        return None if odd else found

    def _layers_serve(self) -> bool:
        """Find the rows of embeddings, and compare the first group's sum with autograd's."""
        assert self.modules is not None
        seen: dict[str, list[Tensor]] = {}
        holders: dict[str, int] = {}
        for module, owns in self.modules.items():
            for name in owns.values():
                holders[name] = holders.get(name, 0) + 1
                if isinstance(module, nn.Embedding):
                    seen[name] = []

        def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
            for name in self.modules[module].values():  # type: ignore[index]
                seen[name].append(inputs[0].unique())

        handles = [
            module.register_forward_pre_hook(look)
            for module in self.modules
            if isinstance(module, nn.Embedding)
        ]
        try:
            self.values()
        finally:
            for handle in handles:
                handle.remove()
        for name, indices in seen.items():
            if holders[name] == 1 and indices:
                rows = torch.cat(indices).unique()
                place = rows.new_full((len(self.parameters[name]),), -1)
                place[rows] = torch.arange(len(rows), device=rows.device)
                self.rows[name], self.places[name] = rows, place
        found = self._by_layers(self.groups[0])
        if found is not None:
            total = torch.stack(self._values(self.groups[0])).sum()
            names = list(self.parameters)
            sums = torch.autograd.grad(
                total, [self.parameters[n] for n in names], allow_unused=True
            )
            if self._agree(found, dict(zip(names, sums, strict=True))):
                return True
        self.rows, self.places = {}, {}
        return False

    def _agree(self, found: Mapping[str, Tensor], sums: Mapping[str, Tensor | None]) -> bool:
        """Whether the queries' gradients add up to the whole's, within rounding.

        Some are rounding alone, such as those of the keys' biases in attention.
        """
        sizes = {n: float(each.flatten(1).norm(dim=1).sum()) for n, each in found.items()}
        rounding = 1e-6 * max(sizes.values(), default=0.0)
        for name, total in sums.items():
            if name not in found:
                if total is not None and float(total.norm()) > rounding:
                    return False
                continue
            there = 0.0 if total is None else self.part(name, total)
            off = float((found[name].sum(dim=0) - there).norm())
            if off > 1e-3 * sizes[name] + rounding:
                return False
        return True


def _holder(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _kind(query: Query, number: int) -> Any:
    """Queries of one kind can share a batch."""
    kind = []
    for name, value in sorted(query.inputs.items()):
        if isinstance(value, Tensor) and value.ndim and len(value) == 1:
            kind.append((name, tuple(value.shape), value.dtype))
        else:
            return number  # of its own
    return tuple(kind)


def _modules(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[nn.Module, dict[str, str]] | None:
    """The modules that hold the parameters: own name → name; None with one of another kind."""
    names = {parameter: name for name, parameter in parameters.items()}
    found: dict[nn.Module, dict[str, str]] = {}
    for module in model.modules():
        for own, parameter in module._parameters.items():
            if parameter is None or parameter not in names:
                continue
            if type(module) not in LAYERS:
                return None
            found.setdefault(module, {})[own] = names[parameter]
    return found


def _whole(part: Part, module: Any, place: Tensor | None) -> Tensor:
    """(k, …) of the parameter's shape, or of an embedding's rows that have a place."""
    if isinstance(part, Tensor):
        return part
    if isinstance(part, Outer):
        return torch.bmm(part.left.transpose(1, 2), part.right)
    (index, gradient), rows = part, len(module.weight)
    if place is not None:
        index, rows = place[index], int(place.max()) + 1
        if bool((index < 0).any()):
            raise ModelError("a query looks up other rows of an embedding than it did at first.")
    offset = rows * torch.arange(len(index), device=index.device)[:, None]
    found = gradient.new_zeros(len(index) * rows, gradient.shape[-1])
    found.index_add_(0, (index + offset).flatten(), gradient.flatten(0, 1))
    return found.view(len(index), rows, -1)
