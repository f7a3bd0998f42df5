"""The attention kernels by name. Imports no torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longarc.errors import OptionError, close_matches
from longarc.options import check_known

if TYPE_CHECKING:
    from longarc.models.attention.kernel import AttentionKernel

EXACT = "exact"
"""The name of softmax attention itself, through PyTorch's fused kernels."""


@dataclass(frozen=True)
class AttentionInfo:
    """What is known of a kernel without importing it.

    ``path`` is ``module:class``; ``summary`` one line.
    """

    path: str
    summary: str


ATTENTIONS: dict[str, AttentionInfo] = {
    "performer": AttentionInfo(
        "longarc.models.attention.performer:Performer",
        "positive random features of the softmax kernel",
    ),
    "linear": AttentionInfo(
        "longarc.models.attention.linear:Linear",
        "a fixed feature map in place of the softmax: elu + 1, or softmaxes of q and k",
    ),
    "block-sparse": AttentionInfo(
        "longarc.models.attention.block_sparse:BlockSparse",
        "exact over a window, global tokens and a few random blocks",
    ),
    "local-performer": AttentionInfo(
        "longarc.models.attention.local_performer:LocalPerformer",
        "exact over a window and global tokens, random features for the rest",
    ),
    "clustered": AttentionInfo(
        "longarc.models.attention.clustered:Clustered",
        "keys in clusters that are attended to as one",
    ),
    "local-clustered": AttentionInfo(
        "longarc.models.attention.local_clustered:LocalClustered",
        "exact where it matters, clusters of keys for the rest; the most faithful untrained",
    ),
    "learned": AttentionInfo(
        "longarc.models.attention.learned:Learned",
        "local-clustered with corrections for each head, fitted to the model's own attention",
    ),
}

_NOT_OPTIONS = ("self", "heads", "width", "seed")


def attention_names() -> list[str]:
    """Return the names that :func:`longarc.set_attention` knows.

    >>> attention_names()[:2]
    ['exact', 'performer']
    """
    return [EXACT, *ATTENTIONS]


def attention_options(name: str) -> dict[str, Any]:
    """Return the options of a kernel with their defaults; imports torch."""
    if name == EXACT:
        return {}
    parameters = inspect.signature(_kernel_class(name)).parameters
    return {k: p.default for k, p in parameters.items() if k not in _NOT_OPTIONS}


def check_attention_options(name: str, options: Mapping[str, Any] | None = None) -> None:
    """Check a kernel's name and options; torch is imported only if there are options.

    Raises:
        OptionError: an unknown name or option, or a value out of range.

    >>> check_attention_options("perfomer")
    Traceback (most recent call last):
    longarc.errors.OptionError: There is no attention 'perfomer'. Did you mean performer or local-performer? Known: exact, performer, linear, block-sparse, local-performer, clustered, local-clustered, learned.
    """  # noqa: E501
    if name not in attention_names():
        raise OptionError(
            f"There is no attention {name!r}. {close_matches(name, attention_names())}"
        )
    if not options:
        return
    check_known(f"Attention {name}", options, attention_options(name))
    build_kernel(name, heads=2, width=32, options=options)  # the constructor knows the ranges


def build_kernel(
    name: str, *, heads: int, width: int, seed: int = 0, options: Mapping[str, Any] | None = None
) -> AttentionKernel:
    """Build the kernel of one layer.

    >>> build_kernel("performer", heads=2, width=8, options={"num_features": 16}).num_features
    16
    """
    return _kernel_class(name)(heads, width, seed=seed, **(options or {}))


def _kernel_class(name: str) -> type[Any]:
    module, _, attribute = ATTENTIONS[name].path.partition(":")
    return getattr(importlib.import_module(module), attribute)
