"""The linear layer that ends a classifier, and the document vectors that enter it.

A linear probe on frozen features needs just these two, whatever the head in front of them is: the
mean-pooled head of longarc, BERT's tanh pooler, RoBERTa's dense layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from longarc.errors import ModelError


def final_linear(model: nn.Module) -> nn.Linear:
    """The last ``nn.Linear`` with one output a class.

    Raises :class:`~longarc.errors.ModelError` where the model does not end in one.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> model.config = type("Config", (), {"num_labels": 3})()
    >>> final_linear(model)
    Linear(in_features=4, out_features=3, bias=True)
    """
    classes = model.config.num_labels  # pyright: ignore[reportAttributeAccessIssue]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    if not linears:
        raise ModelError(
            f"{type(model).__name__} does not end in a linear layer with {classes} outputs, so it "
            "can neither start from a linear probe (use --head-start scratch) nor be trained "
            "with a loss that needs the vectors of the classes, such as radius-margin."
        )
    return linears[-1]


@contextmanager
def capture_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what enters :func:`final_linear` in every forward pass inside the block.

    Each entry has shape (b, d). Run the model in ``eval`` mode, or dropout is in the features.
    """
    captured: list[Tensor] = []
    hook = final_linear(model).register_forward_pre_hook(
        lambda _module, inputs: captured.append(inputs[0].detach())
    )
    try:
        yield captured
    finally:
        hook.remove()
