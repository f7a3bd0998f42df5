"""VAT: predictions that stay the same where they could change most; no label is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from longarc.objectives.regularizers.contract import Regularizer
from longarc.objectives.regularizers.embeddings import unit
from longarc.options import check_number, check_whole

if TYPE_CHECKING:
    from longarc.objectives.regularizers.batch import Batch


class VAT(Regularizer):
    r"""Virtual adversarial training: smoothness around every document, labelled or not.

    .. math:: L + w\, \mathrm{mean}_i\, \mathrm{KL}\big( p(e_i) \,\|\, p(e_i + r_i) \big), \qquad
              r_i = \operatorname*{arg\,max}_{\|r\| \le \epsilon}
              \mathrm{KL}\big( p(e_i) \,\|\, p(e_i + r) \big)

    p(e) is taken as given. Near r = 0 the divergence is a quadratic form, whose steepest direction
    power iteration finds. The mean is over all documents of the step: those without a label, whose
    target is the loss's ``ignore_index``, count as much as any.

    Args:
        epsilon: length of r over a document's tokens, as in ``FGM``.
        weight: w.
        xi: length at which the form is looked at, as a part of ``epsilon``. Smaller is nearer to
            the quadratic; larger survives bfloat16.
        power_steps: of the power iteration; one is enough in the paper.

    Raises:
        OptionError: an option out of range.

    Miyato et al. 2018, “Virtual Adversarial Training”, equations 5–8 and algorithm 1.

    >>> VAT(weight=0.5).weight
    0.5
    """

    uses_embeddings = True
    learns_unlabelled = True

    def __init__(
        self, epsilon: float = 0.2, weight: float = 1.0, xi: float = 0.5, power_steps: int = 1
    ):
        self.epsilon = check_number("epsilon", epsilon)
        self.weight = check_number("weight", weight)
        self.xi = check_number("xi", xi, at_least=1e-6)
        self.power_steps = check_whole("power_steps", power_steps, at_least=1)

    def terms(self, batch: Batch) -> Iterator[Tensor]:
        """The divergence at the end of the power iteration."""
        logits = batch.plain_logits
        direction = unit(batch.noise("virtual direction"))
        for _ in range(self.power_steps):
            change = (self.xi * self.epsilon * direction).requires_grad_()
            apart = batch.divergence(logits, batch.probe(change)).sum()
            direction = unit(batch.slope(apart, change))
        moved = batch.logits(self.epsilon * direction)
        yield self.weight * batch.mean_over_rows(batch.divergence(logits, moved))
