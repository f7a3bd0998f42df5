"""R-Drop: two passes with different dropout should agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from longarc.objectives.regularizers.contract import Regularizer
from longarc.options import check_number

if TYPE_CHECKING:
    from longarc.objectives.regularizers.batch import Batch


class RDrop(Regularizer):
    r"""The mean loss of two passes with different dropout, and how far their predictions differ.

    .. math:: \tfrac12 (L_1 + L_2) + \alpha\, \mathrm{mean}_i\,
              \tfrac12 \big( \mathrm{KL}(p_1 \| p_2) + \mathrm{KL}(p_2 \| p_1) \big)

    takes the place of L. Both passes are differentiated together, so it needs the memory of a batch
    of twice the size. Without dropout in the model it changes nothing. The divergence, like VAT's,
    needs no label.

    Args:
        alpha: α. The paper takes 0.1, 0.5 or 1 on GLUE.

    Raises:
        OptionError: an option out of range.

    Liang et al. 2021, “R-Drop: Regularized Dropout for Neural Networks”, equations 2–3 (half of the
    sums, as in the authors' code).

    >>> RDrop(alpha=0.5).plain_weight  # nothing is left of L
    -1.0
    """

    learns_unlabelled = True

    def __init__(self, alpha: float = 1.0):
        self.alpha = check_number("alpha", alpha)

    @property
    def plain_weight(self) -> float:
        """The loss is in the term already."""
        return -1.0

    def terms(self, batch: Batch) -> Iterator[Tensor]:
        """Both losses and both divergences, in one."""
        first, second = batch.logits(), batch.logits(dropout="second dropout")
        losses = batch.share(first) + batch.share(second)
        apart = batch.divergence(first, second) + batch.divergence(second, first)
        batch.keep(losses / 2, first)
        yield losses / 2 + self.alpha * batch.mean_over_rows(apart / 2)
