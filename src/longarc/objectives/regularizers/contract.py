"""What every regularizer is: three places in a training step where it may act.

Legend: b documents in a batch, n tokens, d numbers a token, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from longarc.errors import OptionError

if TYPE_CHECKING:
    from longarc.objectives.regularizers.batch import Batch
    from longarc.objectives.regularizers.step import Step


class Regularizer:
    """Base of every regularizer.

    A step descends the mean loss L over its batches. A regularizer changes that by overriding one
    of three methods, so that any number of them can be combined in any order, with any loss:

    - ``example_losses`` changes the loss of each document;
    - ``terms`` adds to L, batch by batch;
    - ``step`` decides what happens to the gradient of the whole step, or at which weights it is
      taken. The first regularizer's is innermost: each goes over the one before.

    Terms are sums over documents, divided as L is, so that accumulated batches and data-parallel
    processes give what one big batch would.
    """

    #: Whether the loss must be computed from embeddings, which the model takes as
    #: ``inputs_embeds``.
    uses_embeddings: bool = False

    #: Whether ``terms`` reads ``batch.gradient``.
    uses_gradient: bool = False

    #: Whether it learns from documents without a label too, whose target is the loss's
    #: ``ignore_index``.
    learns_unlabelled: bool = False

    @property
    def stands_alone(self) -> bool:
        """Whether it works with no other beside it."""
        return False

    @property
    def sums_over_documents(self) -> bool:
        """Whether a step stays one pass of each batch, with a loss of each document's logits."""
        kind = type(self)
        return kind.terms is Regularizer.terms and kind.step is Regularizer.step

    @property
    def plain_weight(self) -> float:
        """How much is added to the factor 1 of L itself: −1 where the terms hold it already."""
        return 0.0

    def set_progress(self, fraction: float) -> None:
        """Take note of how much of the training is done, 0 to 1; by default of no concern."""

    def example_losses(self, losses: Tensor) -> Tensor:
        """Return what stands for the losses (k,) of the documents that count."""
        return losses

    def terms(self, batch: Batch) -> Iterator[Tensor]:
        """Yield scalars to be added to L; each is differentiated before the next is asked for."""
        yield from ()

    def step(self, sweep: Callable[[], Tensor], step: Step) -> Tensor:
        """Leave the gradient to descend in the weights' ``.grad``, and return the objective.

        ``sweep()`` does so for all that lies further inside. ``step`` has the weights and the
        gradient that is in them now.
        """
        return sweep()


def check_together(regularizers: Sequence[Any]) -> None:
    """Raise OptionError unless all are regularizers, and none of several has to stand alone."""
    for regularizer in regularizers:
        if not isinstance(regularizer, Regularizer):
            raise OptionError(
                f"{regularizer!r} is no regularizer. Expected objects such as longarc.FGM(); names "
                "are for longarc.fit and the command line."
            )
    alone = [type(r).__name__ for r in regularizers if r.stands_alone]
    if alone and len(regularizers) > 1:
        raise OptionError(
            f"{alone[0]} with method='double-backward' is a reference and stands alone. Use "
            "'finite-difference' beside other regularizers."
        )
