"""The gradient of every example of a batch, layer by layer, as parts for a projection."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from longarc.attribution.index.projection import Projection
from longarc.attribution.layer_gradients import LAYERS, Lookup, Outer, gradient_of
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
        for own, name in modules[module].items():
            part = gradient_of(module, own, x, gradient)
            if isinstance(part, Outer):
                projection.add_outer(rows[0], name, *part)
            elif isinstance(part, Lookup):
                projection.add_lookup(rows[0], name, *part)
            else:
                projection.add_vector(rows[0], name, part.flatten(1))

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
            if type(module) not in LAYERS or len(getattr(module, "normalized_shape", ())) > 1:
                known = ", ".join(kind.__name__ for kind in LAYERS)
                raise ModelError(
                    f"{by_parameter[parameter]} is held by a {type(module).__name__}, whose "
                    f"gradients cannot be indexed. Known are {known}. Leave it out with "
                    "parameters=, or use the exact method."
                )
            modules.setdefault(module, {})[own] = by_parameter[parameter]
    return modules
