"""Cross-entropy that weighs each class's positives and negatives as the F1 score does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from longarc.objectives.losses.contract import Loss, Reduction, apply_loss, check_classes
from longarc.objectives.losses.log_space import log_probabilities
from longarc.options import check_choice, check_number

Statistics = Literal["batch", "running"]


class F1WeightedCrossEntropy(Loss):
    """Cross-entropy with the trade-off of F1: −Σ_c [ t (1 − F_c/2) log p + (1 − t) (F_c/2) log(1 − p) ].

    p = softmax(z), each class against the rest; for multi-label examples p = σ(z) and the mean over
    the labels stands for the sum. F_c = 2 Σ_i t_ic p_ic / Σ_i (t_ic + p_ic) is the soft F1 of class
    c; it is taken as a constant, so no gradient flows through it.

    Where it comes from: soft F1 has the gradient 2 [ t (1 − F/2) − (1 − t) F/2 ] / Σ (t + p) in p.
    Its factor p (1 − p), which makes it vanish where the model is most wrong, goes away if p is
    replaced by log p, and 1 − p by its own logarithm, as cross-entropy does with accuracy. What
    stays is F1's weight: while a class does badly, F near 0, only its positives count, and as F
    grows its negatives count up to the same. So a rare class is not drowned by negatives, and no
    weight has to be chosen.

    F is that of the batch, or a running one:

    - ``statistics="batch"``: an example's loss depends on the rest of its batch. A class without
      positives in the batch has F = 0 there, so **its negatives weigh nothing in it**. With large
      batches, or a few classes, that is harmless. Each small batch of gradient accumulation has F
      of its own.
    - ``statistics="running"``: both sums of F are exponential averages over the batches so far, for
      many classes and small batches. Calls in training mode with gradients enabled update them,
      others use them as they are; before the first update F is 0. Where a step calls the loss
      several times, as with regularizers, the first call updates them (``frozen``). The trainer's
      checkpoints keep them (``gathered``). Processes that train in parallel each keep their own.
      ``set_progress(0.0)`` forgets them. At ``set_progress(1.0)``, which a probe asks for, the
      call's own F stands for what they tend to, and they stay as they are.

    Args:
        statistics: ``"batch"`` (default: it remembers nothing) or ``"running"``.
        momentum: in [0, 1), what the running sums keep of the past at each update; ``"batch"`` has
            no use for it. 0.9 by default, about ten batches.
        multi_label: whether an example can have several labels, or none.

    Raises:
        OptionError: unknown statistics; a momentum out of range; on call, logits with another
            number of classes than the running F1.

    Source: soft F1's gradient with p → log p; we know of no paper.

    >>> import torch
    >>> z, y = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    >>> soft_f1(z.softmax(dim=1), torch.eye(2)[y])
    tensor([0.6745, 0.3875])
    >>> F1WeightedCrossEntropy()(z, y)
    tensor(0.8052)
    """  # noqa: E501

    def __init__(
        self,
        statistics: Statistics = "batch",
        momentum: float = 0.9,
        *,
        multi_label: bool = False,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__(multi_label=multi_label, reduction=reduction, ignore_index=ignore_index)
        self.statistics = check_choice("statistics", statistics, get_args(Statistics))
        self.momentum = check_number("momentum", momentum, below=1.0)
        self.remembers = statistics == "running"
        # Σ t p and Σ (t + p), (2, C). Not a buffer: .half() would round it.
        self._sums: Tensor | None = None
        self._at_end = False

    def set_progress(self, fraction: float) -> None:
        """Forget the running sums at the start, and do without them at the end."""
        if fraction == 0:
            self._sums = None
        self._at_end = fraction == 1

    def frozen(self) -> Loss:
        """The same with F as it is now, if it is a running one."""
        return copy.copy(self).eval()  # updates replace the sums: a shallow copy keeps its own

    def gathered(self) -> dict[str, Tensor]:
        """The running sums (2, C), once there are any."""
        return {} if self._sums is None else {"sums": self._sums}

    def take_up(self, gathered: dict[str, Tensor]) -> None:
        """Go on from such sums."""
        self._sums = gathered["sums"]

    def in_batch(self, logits: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        """Return the weighted cross-entropy of each example, (b,)."""
        return _weighted(logits, target, keep, self._f1, self.multi_label)

    def _f1(self, p: Tensor, target: Tensor) -> Tensor:
        sums = _sums(p, target)
        if self.statistics == "batch" or self._at_end:
            return _f1_of(sums)
        past = torch.zeros_like(sums) if self._sums is None else self._sums.to(sums)
        check_classes("the running F1", past[0], p)
        if not (self.training and torch.is_grad_enabled()):
            return _f1_of(past)
        # Starting from 0 makes both sums too small by the same factor, which cancels in F.
        self._sums = self.momentum * past + (1 - self.momentum) * sums
        return _f1_of(self._sums)


def soft_f1(p: Tensor, target: Tensor) -> Tensor:
    """Return the soft F1 of each class, (C,), from probabilities and labels (b, C).

    2 Σ_i t_ic p_ic / Σ_i (t_ic + p_ic), and 0 where both sums are 0.

    >>> soft_f1(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    tensor([0.8000, 0.0000])
    """
    return _f1_of(_sums(p, target))


def f1_weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    f1: Tensor | None = None,
    *,
    multi_label: bool = False,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """``F1WeightedCrossEntropy`` as a function of any F (C,); by default the batch's.

    >>> import torch
    >>> z, y = torch.zeros(1, 2), torch.tensor([0])
    >>> f1_weighted_cross_entropy(z, y, torch.zeros(2))  # F = 0: the positives' cross-entropy
    tensor(0.6931)
    """

    def given_or_batch(p: Tensor, t: Tensor) -> Tensor:
        if f1 is None:
            return soft_f1(p, t)
        check_classes("f1", f1, p)
        return f1.to(p.dtype)

    return apply_loss(
        lambda z, t, keep: _weighted(z, t, keep, given_or_batch, multi_label),
        logits,
        target,
        multi_label=multi_label,
        reduction=reduction,
        ignore_index=ignore_index,
    )


def _weighted(
    logits: Tensor,
    target: Tensor,
    keep: Tensor,
    f1: Callable[[Tensor, Tensor], Tensor],
    multi_label: bool,
) -> Tensor:
    log_p, log_rest = log_probabilities(logits, multi_label)
    p = torch.where(keep[:, None], log_p.detach().exp(), 0)
    negative = f1(p, target).detach() / 2
    positives = target * (1 - negative) * torch.where(target == 0, 0, log_p)
    losses = -(positives + (1 - target) * negative * log_rest)
    return losses.mean(dim=1) if multi_label else losses.sum(dim=1)


def _sums(p: Tensor, target: Tensor) -> Tensor:
    return torch.stack([(target * p).sum(dim=0), (target + p).sum(dim=0)])


def _f1_of(sums: Tensor) -> Tensor:
    hits, size = sums
    return 2 * hits / torch.where(size > 0, size, 1)
