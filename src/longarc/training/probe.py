"""A linear classifier on frozen features: a baseline, a one-minute mode and the head's best start.

Linear probing before fine-tuning keeps the pretrained features from being distorted by a random
head's first gradients: Kumar et al., 2022, arXiv 2202.10054. The probe minimises the run's own
loss, so a head that starts from it treats the class prior as training goes on to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longarc.objectives.losses.binary_cross_entropy import BinaryCrossEntropyLoss
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss

if TYPE_CHECKING:
    from longarc.objectives.losses.contract import Loss

PENALTY = 1e-4
"""Taken where there is nothing to choose it on; on R52 the best or next to it."""

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)
"""Weights of ½‖W‖² that are tried, on standardised features; the best lay inside on real data."""


@dataclass(frozen=True)
class Probe:
    """A fitted linear head: logits = features · weightᵀ + bias.

    Shapes: ``weight`` (C, d), ``bias`` (C,).
    """

    weight: Tensor
    bias: Tensor
    penalty: float

    def logits(self, features: Tensor) -> Tensor:
        """(N, d) → (N, C)."""
        return features @ self.weight.T + self.bias

    def divided(self, temperature: float) -> Probe:
        """The probe whose logits are these over ``temperature``; it decides the same."""
        return Probe(self.weight / temperature, self.bias / temperature, self.penalty)


def fit_probe(
    features: Tensor,
    target: Tensor,
    loss: Loss,
    *,
    classes: int,
    score: Callable[[Probe], float],
    penalties: tuple[float, ...] = PENALTIES,
    max_iterations: int = 150,
) -> Probe:
    """Minimise ``loss`` + penalty/2 · ‖W‖² by L-BFGS for each penalty; keep the best by ``score``.

    A loss with a schedule (``Loss.set_progress``) is minimised as it is at the end of training,
    which is what the head is to start towards; it is set back to the start afterwards. One that
    uses the class vectors gets them for the features as they are. One that is not convex starts
    from the solution of cross-entropy, at each penalty.

    Features are standardised for the fit and the scaling is folded into the weights afterwards, so
    the penalty means the same for every encoder. Penalties run from strong to weak, each starting
    from the last solution.

    Args:
        features: (N, d) float32.
        target: (N,) class indices or (N, C) multi-hot.
        loss: any longarc loss with ``reduction="mean"``.
        classes: C.
        score: larger is better, usually validation macro-F1.
        max_iterations: of L-BFGS a penalty; it has converged well before on the data tried.

    >>> from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
    >>> x = torch.tensor([[-1.0], [1.0]]); y = torch.tensor([0, 1])
    >>> probe = fit_probe(x, y, CrossEntropyLoss(), classes=2, score=lambda p: 0.0)
    >>> probe.logits(x).argmax(1).tolist()
    [0, 1]
    """
    mean, deviation = features.mean(0), features.std(0, correction=0)
    # A feature that hardly varies must not become loud: its weight, once unscaled, would turn the
    # encoder's dropout into noise that drowns everything else.
    deviation = deviation.clamp(min=(0.1 * float(deviation.median())) or 1.0)
    scaled = (features - mean) / deviation
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    loss.set_progress(1.0)
    best: tuple[float, Probe] | None = None
    for penalty in penalties:
        # From zero weights a loss that is not convex may end anywhere.
        for stage in (loss,) if loss.convex else (_convex(loss), loss):
            _minimise(stage, scaled, target, deviation, weight, bias, penalty, max_iterations)
        with torch.no_grad():
            unscaled = weight / deviation
            probe = Probe(unscaled.clone(), bias - unscaled @ mean, penalty)
        reached = score(probe)
        if best is None or reached > best[0]:
            best = (reached, probe)
    loss.set_progress(0.0)
    if best is None:
        raise ValueError("no penalties to try: expected at least one")
    return best[1]


def _convex(loss: Loss) -> Loss:
    """The cross-entropy for the same labels."""
    kind = BinaryCrossEntropyLoss if loss.multi_label else CrossEntropyLoss
    return kind(ignore_index=loss.ignore_index)


def _minimise(
    loss: Loss,
    features: Tensor,
    target: Tensor,
    deviation: Tensor,
    weight: Tensor,
    bias: Tensor,
    penalty: float,
    max_iterations: int,
) -> None:
    """Move ``weight`` and ``bias`` to where the penalised loss is least."""
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        more = {"class_vectors": weight / deviation} if loss.uses_class_vectors else {}
        value = loss(features @ weight.T + bias, target, **more)
        value = value + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(objective)  # pyright: ignore[reportArgumentType]
