"""The result: what each training example, decay and the start add to a number a model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from longarc.errors import OptionError

MEASURES = ("logit", "margin", "loss")
"""What may be explained: a class's logit, its margin over another, its loss."""

METHODS = ("exact", "indexed")
"""By which it may be: a replay of the whole training, an estimate from a few checkpoints."""


class Contribution(NamedTuple):
    """One training example's part: its index, its label, the signed amount, and its text.

    ``error`` is the amount's standard error where it is an estimate.
    """

    document: int
    label: str | None
    value: float
    text: str | None = None
    error: float | None = None


@dataclass(frozen=True)
class Explanation:
    """A number and the sum it is made of.

    ``initial + contributions.sum() + decay + elsewhere + afterwards + residual == final``: each
    term is how far the number moved while its cause moved the weights. Contributions are not
    counterfactual: they say which examples' gradients made the number, not what training without
    them would give.

    Attributes:
        name: what is explained.
        initial: the number at the start of the training.
        final: at its end.
        contributions: (N,) of each training example; 0 for one that was never in a batch.
        steps: (T,) the sum of the contributions of each step's examples; of the indexed method
            (K,), of each checkpoint's.
        decay: of weight decay.
        elsewhere: of parameters that were left out of the explanation.
        afterwards: of what changed the model after its training: a recipe's second stage, a
            temperature, a hybrid's linear scores.
        quadrature: what is known to be missing because segments were integrated with few nodes.
        tolerance: the bound asked for on |quadrature|, in the units of the number.
        within: whether that bound held in every step.
        labels: (N,) names of the training examples' classes, if known.
        texts: (N,) the training examples, if known.
        method: ``"exact"``, or ``"indexed"``: estimates from few checkpoints and projections.
        errors: (N,) standard errors of the contributions by the projection; None where exact.
        sum_error: the standard error of their sum.

    >>> e = Explanation("logit of a", 0.0, 1.0, np.array([0.8, -0.1, 0.25]), np.array([0.95]),
    ...                 decay=0.04, labels=("a", "b", "a"))
    >>> e.supporting(1), e.opposing(1)
    ([Contribution(document=0, label='a', value=0.8, text=None, error=None)],
     [Contribution(document=1, label='b', value=-0.1, text=None, error=None)])
    >>> e.by_class()
    {'a': 1.05, 'b': -0.1}
    >>> round(e.residual, 12)
    0.01
    """

    name: str
    initial: float
    final: float
    contributions: np.ndarray
    steps: np.ndarray
    decay: float = 0.0
    elsewhere: float = 0.0
    afterwards: float = 0.0
    quadrature: float = 0.0
    tolerance: float = 0.0
    within: bool = True
    labels: Sequence[str] | None = field(default=None, repr=False)
    texts: Sequence[str] | None = field(default=None, repr=False)
    method: str = "exact"
    errors: np.ndarray | None = field(default=None, repr=False)
    sum_error: float = 0.0

    @property
    def residual(self) -> float:
        """What no term accounts for: the quadrature's error, and rounding.

        Of the indexed method: all that its checkpoints and projections miss.
        """
        parts = float(self.contributions.sum()) + self.decay + self.elsewhere
        return self.final - self.initial - parts - self.afterwards

    @property
    def relative_residual(self) -> float:
        """|residual| over the sum of all |contributions|; 0 where nothing contributed."""
        size = float(np.abs(self.contributions).sum()) + abs(self.decay) + abs(self.elsewhere)
        return abs(self.residual) / size if size else 0.0

    def supporting(self, k: int = 10) -> list[Contribution]:
        """The k examples that raised the number most, the strongest first."""
        return strongest(self, self.contributions, k, raised=True, errors=self.errors)

    def opposing(self, k: int = 10) -> list[Contribution]:
        """The k examples that lowered it most, the strongest first."""
        return strongest(self, self.contributions, k, raised=False, errors=self.errors)

    def by_class(self) -> dict[str, float]:
        """The sum of the contributions of each class's examples.

        Raises OptionError where their labels are not known.
        """
        if self.labels is None:
            raise OptionError("the labels of the training examples were not given to explain.")
        sums: dict[str, float] = {}
        for label, value in zip(self.labels, self.contributions, strict=True):
            sums[label] = sums.get(label, 0.0) + float(value)
        return sums

    def by_step(self) -> np.ndarray:
        """(T,) what the examples of each update added."""
        return self.steps

    def to_pandas(self) -> Any:
        """A DataFrame of ``document``, ``label``, ``contribution``, and ``error`` if it is known.

        Raises OptionError where pandas is missing.
        """
        try:
            import pandas
        except ImportError:
            raise OptionError("to_pandas needs pandas: pip install pandas.") from None
        columns = {
            "document": np.arange(len(self.contributions)),
            "label": None if self.labels is None else list(self.labels),
            "contribution": self.contributions,
        }
        if self.errors is not None:
            columns["error"] = self.errors
        return pandas.DataFrame(columns)

    def to_dict(self, k: int = 10) -> dict[str, Any]:
        """Plain values with the k strongest on either side, for JSON."""
        found: dict[str, Any] = {
            "name": self.name,
            "method": self.method,
            "initial": self.initial,
            "final": self.final,
            "contributions": float(self.contributions.sum()),
            "decay": self.decay,
            "elsewhere": self.elsewhere,
            "afterwards": self.afterwards,
            "residual": self.residual,
            "relative_residual": self.relative_residual,
            "quadrature": self.quadrature,
            "tolerance": self.tolerance,
            "within_tolerance": self.within if self.method == "exact" else None,
            "sampling_error": self.sum_error if self.errors is not None else None,
            "supporting": [c._asdict() for c in self.supporting(k)],
            "opposing": [c._asdict() for c in self.opposing(k)],
        }
        if self.labels is not None:
            found["by_class"] = self.by_class()
        return found


class Labelled(Protocol):
    """What has a number for each training example, and may know their classes and texts."""

    @property
    def labels(self) -> Sequence[str] | None: ...  # noqa: D102

    @property
    def texts(self) -> Sequence[str] | None: ...  # noqa: D102


def strongest(
    known: Labelled,
    values: np.ndarray,
    k: int,
    *,
    raised: bool,
    errors: np.ndarray | None = None,
) -> list[Contribution]:
    """The k examples with the largest values above 0, or the smallest below it, in order."""
    found = []
    for i in map(int, np.argsort(-values if raised else values, kind="stable")[:k]):
        value = float(values[i])
        if (value > 0) if raised else (value < 0):
            label = None if known.labels is None else known.labels[i]
            text = None if known.texts is None else known.texts[i]
            error = None if errors is None else float(errors[i])
            found.append(Contribution(i, label, value, text, error))
    return found
