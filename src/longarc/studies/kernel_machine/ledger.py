"""A binary task on digits: an SVM on the path kernel, and the ledger against training again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from longarc.attribution.kernel_machine import KernelMachine
from longarc.studies.kernel_machine.trainings import Network, Points, items, train
from longarc.studies.shared.digits_networks import draw_digits

WIDTHS = (64, 24, 24, 2)
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Of the SVMs; cross-validated on the training set."""

PATH, GAUSSIANS = "SVM, path kernel", "SVM, Gaussians"


@dataclass(frozen=True)
class Edits:
    """Changes of the margins of Q images by R edits, foretold and by training again, (R, Q)."""

    foretold: np.ndarray
    retrained: np.ndarray

    @property
    def correlation(self) -> float:
        """Of the changes, over all edits and images."""
        return float(np.corrcoef(self.foretold.ravel(), self.retrained.ravel())[0, 1])

    @property
    def slope(self) -> float:
        """How many times the change that was foretold took place, by least squares."""
        a, b = self.foretold.ravel(), self.retrained.ravel()
        return float(a @ b / (a @ a))

    @property
    def error(self) -> float:
        """|foretold − retrained| as a share of |retrained|, root mean squares."""
        return float(
            np.linalg.norm(self.foretold - self.retrained) / np.linalg.norm(self.retrained)
        )


@dataclass(frozen=True)
class Binary:
    """One seed.

    ``accuracy`` has the network, the SVM on its path kernel and one on Gaussians; ``agreeing`` how
    often each of the SVMs says what the network says. ``forgotten`` and ``learned`` are edits of so
    many examples at once.
    """

    accuracy: dict[str, float]
    agreeing: dict[str, float]
    forgotten: dict[int, Edits]
    learned: dict[int, Edits]


@dataclass(frozen=True)
class LedgerSize:
    """How much is tried.

    ``counts`` of examples are forgotten or learned at once, in ``draws`` ways each.
    """

    train: int
    test: int
    asked: int
    steps: int
    rate: float
    counts: tuple[int, ...]
    draws: int


def try_seed(size: LedgerSize, seed: int, advance: Callable[[], object] = lambda: None) -> Binary:
    """Train, ask the machine and the SVMs, edit the ledger and train again."""
    drawn = draw_digits(seed + 1, size.train, 0.0)
    x, y = drawn.x[seed].double(), (drawn.y[seed] >= 5).long()
    test_x, test_y = drawn.test_x[seed].double(), (drawn.test_y[seed] >= 5).long()
    most = max(size.counts)
    newcomers = slice(size.test, size.test + size.draws * most)
    new = test_x[newcomers], test_y[newcomers]
    test_x, test_y = test_x[: size.test], test_y[: size.test]
    network = Network(WIDTHS, seed)
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        machine = train(
            Path(folder), network, Points(x, y), learning_rate=size.rate, max_steps=size.steps
        )
        advance()
        accuracy, agreeing = _machines(machine, items(test_x), test_y.numpy(), y.numpy())
        advance()
        asked = items(test_x[: size.asked])
        chosen = _draws(size, seed)
        # One replay for all: forgetting is free once the machine has been asked.
        learning = machine.learn(items(new[0]), new[1].tolist())
        margins = _margins(learning.predict(asked))
        forgotten = {
            count: [_margins(learning.forget(ids).predict(asked)) - margins for ids in draws]
            for count, draws in chosen.items()
        }
        each = learning.terms(asked).learned  # (Q, C, L)
        each = each[:, 1] - each[:, 0]
        advance()

    def again(x: Tensor, y: Tensor, weights: Tensor) -> np.ndarray:
        trained = retrain(network, start, x, y, weights, size)
        return outputs(network, trained, test_x[: size.asked])

    base = again(x, y, torch.ones(1, len(x)).double() / len(x))[0]
    found, added = {}, {}
    for count, draws in chosen.items():
        kept = torch.ones(len(draws), len(x)).double()
        for row, ids in zip(kept, draws, strict=True):
            row[ids] = 0
        found[count] = Edits(np.stack(forgotten[count]), again(x, y, kept / len(x)) - base)
        taken = [range(d * most, d * most + count) for d in range(size.draws)]
        both = torch.zeros(size.draws, len(x) + len(new[0])).double()
        both[:, : len(x)] = 1
        for row, ids in zip(both, taken, strict=True):
            row[[len(x) + i for i in ids]] = 1
        added[count] = Edits(
            np.stack([each[:, list(ids)].sum(1) for ids in taken]),
            again(torch.cat([x, new[0]]), torch.cat([y, new[1]]), both / len(x)) - base,
        )
    advance()
    return Binary(accuracy, agreeing, found, added)


def retrain(
    network: Network,
    start: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    size: LedgerSize,
) -> dict[str, Tensor]:
    """Gradient descent from the same start with R weightings (R, N) of the examples, together."""

    def loss(parameters: dict[str, Tensor], weight: Tensor) -> Tensor:
        scores = functional_call(network, parameters, (x,))["logits"]
        return (weight * functional.cross_entropy(scores, y, reduction="none")).sum()

    slope = vmap(grad(loss))
    at = {name: value.expand(len(weights), *value.shape) for name, value in start.items()}
    for _ in range(size.steps):
        found = slope(at, weights)
        at = {name: value - size.rate * found[name] for name, value in at.items()}
    return at


def outputs(network: Network, parameters: dict[str, Tensor], x: Tensor) -> np.ndarray:
    """Margins (R, Q) of networks with stacked parameters."""
    with torch.no_grad():
        scores = vmap(lambda p: functional_call(network, p, (x,))["logits"])(parameters)
    return (scores[..., 1] - scores[..., 0]).numpy()


def _draws(size: LedgerSize, seed: int) -> dict[int, list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        count: [
            torch.randperm(size.train, generator=generator)[:count].tolist()
            for _ in range(size.draws)
        ]
        for count in size.counts
    }


def _margins(scores: np.ndarray) -> np.ndarray:
    return scores[:, 1] - scores[:, 0]


def _machines(
    machine: KernelMachine, asked: Sequence[Any], truth: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    points = machine.dataset
    fitted = machine.svm(labels.tolist(), strength=STRENGTHS)
    path = fitted.predict(machine.kernel(asked))
    x, test_x = points.x.numpy(), np.stack([item["x"].numpy() for item in asked])
    gaussians = GridSearchCV(SVC(), {"C": list(STRENGTHS)}, cv=4).fit(x, labels)
    with torch.no_grad():
        said = machine.model(torch.from_numpy(test_x))["logits"].argmax(1).numpy()
    told = {"network": said, PATH: path, GAUSSIANS: gaussians.predict(test_x)}
    accuracy = {name: float((who == truth).mean()) for name, who in told.items()}
    agreeing = {name: float((who == said).mean()) for name, who in told.items()}
    return accuracy, {name: value for name, value in agreeing.items() if name != "network"}
