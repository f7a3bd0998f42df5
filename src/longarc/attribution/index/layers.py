"""The gradient of every example of a batch, layer by layer, as parts for a projection."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longarc.attribution.index.projection import Projection
from longarc.attribution.products import hooked, rows_apart
from longarc.errors import ModelError


def project(
    model: nn.Module, names: Collection[str], projection: Projection, backward: Callable[[], Tensor]
) -> Tensor:
    """The projected gradients of a batch's examples, (b, size), from one pass forward and back.

    No gradient of a parameter is computed: what entered a layer and the gradient of what left it
    go to the projection as they come. Nothing is passed back below the lowest layer that counts.

    Args:
        names: parameters that count.
        backward: passes the batch through the model and back; returns the logits (b, …).

    Raises:
        ModelError: layers whose first axis is not the examples.
    """
    modules = layers_of(model, names)
    rows: list[Tensor] = []
    like = projection.direction({})

    def take(module: nn.Module, x: Tensor, gradient: Tensor) -> None:
        if not rows:
            rows.append(like.new_zeros(len(gradient), projection.size))
        if len(x) != len(gradient) or len(gradient) != len(rows[0]):
            raise ModelError(
                f"{type(module).__name__} sees {len(x)} rows where others see {len(rows[0])}: "
                "gradients of single examples cannot be told apart. Expected the examples on "
                "the first axis. Leave the layer out of the index with parameters=."
            )
        _LAYERS[type(module)](module, modules[module], x, gradient, projection, rows[0])

    with hooked(model, modules, take, freeze=True), rows_apart(model), torch.enable_grad():
        logits = backward()
    return rows[0] if rows else like.new_zeros(len(logits), projection.size)


def layers_of(model: nn.Module, names: Collection[str]) -> dict[nn.Module, dict[str, str]]:
    """The modules that hold the parameters: own name of each → name in the model.

    Raises ModelError for a kind of layer whose gradients cannot be taken apart.
    """
    by_parameter = {p: n for n, p in model.named_parameters() if n in names}
    modules: dict[nn.Module, dict[str, str]] = {}
    for module in model.modules():
        for own, parameter in module._parameters.items():
            if parameter is None or parameter not in by_parameter:
                continue
            # A norm over several axes has a matrix of entries that belongs to no pair of sides.
            if type(module) not in _LAYERS or len(getattr(module, "normalized_shape", ())) > 1:
                known = ", ".join(kind.__name__ for kind in _LAYERS)
                raise ModelError(
                    f"{by_parameter[parameter]} is held by a {type(module).__name__}, whose "
                    f"gradients cannot be indexed. Known are {known}. Leave it out with "
                    "parameters=, or use the exact method."
                )
            modules.setdefault(module, {})[own] = by_parameter[parameter]
    return modules


def _linear(
    module: nn.Module,
    own: Mapping[str, str],
    x: Tensor,
    gradient: Tensor,
    projection: Projection,
    rows: Tensor,
) -> None:
    d = gradient.reshape(len(x), -1, gradient.shape[-1])
    if name := own.get("weight"):
        projection.add_outer(rows, name, d, x.reshape(len(x), -1, x.shape[-1]))
    if name := own.get("bias"):
        projection.add_vector(rows, name, d.sum(dim=1))


def _embedding(
    module: nn.Module,
    own: Mapping[str, str],
    x: Tensor,
    gradient: Tensor,
    projection: Projection,
    rows: Tensor,
) -> None:
    padding = getattr(module, "padding_idx", None)
    if padding is not None:
        gradient = gradient * (x != padding)[..., None]
    projection.add_lookup(rows, own["weight"], x.flatten(1), gradient.flatten(1, -2))


def _norm(
    module: Any,
    own: Mapping[str, str],
    x: Tensor,
    gradient: Tensor,
    projection: Projection,
    rows: Tensor,
) -> None:
    size = module.normalized_shape
    dims = list(range(1, x.ndim - len(size)))
    if name := own.get("weight"):
        if isinstance(module, nn.LayerNorm):
            plain = F.layer_norm(x.to(gradient), size, None, None, module.eps)
        else:
            plain = F.rms_norm(x.to(gradient), size, None, module.eps)
        each = gradient * plain
        projection.add_vector(rows, name, (each.sum(dim=dims) if dims else each).flatten(1))
    if name := own.get("bias"):
        each = gradient.sum(dim=dims) if dims else gradient
        projection.add_vector(rows, name, each.flatten(1))


_LAYERS: dict[type, Callable[..., None]] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
}
