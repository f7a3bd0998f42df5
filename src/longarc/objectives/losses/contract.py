"""What every loss shares: targets, ignored rows, precision, reduction and errors.

A loss is its mathematics for one example; ``apply_loss`` does the rest. Legend: b examples in the
batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from longarc.errors import DataError, OptionError
from longarc.options import check_choice

Reduction = Literal["mean", "sum", "none"]

# Soft labels in bfloat16 have steps of 2^-8; their sum may be off by half of one.
_SUM_TOLERANCE = 0.01


class Loss(nn.Module):
    """Base of every loss: logits and targets in, a loss out.

    A subclass implements ``per_example`` and, if some examples count more than others in the mean,
    ``example_weights``. One whose examples depend on each other, such as the F1 score of a batch,
    implements ``in_batch`` instead. Class statistics are non-persistent integer buffers: ``.to()``
    moves them, ``.half()`` does not round them, and no checkpoint of a model that holds the loss
    carries them (they come from the data, through the constructor).

    ``forward(logits, target)`` takes

    - logits (b, C), of any floating type. The computation is in float32, also under autocast, and
      in float64 for float64 logits; the result has that type too.
    - target (b,), integer class indices, or (b, C), soft or multi-hot labels in [0, 1].

    Args:
        reduction: ``"mean"`` (the sum over the examples divided by the sum of their weights),
            ``"sum"``, or ``"none"`` for a loss (b,) for each example.
        ignore_index: a target with this value, or a row of a (b, C) target filled with it, is left
            out: its loss and gradient are exactly zero, whatever its logits, and it does not count
            in the mean. Negative, so that no class index or label can be mistaken for it. A mean
            over no examples is 0, with zero gradients.

    Raises:
        OptionError: an unknown reduction, an ignore_index that is not negative.
        DataError: on call, shapes and types that do not fit. On the CPU also class indices outside
            0 … C − 1, labels outside [0, 1], and rows of a single-label loss's soft labels that do
            not sum to 1. Elsewhere a look at the values would make the device wait: there an index
            out of range meets the device's own check, and soft labels are taken as they are. Under
            ``torch.compile`` and ``torch.vmap`` values are not looked at either.

    >>> import torch
    >>> class Brier(Loss):
    ...     def per_example(self, logits, target):
    ...         return (logits.softmax(dim=1) - target).square().sum(dim=1)
    >>> Brier()(torch.zeros(3, 2), torch.tensor([0, 1, -100]))
    tensor(0.5000)
    """

    #: True where a row of the target may have any number of positive labels. A loss for both kinds
    #: takes it as an argument.
    multi_label: bool = False

    #: False where a descent from zero weights may end far from the least value. A linear probe then
    #: starts from cross-entropy's solution.
    convex: bool = True

    #: True where ``forward`` needs ``class_vectors`` (C, d), the rows of the last linear layer.
    uses_class_vectors: bool = False

    #: True where a call depends on those before it, as running statistics do.
    remembers: bool = False

    def __init__(
        self,
        *,
        multi_label: bool | None = None,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        _check_contract(reduction, ignore_index)
        if multi_label is not None:
            self.multi_label = multi_label
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index

    @property
    def belongs_to_batch(self) -> bool:
        """Whether an example's loss depends on the rest of its batch: ``in_batch`` is its own."""
        return type(self).in_batch is not Loss.in_batch

    def per_example(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each example, (b,).

        ``logits`` (b, C) are float32 or float64, ``target`` (b, C) soft labels of the same type,
        one-hot where indices were given. Rows to be ignored are zero in both.
        """
        raise NotImplementedError

    def in_batch(self, logits: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return the loss of each example, (b,), where it may depend on the rest of the batch.

        ``keep`` (b,) is true for the rows that count. The mean over these is the batch's loss.
        """
        return self.per_example(logits, target)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return what the logits (b, C) of a model trained with this loss say of the classes.

        By default the softmax, or a sigmoid for each label.

        >>> import torch
        >>> Loss().probabilities(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
        """
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def example_weights(self, target: Tensor) -> Tensor:
        """Return what each example adds to the mean's denominator, (b,): by default 1.

        ``per_example`` includes these weights already.
        """
        return target.new_ones(target.shape[0])

    def set_progress(self, fraction: float) -> None:
        """Take note of how much of the training is done, 0 to 1; by default of no concern.

        The trainer says so before each update: 0 before the first, never quite 1. For a loss with a
        schedule of its own, such as ``LDAMLoss``. 1 is the end, as a probe that is to start the
        training minimises it.
        """

    def frozen(self) -> Loss:
        """Return the loss as it is now, for further calls within a step.

        The one that is returned gathers nothing from what it is called with. By default the loss
        itself: one with running statistics returns a copy that leaves them alone.
        """
        return self

    def gathered(self) -> dict[str, Tensor]:
        """Return what the loss has gathered over the training, for a checkpoint; by default none.

        Apart from ``state_dict``, so that no checkpoint of a model that holds the loss carries it.
        """
        return {}

    def take_up(self, gathered: dict[str, Tensor]) -> None:
        """Go on from what ``gathered`` returned, in a training that is resumed."""

    def forward(
        self, logits: Tensor, target: Tensor, *, reduction: Reduction | None = None
    ) -> Tensor:
        """Return the loss: a scalar, or (b,) for ``reduction="none"``.

        ``reduction`` stands in for the loss's own in this call.
        """
        return apply_loss(
            self.in_batch,
            logits,
            target,
            example_weights=self.example_weights,
            multi_label=self.multi_label,
            reduction=reduction or self.reduction,
            ignore_index=self.ignore_index,
        )

    def denominator(self, target: Tensor, classes: int) -> Tensor:
        """Return what the mean divides by, a float64 scalar (float32 on Apple's MPS).

        It adds up over batches: the sums of several batches over the sum of their denominators is
        the mean over all their examples, which is what accumulated gradients need.

        >>> import torch
        >>> Loss().denominator(torch.tensor([0, 1, -100]), classes=2)
        tensor(2., dtype=torch.float64)
        """
        exact = torch.float32 if target.device.type == "mps" else torch.float64
        keep, soft = _soft_labels(target, classes, exact, self.multi_label, self.ignore_index)
        return torch.where(keep, self.example_weights(soft), 0).sum()


def apply_loss(
    in_batch: Callable[[Tensor, Tensor, Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    *,
    example_weights: Callable[[Tensor], Tensor] | None = None,
    multi_label: bool = False,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """Apply a loss given as functions; the arguments are those of ``Loss`` and its methods.

    >>> import torch
    >>> def squared(logits, target, keep):
    ...     return (logits - target).square().sum(dim=1)
    >>> apply_loss(squared, torch.zeros(2, 3), torch.tensor([2, 0]), reduction="none")
    tensor([1., 1.])
    """
    _check_contract(reduction, ignore_index)
    _check_shapes(logits, target, multi_label)
    device = logits.device.type
    # torch.autocast refuses the devices that have none, such as meta.
    autocasts = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if autocasts else nullcontext():
        z = logits if logits.dtype == torch.float64 else logits.float()
        keep, soft = _soft_labels(target, z.shape[1], z.dtype, multi_label, ignore_index)
        # Before the mathematics, not after: zero times the gradient of an infinity is not zero.
        z = torch.where(keep[:, None], z, 0)
        losses = torch.where(keep, in_batch(z, soft, keep), 0)
        if reduction == "none":
            return losses
        total = losses.sum()
        if reduction == "sum":
            return total
        weights = soft.new_ones(soft.shape[0]) if example_weights is None else example_weights(soft)
        denominator = torch.where(keep, weights, 0).sum()
        return total / torch.where(denominator > 0, denominator, 1)


def _soft_labels(
    target: Tensor, classes: int, dtype: torch.dtype, multi_label: bool, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Rows that count (b,), and soft labels (b, C) that are zero in the others."""
    if target.ndim == 1:
        keep = target != ignore_index
        _check_indices(target, keep, classes)
        index = torch.where(keep, target, 0).long()
        empty = torch.zeros(len(target), classes, dtype=dtype, device=target.device)
        return keep, empty.scatter(1, index[:, None], keep[:, None].to(dtype))
    keep = (target != ignore_index).any(dim=1)
    _check_soft(target, keep, multi_label)
    return keep, torch.where(keep[:, None], target.to(dtype), 0)


def as_class_counts(class_counts: object) -> Tensor:
    """Return class counts as a new int64 tensor (C,), or raise OptionError if they cannot be any.

    >>> as_class_counts([90, 10, 0])
    tensor([90, 10,  0])
    """
    expected = "Give one whole number for each class: its training examples."
    try:
        counts = torch.as_tensor(class_counts).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"class_counts cannot be read as numbers ({error}). {expected}") from None
    if counts.ndim != 1 or counts.numel() == 0:
        raise OptionError(f"class_counts has shape {tuple(counts.shape)}, not (C,). {expected}")
    whole = counts.to(torch.int64, copy=True)
    if counts.dtype == torch.bool or not torch.equal(whole.to(counts.dtype), counts):
        raise OptionError(f"class_counts are not all whole numbers: {_some(counts)}. {expected}")
    if (lowest := int(whole.min())) < 0:
        raise OptionError(
            f"class_counts has {lowest} for class {int(whole.argmin())}; a count is 0 or more."
        )
    if int(whole.max()) == 0:
        raise OptionError(f"class_counts are all 0: {_some(counts)}. {expected}")
    return whole


def as_label_counts(
    class_counts: object, num_examples: int | None, *, needed_for: str | None = None
) -> Tensor | None:
    """Return the counts of labels (C,) of which an example can have several, or None without any.

    Raise OptionError where both arguments are not given and ``needed_for`` names an option that
    needs them, or where a count is above ``num_examples``.

    >>> as_label_counts([50, 10], 100)
    tensor([50, 10])
    """
    if needed_for and (class_counts is None or num_examples is None):
        raise OptionError(
            f"{needed_for} needs class_counts and num_examples: the training examples of each "
            "label, and in all."
        )
    counts = None if class_counts is None else as_class_counts(class_counts)
    if counts is not None and num_examples is not None and int(counts.max()) > num_examples:
        raise OptionError(
            f"class_counts has {int(counts.max())} for label {int(counts.argmax())}, more than "
            f"num_examples={num_examples}. num_examples is the number of training examples."
        )
    return counts


def as_class_values(
    name: str, values: object, *, at_least: float = -float("inf")
) -> tuple[float, ...]:
    """Return one finite number for each class, or raise OptionError if they cannot be read so.

    They are Python's floats, since casting a loss to half precision would round a tensor of them.

    >>> as_class_values("radii", [1, 0.5])
    (1.0, 0.5)
    """
    bound = f", at least {at_least:g}" if at_least > -float("inf") else ""
    expected = f"Give one finite number for each class{bound}."
    try:
        found = torch.as_tensor(values, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{name} cannot be read as numbers ({error}). {expected}") from None
    if found.ndim != 1 or found.numel() == 0:
        raise OptionError(f"{name} has shape {tuple(found.shape)}, not (C,). {expected}")
    wrong = ~(found.isfinite() & (found >= at_least))
    if bool(wrong.any()):
        at = int(wrong.int().argmax())
        raise OptionError(f"{name} has {float(found[at]):g} for class {at}. {expected}")
    return tuple(found.tolist())


def check_classes(name: str, per_class: Tensor, logits: Tensor) -> None:
    """Raise OptionError unless ``per_class`` is (C,) with the C of ``logits`` (b, C)."""
    if per_class.shape != logits.shape[1:]:
        raise OptionError(
            f"{name} has shape {tuple(per_class.shape)}, but the logits have shape "
            f"{tuple(logits.shape)}: {name} must be ({logits.shape[1]},), one value for each class."
        )


def _check_contract(reduction: object, ignore_index: object) -> None:
    check_choice("reduction", reduction, get_args(Reduction))
    if not isinstance(ignore_index, int) or ignore_index >= 0:
        raise OptionError(
            f"ignore_index must be a negative whole number, found {ignore_index!r}: "
            "0 and above can be a class or a label."
        )


def _check_shapes(logits: Tensor, target: Tensor, multi_label: bool) -> None:
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise DataError(f"{name} must be a torch tensor, found {type(value).__name__}.")
    shape, fewest = tuple(logits.shape), 1 if multi_label else 2
    if len(shape) != 2 or shape[1] < fewest:
        raise DataError(
            f"logits have shape {shape}; expected (b, C): examples, and {fewest} or more classes."
        )
    if not logits.is_floating_point():
        raise DataError(f"logits have type {logits.dtype}; expected a floating-point type.")
    if tuple(target.shape) not in (shape[:1], shape):
        raise DataError(
            f"target has shape {tuple(target.shape)}, which does not fit logits of shape {shape}; "
            f"expected {shape[:1]} class indices or {shape} soft or multi-hot labels."
        )
    if target.is_complex() or (
        target.ndim == 1 and (target.is_floating_point() or target.dtype == torch.bool)
    ):
        raise DataError(
            f"target has shape {tuple(target.shape)} and type {target.dtype}; class indices (b,) "
            "are integers (use .long()), soft or multi-hot labels have the shape (b, C)."
        )


def _check_indices(target: Tensor, keep: Tensor, classes: int) -> None:
    if not _readable(target):
        return
    row = _first(keep & ((target < 0) | (target >= classes)))
    if row is not None:
        raise DataError(
            f"target has class {int(target[row])} in row {row}, but the logits have {classes} "
            f"classes: 0 to {classes - 1}. To leave a row out, give it the loss's ignore_index."
        )


def _check_soft(target: Tensor, keep: Tensor, multi_label: bool) -> None:
    if not _readable(target):
        return
    outside = ~((target >= 0) & (target <= 1))  # so written, NaN is outside too
    row = _first(keep & outside.any(dim=1))
    if row is not None:
        column = int(outside[row].int().argmax())
        raise DataError(
            f"target has {float(target[row, column]):g} in row {row}, class {column}; soft and "
            "multi-hot labels lie between 0 and 1. A row is left out only if every entry is the "
            "loss's ignore_index."
        )
    if multi_label:
        return
    sums = target.double().sum(dim=1)
    row = _first(keep & ((sums - 1).abs() > _SUM_TOLERANCE))
    if row is not None:
        raise DataError(
            f"The labels of row {row} of the target sum to {float(sums[row]):g}; for a "
            "single-label loss each row must sum to 1. For examples with several labels use a "
            "multi-label loss, such as binary-cross-entropy."
        )


def _readable(target: Tensor) -> bool:
    return target.device.type == "cpu" and not torch.compiler.is_compiling()


def _first(wrong: Tensor) -> int | None:
    """Return the first row where ``wrong`` (b,) is true; None too where values cannot be read."""
    try:
        return int(wrong.int().argmax()) if bool(wrong.any()) else None
    except RuntimeError:  # inside torch.vmap a tensor has no single value
        return None


def _some(values: Tensor) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:8].tolist())
    return shown + (", …" if len(values) > 8 else "")
