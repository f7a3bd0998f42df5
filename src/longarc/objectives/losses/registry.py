"""The losses by name, and the way from a name and its options to a loss. Imports no torch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longarc.errors import OptionError, close_matches
from longarc.options import check_known

if TYPE_CHECKING:
    from torch import Tensor

    from longarc.objectives.losses.contract import Loss


@dataclass(frozen=True)
class LossInfo:
    """What is known of a loss without importing it.

    ``path`` is ``module:class``; ``summary`` one line; ``single_label`` and ``multi_label`` say
    which kind of labels it is for.
    """

    path: str
    summary: str
    single_label: bool
    multi_label: bool


LOSSES: dict[str, LossInfo] = {
    "cross-entropy": LossInfo(
        "longarc.objectives.losses.cross_entropy:CrossEntropyLoss",
        "softmax cross-entropy; every example counts the same",
        single_label=True,
        multi_label=False,
    ),
    "class-weighted": LossInfo(
        "longarc.objectives.losses.class_weighted:ClassWeightedLoss",
        "cross-entropy; an example counts the more, the rarer its class",
        single_label=True,
        multi_label=False,
    ),
    "class-balanced": LossInfo(
        "longarc.objectives.losses.class_balanced:ClassBalancedLoss",
        "cross-entropy weighted by the effective number of a class's examples",
        single_label=True,
        multi_label=False,
    ),
    "logit-adjusted": LossInfo(
        "longarc.objectives.losses.logit_adjusted:LogitAdjustedLoss",
        "cross-entropy with the class prior added to the logits; predicts for balanced error",
        single_label=True,
        multi_label=False,
    ),
    "ldam": LossInfo(
        "longarc.objectives.losses.ldam:LDAMLoss",
        "cross-entropy with larger margins for rarer classes; weights that may come in late",
        single_label=True,
        multi_label=False,
    ),
    "radius-margin": LossInfo(
        "longarc.objectives.losses.radius_margin:RadiusMarginLoss",
        "cross-entropy with room around each example, more for rarer classes",
        single_label=True,
        multi_label=False,
    ),
    "binary-cross-entropy": LossInfo(
        "longarc.objectives.losses.binary_cross_entropy:BinaryCrossEntropyLoss",
        "one yes-or-no question for each label",
        single_label=False,
        multi_label=True,
    ),
    "soft-accuracy": LossInfo(
        "longarc.objectives.losses.soft_accuracy:SoftAccuracyLoss",
        "expected errors; bounded, so no mislabelled example can dominate",
        single_label=True,
        multi_label=True,
    ),
    "soft-f1": LossInfo(
        "longarc.objectives.losses.soft_f1:SoftF1Loss",
        "one minus the macro-F1 of the batch's probabilities",
        single_label=True,
        multi_label=True,
    ),
    "f1-weighted": LossInfo(
        "longarc.objectives.losses.f1_weighted:F1WeightedCrossEntropy",
        "cross-entropy that weighs positives against negatives as F1 does",
        single_label=True,
        multi_label=True,
    ),
    "truncated": LossInfo(
        "longarc.objectives.losses.truncated:TruncatedCrossEntropy",
        "cross-entropy without the examples already right",
        single_label=True,
        multi_label=True,
    ),
    "focal": LossInfo(
        "longarc.objectives.losses.focal:FocalLoss",
        "cross-entropy that turns away from examples already right, by degrees",
        single_label=True,
        multi_label=True,
    ),
    "dice": LossInfo(
        "longarc.objectives.losses.dice:DiceLoss",
        "a soft F1 of each example and class on its own; bounded",
        single_label=True,
        multi_label=True,
    ),
    "multilabel-softmax": LossInfo(
        "longarc.objectives.losses.multilabel_softmax:MultiLabelSoftmaxLoss",
        "every label an example has compared with every one it lacks; threshold 0",
        single_label=False,
        multi_label=True,
    ),
    "asymmetric": LossInfo(
        "longarc.objectives.losses.asymmetric:AsymmetricLoss",
        "binary cross-entropy in which easily absent labels count less",
        single_label=False,
        multi_label=True,
    ),
}

# What the data or the training loop decides. Every other argument of a constructor is an option.
_NOT_OPTIONS = (
    "self", "class_counts", "num_examples", "multi_label", "reduction", "ignore_index",
)  # fmt: skip


def loss_names(multi_label: bool | None = None) -> list[str]:
    """Return the names of the losses: all, or those for one kind of labels.

    >>> loss_names(multi_label=True)[:2]
    ['binary-cross-entropy', 'soft-accuracy']
    """
    return [
        name
        for name, info in LOSSES.items()
        if multi_label is None or (info.multi_label if multi_label else info.single_label)
    ]


def build_loss(
    name: str,
    *,
    class_counts: Sequence[int] | Tensor,
    num_examples: int | None = None,
    options: Mapping[str, Any] | None = None,
    multi_label: bool = False,
) -> Loss:
    """Build a loss from its name.

    Args:
        name: a key of ``LOSSES``.
        class_counts: (C,) training examples of each class; losses without use for them ignore them.
        num_examples: training examples in all. Only ``binary-cross-entropy`` with
            ``pos_weight_power`` and ``multilabel-softmax`` with ``tau`` above 0 need it, since
            multi-label counts do not add up to it.
        options: the loss's own options, as in its constructor.
        multi_label: whether an example can have several labels.

    Raises:
        OptionError: an unknown name, a loss for the other kind of labels, an unknown option, a
            value out of range, or class counts that cannot be counts.

    >>> build_loss("logit-adjusted", class_counts=[90, 10], options={"tau": 1.5}).tau
    1.5
    """
    check_loss_options(name, options, multi_label=multi_label)
    loss_class = _loss_class(name)
    data = {
        "class_counts": class_counts, "num_examples": num_examples, "multi_label": multi_label,
    }  # fmt: skip
    wanted = inspect.signature(loss_class).parameters
    return loss_class(**{k: v for k, v in data.items() if k in wanted}, **(options or {}))


def check_loss_options(
    name: str, options: Mapping[str, Any] | None = None, *, multi_label: bool | None = None
) -> None:
    """Check a loss's name and options before any data is read.

    torch is imported only if there are options. ``multi_label`` None leaves the kind of labels
    open: what fits one kind passes. Raises OptionError as ``build_loss`` does.

    >>> check_loss_options("class-weighted", {"pwoer": 0.5})
    Traceback (most recent call last):
    longarc.errors.OptionError: Loss class-weighted has no option 'pwoer'. Did you mean power? Known: power (default 1.0).
    """  # noqa: E501
    if name not in LOSSES:
        raise OptionError(
            f"There is no loss {name!r}. {close_matches(name, loss_names(multi_label))}"
        )
    if multi_label is not None and name not in loss_names(multi_label):
        labels = "several labels" if multi_label else "exactly one label"
        raise OptionError(
            f"The examples have {labels} each, which loss {name} is not for. "
            f"Choose one that is: {', '.join(loss_names(multi_label))}."
        )
    if not options:
        return
    loss_class = _loss_class(name)
    parameters = inspect.signature(loss_class).parameters
    accepted = {k: p.default for k, p in parameters.items() if k not in _NOT_OPTIONS}
    check_known(f"Loss {name}", options, accepted)
    # The constructor knows the ranges. Two classes of one example stand in for the data.
    kinds = [kind for kind in (False, True) if name in loss_names(kind)]
    refusals: list[OptionError] = []
    for kind in kinds if multi_label is None else [multi_label]:
        data = {"class_counts": [1, 1], "num_examples": 2, "multi_label": kind}
        try:
            loss_class(**{k: v for k, v in data.items() if k in parameters}, **options)
        except OptionError as error:
            refusals.append(OptionError(f"Loss {name}: {error}"))
        else:
            return
    raise refusals[-1]


def _loss_class(name: str) -> type[Any]:
    module, _, attribute = LOSSES[name].path.partition(":")
    return getattr(importlib.import_module(module), attribute)
