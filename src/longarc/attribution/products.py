"""Inner products of every example's gradient with given directions, no gradient ever stored whole.

Legend: b examples in the batch, n tokens, Q directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from longarc.attribution.layer_gradients import LAYERS, Outer, Part, gradient_of
from longarc.attribution.quadrature import dots

Directions = Mapping[str, Tensor]
"""Name of a parameter → (Q, …), a direction for each query."""


def by_layers(
    model: nn.Module,
    directions: Directions,
    backward: Callable[[], Tensor],
    *,
    places: Mapping[str, Tensor] | None = None,
    freeze: bool = False,
) -> Tensor | None:
    """⟨U_q, g_i⟩ for all queries and examples, (Q, b), from one backward pass; None if it cannot.

    Each layer's per-example gradient follows from what entered the layer and from the gradient of
    what left it: for a linear layer Σ_t δ_it x_itᵀ. It is contracted with the directions as soon as
    it is formed, so memory is that of one layer. Linear layers, embeddings and norms are known; a
    model with other parameters, or with layers whose first axis is not the examples,
    needs :func:`by_passes`.

    Args:
        directions: of the parameters that count.
        backward: passes the batch through the model and back; returns the logits (b, …).
        places: of embeddings whose directions (Q, R, …) are of R rows alone: (rows,) the place of
            each row among these, or −1.
        freeze: leave out the gradients of the parameters, which are work of their own.
    """
    modules: dict[nn.Module, dict[str, Tensor]] = {}
    for module, own, direction in _places(model, directions):
        if type(module) not in LAYERS:
            return None
        modules.setdefault(module, {})[own] = direction
    rows = {
        model.get_submodule(name.rpartition(".")[0]): place
        for name, place in (places or {}).items()
    }
    pieces: list[Tensor] = []
    odd = False

    def take(module: nn.Module, x: Tensor, gradient: Tensor) -> None:
        nonlocal odd
        if len(x) != len(gradient):
            odd = True
        else:
            pieces.extend(
                _product(gradient_of(module, own, x, gradient), direction, rows.get(module))
                for own, direction in modules[module].items()
            )

    with hooked(model, modules, take, freeze=freeze), rows_apart(model):
        logits = backward()
    queries = len(next(iter(directions.values())))
    odd = odd or any(piece.shape != (queries, len(logits)) for piece in pieces)
    return None if odd else torch.stack(pieces).sum(dim=0)


def adds_up(
    products: Tensor,
    directions: Directions,
    gradients: Mapping[str, Tensor | None],
    *,
    autocast: bool,
) -> bool:
    """Whether the examples' products (Q, b) add up to those of the whole gradient, within rounding.

    They do not where a layer computes something else than its type says.
    """
    whole = torch.zeros(len(products), dtype=torch.float64, device=products.device)
    for name, direction in directions.items():
        if (gradient := gradients.get(name)) is not None:
            whole += dots(direction, gradient)
    off = (products.double().sum(dim=1) - whole).abs()
    bound = 0.05 if autocast else 1e-3
    return not bool((off > bound * products.double().abs().sum(dim=1)).any())


@contextmanager
def hooked(
    model: nn.Module,
    modules: Iterable[nn.Module],
    take: Callable[[nn.Module, Tensor, Tensor], None],
    *,
    freeze: bool,
) -> Iterator[None]:
    """Call ``take`` with a module, what entered it and the gradient of what left it.

    Frozen, no gradient of a parameter is computed: the pass back costs a third less.
    """

    def watch(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = inputs[0].detach()
        if freeze and torch.is_grad_enabled() and not output.requires_grad:
            output = output.detach().requires_grad_().clone()  # what follows may work in place
        if output.requires_grad:
            output.register_hook(lambda gradient: take(module, x, gradient))
        return output

    needed = {p: p.requires_grad for p in model.parameters()}
    handles = [module.register_forward_hook(watch) for module in modules]
    try:
        if freeze:
            for parameter in needed:
                parameter.requires_grad_(False)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, need in needed.items():
            parameter.requires_grad_(need)


def by_passes(
    model: nn.Module,
    directions: Directions,
    forward: Callable[[], Tensor],
    gradient: Tensor,
    *,
    autocast: bool = False,
) -> Tensor:
    """⟨U_q, g_i⟩ for all queries and examples, (Q, b), for any layer.

    By a forward-mode pass for each query, or by a backward pass for each example where forward mode
    does not do: a layer has none, or its kernel drops other weights than that of the training.

    Args:
        forward: passes the batch through the model as it stands; returns the logits (b, …).
        gradient: of the loss with respect to these.
        autocast: whether the model runs in half precision.
    """
    with torch.no_grad():
        logits = forward()

    def check(others: Tensor) -> None:
        if not alike(others, logits, autocast=autocast):
            raise NotImplementedError("the plain kernel drops other weights")

    try:
        return by_forward_mode(model, directions, forward, gradient, check=check)
    except NotImplementedError:
        return by_examples(model, directions, forward, gradient)


def alike(logits: Tensor, others: Tensor, *, autocast: bool) -> bool:
    """Whether logits of two kernels differ by rounding; with dropout they may differ by more."""
    return bool((logits - others).norm() <= (0.05 if autocast else 1e-3) * others.norm())


def by_examples(
    model: nn.Module,
    directions: Directions,
    forward: Callable[[], Tensor],
    gradient: Tensor,
) -> Tensor:
    """As :func:`by_passes`, by a pass back for each example, whose gradient is there whole."""
    named = dict(model.named_parameters())
    parameters = [named[name] for name in directions]
    with torch.enable_grad():
        logits = forward()
    columns, queries = [], len(next(iter(directions.values())))
    for i in range(len(logits)):
        alone = torch.zeros_like(logits)
        alone[i] = gradient[i]
        each = torch.autograd.grad(
            logits, parameters, alone, allow_unused=True, retain_graph=i + 1 < len(logits)
        )
        total = gradient.new_zeros(queries, dtype=torch.float64)
        for direction, part in zip(directions.values(), each, strict=True):
            if part is not None:
                total += dots(direction, part)
        columns.append(total)
    return torch.stack(columns, dim=1).to(gradient)


def by_forward_mode(
    model: nn.Module,
    directions: Directions,
    forward: Callable[[], Tensor],
    gradient: Tensor,
    *,
    check: Callable[[Tensor], None] = lambda logits: None,
) -> Tensor:
    """As :func:`by_passes`, by a forward-mode pass for each query.

    The derivative of the logits in direction U_q, contracted with the ``gradient``. Attention runs
    on torch's plain kernel, the one that has a forward mode; NotImplementedError with others. The
    logits are handed to ``check``.
    """
    places = _places(model, directions)
    rows = []
    for q in range(len(next(iter(directions.values())))):
        kept = [dict(module._parameters) for module, _, _ in places]
        try:
            with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
                for module, own, direction in places:
                    dual = forward_ad.make_dual(getattr(module, own).detach(), direction[q])
                    del module._parameters[own]
                    setattr(module, own, dual)
                logits = forward()
                logits, tangent = forward_ad.unpack_dual(logits)
                check(logits)
                if tangent is None:
                    tangent = torch.zeros_like(logits)
                rows.append((tangent * gradient).flatten(1).sum(dim=1).detach())
        finally:
            for (module, own, _), parameters in zip(places, kept, strict=True):
                setattr(module, own, parameters[own])  # recurrent layers keep a list besides
            for (module, _, _), parameters in zip(places, kept, strict=True):
                for name in parameters:  # in the order they had
                    module._parameters[name] = module._parameters.pop(name)
    return torch.stack(rows)


def _places(model: nn.Module, directions: Directions) -> list[tuple[nn.Module, str, Tensor]]:
    """Where each parameter is held, and its directions; one that is shared, in several places."""
    by_parameter = {p: directions[n] for n, p in model.named_parameters() if n in directions}
    return [
        (module, own, by_parameter[parameter])
        for module in model.modules()
        for own, parameter in module._parameters.items()
        if parameter is not None and parameter in by_parameter
    ]


@contextmanager
def rows_apart(model: nn.Module) -> Iterator[None]:
    """Give each example its own row where an embedding serves all with one, as positions do."""
    rows: list[int] = []

    def learn(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
        given = [*inputs, *keywords.values()]
        rows.append(next(len(t) for t in given if isinstance(t, Tensor) and t.ndim))

    def expand(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        (index,) = inputs
        if index.ndim > 1 and len(index) == 1 < rows[-1]:
            return (index.expand(rows[-1], *index.shape[1:]),)
        return None

    handles = [model.register_forward_pre_hook(learn, with_kwargs=True)]
    handles += [
        module.register_forward_pre_hook(expand)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _product(part: Part, direction: Tensor, place: Tensor | None) -> Tensor:
    """⟨U_q, g_i⟩ of one parameter, (Q, b); ``place`` is that of an embedding's rows, if of some."""
    if isinstance(part, Outer):
        tokens, queries = part.left.shape[1], len(direction)
        if tokens * queries <= tokens + queries:  # multiplications, in units of the layer's size
            return torch.einsum("bto,qoi,bti->qb", part.left, direction, part.right)
        part = torch.bmm(part.left.transpose(1, 2), part.right)  # (b, out, in)
    if isinstance(part, Tensor):
        return direction.flatten(1) @ part.flatten(1).T
    index, d = part
    if place is None:
        return torch.stack([(u[index] * d).flatten(1).sum(dim=1) for u in direction])
    where = place[index]
    known = where >= 0
    example, row, d = known.nonzero()[:, 0], where[known], d[known]
    each = torch.stack([torch.linalg.vecdot(u[row], d) for u in direction])  # (Q, tokens known)
    return each.new_zeros(len(direction), len(index)).index_add_(1, example, each)
