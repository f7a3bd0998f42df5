"""What is to be explained: a number that a model says of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from longarc.attribution.explanation import MEASURES
from longarc.errors import OptionError

Measure = Literal["logit", "margin", "loss"]


@dataclass(frozen=True)
class Query:
    """A scalar function of the logits that a model gives one example.

    Args:
        inputs: what the model takes, one row.
        value: from the example's logits (C,) to a scalar.
        name: for people.
    """

    inputs: Mapping[str, Any]
    value: Callable[[Tensor], Tensor]
    name: str = ""


def measure(
    kind: str, label: int, rival: int | None = None, *, multi_label: bool = False
) -> Callable[[Tensor], Tensor]:
    """A function of the logits (C,) of an example.

    Args:
        kind: ``"logit"``, the logit of ``label``; ``"margin"``, less that of ``rival``; ``"loss"``,
            the cross-entropy of ``label``.
        label: a class.
        rival: the other class of a margin.
        multi_label: whether an example may have any number of labels: the loss is then −log σ of
            the label's own logit, whatever the others are.

    >>> z = torch.tensor([2.0, 0.0, 1.0])
    >>> measure("logit", 0)(z), measure("margin", 0, 2)(z), measure("loss", 0)(z)
    (tensor(2.), tensor(1.), tensor(0.4076))
    >>> measure("loss", 0, multi_label=True)(z)
    tensor(0.1269)
    """
    if kind == "logit":
        return lambda logits: logits[label]
    if kind == "margin":
        if rival is None or rival == label:
            raise OptionError("a margin needs a rival: another class than the label.")
        return lambda logits: logits[label] - logits[rival]
    if kind == "loss" and multi_label:
        return lambda logits: -torch.nn.functional.logsigmoid(logits[label])
    if kind == "loss":
        return lambda logits: -torch.log_softmax(logits, dim=0)[label]
    raise OptionError(f"There is no measure {kind!r}. Known: {', '.join(MEASURES)}.")
