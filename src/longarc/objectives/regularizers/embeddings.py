"""The token embeddings of a model: where they are, and how it takes changed ones."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longarc.errors import ModelError


def embedding_layer(model: nn.Module) -> nn.Embedding:
    """The table that the model's token ids are looked up in."""
    return model.get_input_embeddings()  # pyright: ignore[reportCallIssue]


def by_embeddings(
    model: nn.Module, inputs: Mapping[str, Any], change: Tensor | None = None
) -> dict[str, Any]:
    """The inputs with embeddings, plus ``change`` (b, n, d), in the place of ids."""
    ids = inputs["input_ids"]
    embeddings = embedding_layer(model)(ids)
    if change is not None:
        embeddings = embeddings + change.to(embeddings.dtype)
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    return {**rest, "inputs_embeds": embeddings, **_positions(model, ids, rest)}


def check_takes_embeddings(model: nn.Module) -> None:
    """Raise ModelError unless the model reads ``inputs_embeds`` in the place of ``input_ids``."""
    named = (model, getattr(model, "base_model", model))
    takes = any("inputs_embeds" in inspect.signature(m.forward).parameters for m in named)
    if not takes or not hasattr(model, "get_input_embeddings"):
        raise ModelError(f"{type(model).__name__} takes no inputs_embeds{_INSTEAD}")


def check_same_by_embeddings(model: nn.Module) -> None:
    """Raise ModelError unless two short documents, one padded, give the same by ids and embeddings.

    Some classifiers look for the last token by its id, and some encoders need ids besides.
    """
    check_takes_embeddings(model)
    table = embedding_layer(model)
    padding = table.padding_idx or 0
    ids = torch.arange(16, device=table.weight.device).view(2, 8) + padding + 1
    ids = ids % min(table.num_embeddings, padding + 17)
    ids[1, 5:] = padding
    inputs = {"input_ids": ids, "attention_mask": (ids != padding).long()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected, found = (model(**i)[0] for i in (inputs, by_embeddings(model, inputs)))
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} fails with inputs_embeds ({error}){_INSTEAD}"
        ) from error
    finally:
        model.train(was_training)
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-3):
        raise ModelError(
            f"{type(model).__name__} gives other logits for inputs_embeds than for the same "
            f"input_ids (by up to {float((found - expected).abs().max()):.2g}){_INSTEAD}"
        )


_INSTEAD = (
    ", so its embeddings cannot be perturbed. Use regularizers of the weights with it: "
    "gradient-penalty, sam, flooding or r-drop."
)


def may_change(inputs: Mapping[str, Tensor], special: Sequence[int]) -> Tensor:
    """(b, n, 1): 1 at ordinary tokens, 0 at padding and at the ``special`` ids.

    >>> inputs = {"input_ids": torch.tensor([[101, 7, 8, 102, 0]]),
    ...           "attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}
    >>> may_change(inputs, special=[101, 102]).flatten()
    tensor([0., 1., 1., 0., 0.])
    """
    ids = inputs["input_ids"]
    free = ~torch.isin(ids, torch.tensor(list(special), dtype=ids.dtype, device=ids.device))
    mask = inputs.get("attention_mask")
    return (free if mask is None else free & mask.bool()).float().unsqueeze(2)


def unit(gradient: Tensor) -> Tensor:
    """Each document's gradient (b, n, d) at length 1 over all its tokens; a zero one stays zero.

    >>> unit(torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])).norm(dim=(1, 2))
    tensor([1., 0.])
    """
    norm = gradient.norm(dim=(1, 2), keepdim=True)
    return torch.where(norm > 0, gradient / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)


def within(change: Tensor, radius: float) -> Tensor:
    """The change (b, n, d) of each document, shortened to ``radius`` where it is longer."""
    norm = change.norm(dim=(1, 2), keepdim=True)
    return change * (radius / norm.clamp(min=radius)) if radius > 0 else torch.zeros_like(change)


def _positions(model: nn.Module, ids: Tensor, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The positions that the model would have given the tokens ``ids`` (b, n), if it looks at them.

    RoBERTa and its kin count the tokens that are no padding. Without the ids they would count
    padding too, which moves every position of a batch that is padded on the left.
    """
    counting = (m for m in model.modules() if hasattr(m, "create_position_ids_from_inputs_embeds"))
    table: Any = next(counting, None)
    if table is None or "position_ids" in inputs:
        return {}
    mask = ids.ne(table.padding_idx).long()
    return {"position_ids": mask.cumsum(1) * mask + table.padding_idx}
