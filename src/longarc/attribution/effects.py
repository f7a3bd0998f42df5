"""The result: how far a number would fall without each training example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longarc.attribution.explanation import Contribution, strongest
from longarc.errors import OptionError


@dataclass(frozen=True)
class Effects:
    """How far a number would fall had an example not been in the training, to first order.

    Not to be added up: the number is not their sum, and two examples that stand in for each other
    each have a small one.

    Attributes:
        name: the number.
        falls: (N,) for each training example; 0 for one that was never in a batch.
        labels: (N,) names of the training examples' classes, if known.
        texts: (N,) the training examples, if known.
        afterwards: whether something changed the model after its training, a recipe's second stage
            or a hybrid's linear scores: the number here is the one before it.

    >>> e = Effects("logit of a", np.array([0.8, -0.1, 0.25]), labels=("a", "b", "a"))
    >>> e.supporting(1), e.opposing(1)
    ([Contribution(document=0, label='a', value=0.8, text=None, error=None)],
     [Contribution(document=1, label='b', value=-0.1, text=None, error=None)])
    """

    name: str
    falls: np.ndarray
    labels: Sequence[str] | None = field(default=None, repr=False)
    texts: Sequence[str] | None = field(default=None, repr=False)
    afterwards: bool = False

    def supporting(self, k: int = 10) -> list[Contribution]:
        """The k examples without which the number would fall most, the strongest first."""
        return strongest(self, self.falls, k, raised=True)

    def opposing(self, k: int = 10) -> list[Contribution]:
        """The k examples without which it would rise most, the strongest first."""
        return strongest(self, self.falls, k, raised=False)

    def to_pandas(self) -> Any:
        """A DataFrame of ``document``, ``label`` and ``fall``.

        Raises OptionError where pandas is missing.
        """
        try:
            import pandas
        except ImportError:
            raise OptionError("to_pandas needs pandas: pip install pandas.") from None
        return pandas.DataFrame(
            {
                "document": np.arange(len(self.falls)),
                "label": None if self.labels is None else list(self.labels),
                "fall": self.falls,
            }
        )

    def to_dict(self, k: int = 10) -> dict[str, Any]:
        """Plain values with the k strongest on either side, for JSON."""
        return {
            "name": self.name,
            "method": "effects",
            "afterwards": self.afterwards,
            "supporting": [c._asdict() for c in self.supporting(k)],
            "opposing": [c._asdict() for c in self.opposing(k)],
        }
