"""Two exercises that need memory over a distance which is known: recall a symbol, add two numbers.

Hochreiter & Schmidhuber 1997, "Long short-term memory", sections 5.1 and 5.4. Legend: b sequences,
n steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

SYMBOLS = 4


@dataclass(frozen=True)
class Exercise:
    """Sequences of ``length`` steps, whose answer is asked for after the last.

    ``recall``: a random symbol at every step, and that of ``distance`` steps before the last is
    asked for; there it comes as one of four symbols of its own, so that it is told from the rest at
    once. At distance 0 nothing has to be kept. ``add``: random numbers between 0 and 1, and the sum
    of two is asked for, one of each half, which are marked; ``distance`` is not used.
    """

    kind: Literal["recall", "add"]
    length: int
    distance: int = 0

    @property
    def name(self) -> str:
        """As in ``recall over 15`` and ``add in 50``."""
        over = f"over {self.distance}" if self.kind == "recall" else f"in {self.length}"
        return f"{self.kind} {over}"

    @property
    def inputs(self) -> int:
        """Numbers a step."""
        return 2 * SYMBOLS if self.kind == "recall" else 2

    @property
    def outputs(self) -> int:
        """Numbers of an answer: a logit for each symbol, or the sum."""
        return SYMBOLS if self.kind == "recall" else 1

    @property
    def place(self) -> int:
        """The step of the symbol to be recalled."""
        return self.length - 1 - self.distance

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences (b, n, inputs) and what is asked for, (b,) symbols or (b, 1) sums."""
        rows = torch.arange(count)
        if self.kind == "recall":
            symbols = torch.randint(0, SYMBOLS, (count, self.length), generator=generator)
            wanted = symbols[:, self.place].clone()
            symbols[:, self.place] += SYMBOLS
            return functional.one_hot(symbols, 2 * SYMBOLS).float(), wanted
        numbers = torch.rand(count, self.length, generator=generator)
        half = self.length // 2
        marks = torch.zeros_like(numbers)
        marks[rows, torch.randint(0, half, (count,), generator=generator)] = 1
        marks[rows, torch.randint(half, self.length, (count,), generator=generator)] = 1
        return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(1, keepdim=True)

    def loss(self, answers: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropy, or the mean squared error."""
        if self.kind == "recall":
            return functional.cross_entropy(answers, wanted)
        return functional.mse_loss(answers, wanted)

    def score(self, answers: Tensor, wanted: Tensor) -> float:
        """The share of right symbols; of sums, the share within 0.1: .19 for always saying 1.

        >>> Exercise("add", 10).score(torch.tensor([[1.0], [0.5]]), torch.tensor([[1.05], [1.5]]))
        0.5
        """
        if self.kind == "recall":
            right = answers.argmax(1) == wanted
        else:
            right = (answers - wanted).abs() < 0.1
        return float(right.float().mean())
