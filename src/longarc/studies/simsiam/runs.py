"""One run of the SimSiam study: a variant trained on a material, watched on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from longarc.dynamics.collapse import CollapseMeasures, collapse_measures
from longarc.dynamics.collapse_detector import CollapseAlarm, CollapseDetector
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.objectives.siamese.byol import BYOL
from longarc.objectives.siamese.heads import prediction_head, projection_head
from longarc.objectives.siamese.negative_cosine import negative_cosine
from longarc.objectives.siamese.objective import SiameseObjective, SiameseOutput
from longarc.objectives.siamese.parameter_groups import parameter_groups, rate_schedule
from longarc.objectives.siamese.simclr import SimCLR
from longarc.objectives.siamese.simsiam import SimSiam, Target
from longarc.studies.simsiam.material import WIDTH, Material
from longarc.training.probe import fit_probe

RATE = 0.1

Predictor = Literal["learned", "fixed", "none"]
Heads = Literal["hidden", "output", "layer", "none"]
"""Where the heads normalise: over the batch between layers, after the last too; an example's
numbers; nowhere."""


@dataclass(frozen=True)
class Variant:
    """What is changed against SimSiam.

    ``decay`` is that of a moving average as target, ``length`` a factor on the steps.
    """

    name: str
    stop_gradient: bool = True
    predictor: Predictor = "learned"
    factor: float = 1.0
    fixed_rate: bool = False
    decay: float = 0.0
    target: Target = "other"
    squared: bool = False
    heads: Heads = "hidden"
    contrastive: bool = False
    length: int = 1


@dataclass
class Outcome:
    """What was measured, every few steps and at the end.

    ``measured`` and ``scale`` are of the step's projections, of the first views: measures of
    collapse, and the standard deviation before they are normalised. ``rates`` are how far a step
    moves the weights of predictor and encoder (with projector), relative to their norm. Accuracies
    are those of the encoder's codes of held-out views: k-nearest neighbours, a linear probe, and
    neighbours among mean views.
    """

    variant: Variant
    seed: int
    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    measured: list[CollapseMeasures] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)
    rates: list[tuple[float, float]] = field(default_factory=list)
    alarm: CollapseAlarm | None = None
    knn: float = math.nan
    probe: float = math.nan
    knn_of_means: float = math.nan

    @property
    def spread(self) -> list[float]:
        """√d times the standard deviation of the normalised projections' numbers."""
        return [measures.relative_std for measures in self.measured]

    @property
    def rank(self) -> list[float]:
        """Effective rank of the projections."""
        return [measures.effective_rank for measures in self.measured]

    @property
    def end_spread(self) -> float:
        """Mean of the last tenth of the measurements."""
        return _last(self.spread)

    @property
    def end_rank(self) -> float:
        """Mean of the last tenth of the measurements."""
        return _last(self.rank)

    @property
    def end_scale(self) -> float:
        """Mean of the last tenth of the measurements, relative to the first."""
        return _last(self.scale) / self.scale[0]

    @property
    def onset(self) -> int | None:
        """The step from which on a quantity stays below half of its best; None if there is none."""
        found = []
        for values in (self.spread, [rank - 1 for rank in self.rank]):
            low = [value < 0.5 * max(values) for value in values]
            if low[-1]:
                first = len(low) - low[::-1].index(False) if False in low else 0
                found.append(self.steps[first])
        return min(found, default=None)


def train(variant: Variant, material: Material, seed: int, steps: int, every: int) -> Outcome:
    """Train and measure. The start and the batches follow from the seed, for all variants alike.

    SGD with momentum 0.9 and a cosine schedule, as in the paper; weight decay 1e-4.
    """
    outcome = Outcome(variant, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = build(variant, material)
    groups = parameter_groups(
        objective, RATE, predictor_factor=variant.factor, fixed_predictor_rate=variant.fixed_rate
    )
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)
    schedule = rate_schedule(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    detector = CollapseDetector()
    result: Any = None
    for step in range(steps):
        rows = material.train[
            torch.randint(len(material.train), (material.batch,), generator=generator)
        ]
        views = [material.draw(rows, generator) for _ in range(2)]
        if variant.target == "mean":
            views.append(material.mean(rows))
        result = objective(*views)
        result.loss.backward()
        if step % every and step != steps - 1:
            optimizer.step()
        else:
            before = _weights(objective)
            optimizer.step()
            _note(outcome, step, result, before, _weights(objective))
            outcome.alarm = detector.update(outcome.measured[-1], step)
        optimizer.zero_grad()
        schedule.step()
        if isinstance(objective, BYOL):
            objective.update_target()
    _evaluate(outcome, objective.encoder.eval(), material)
    return outcome


def untrained(material: Material, seed: int) -> Outcome:
    """The accuracies of the encoder that the variants start from."""
    outcome = Outcome(Variant("untrained"), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build(outcome.variant, material).encoder
    _evaluate(outcome, encoder.eval(), material)
    return outcome


def inputs(material: Material) -> Outcome:
    """The accuracies of what the encoder is given, as it is."""
    outcome = Outcome(Variant("inputs"), 0)
    _evaluate(outcome, nn.Flatten(), material)
    return outcome


def build(variant: Variant, material: Material) -> SiameseObjective:
    """Return the variant's objective; encoder and projector are drawn before anything else."""
    encoder = material.make_encoder()
    norm: Any = "batch" if variant.heads in ("hidden", "output") else variant.heads
    last = variant.heads in ("output", "layer")
    projector = projection_head(WIDTH, layers=2, norm=norm, last_norm=last)
    if variant.contrastive:
        return SimCLR(encoder, projector, temperature=0.2)
    predictor = None if variant.predictor == "none" else prediction_head(WIDTH, norm=norm)
    if variant.predictor == "fixed" and predictor is not None:
        predictor.requires_grad_(False)
    how: dict[str, Any] = {
        "target": variant.target,
        "distance": functional.mse_loss if variant.squared else negative_cosine,
    }
    if variant.decay:
        how |= {"decay": variant.decay, "schedule": "constant"}
        return BYOL(encoder, projector, predictor, **how)
    return SimSiam(encoder, projector, predictor, stop_gradient=variant.stop_gradient, **how)


def _weights(objective: SiameseObjective) -> tuple[Tensor, Tensor]:
    """Weights of the predictor, and of encoder and projector, each as one vector."""
    predictor = list(getattr(objective, "predictor", nn.Identity()).parameters())
    slow = [*objective.encoder.parameters(), *objective.projector.parameters()]
    return tuple(  # pyright: ignore[reportReturnType]
        torch.cat([w.detach().flatten() for w in part]) if part else torch.zeros(1)
        for part in (predictor, slow)
    )


def _note(
    outcome: Outcome,
    step: int,
    result: SiameseOutput,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
) -> None:
    outcome.steps.append(step)
    outcome.loss.append(result.loss.item())
    outcome.measured.append(collapse_measures(*result.projections))
    outcome.scale.append(float(result.projections[0].std(0).mean()))
    moved = zip(after, before, strict=True)
    phi, theta = (float((now - old).norm() / old.norm().clamp(min=1e-9)) for now, old in moved)
    outcome.rates.append((phi, theta))


@torch.no_grad()
def _codes(encoder: nn.Module, material: Material, draws: int) -> dict[str, Tensor]:
    """Codes of so many views of each held-in and held-out example, and of the mean views."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in ("train", "test"):
        rows = getattr(material, name)
        views = [material.draw(rows, generator) for _ in range(draws)]
        found[name] = encoder(torch.cat(views))
        found[f"{name} means"] = encoder(material.mean(rows))
    return found


def _evaluate(outcome: Outcome, encoder: nn.Module, material: Material, draws: int = 2) -> None:
    codes = _codes(encoder, material, draws)
    labels = {
        "train": material.train_labels.repeat(draws),
        "test": material.test_labels.repeat(draws),
    }
    outcome.knn = _neighbours(codes["train"], labels["train"], codes["test"], labels["test"])
    outcome.knn_of_means = _neighbours(
        codes["train means"], material.train_labels, codes["test means"], material.test_labels
    )
    probe = fit_probe(
        codes["train"], labels["train"], CrossEntropyLoss(),
        classes=int(labels["train"].max()) + 1, score=lambda _: 0.0, penalties=(1e-2,),
    )  # fmt: skip
    right = probe.logits(codes["test"]).argmax(1) == labels["test"]
    outcome.probe = float(right.float().mean())


def _neighbours(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Accuracy of the vote of the five nearest by cosine."""
    from sklearn.neighbors import KNeighborsClassifier

    voters = KNeighborsClassifier(5, metric="cosine").fit(train.numpy(), labels.numpy())
    return float(voters.score(test.numpy(), truth.numpy()))


def _last(values: list[float]) -> float:
    tail = values[-max(1, len(values) // 10) :]
    return sum(tail) / len(tail)


def gradients_of_targets(
    material: Material, seed: int, make: Callable[[], nn.Module] | None = None
) -> tuple[float, float]:
    """Return cosine and ratio of the gradients of E‖f(T₁x) − f(T₂x)‖² and E‖f(Tx) − f(x̄)‖².

    Exact means over all passages of the training documents; at the start, or of the module that
    ``make`` gives.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = (make or material.make_encoder)()
    documents = material.train
    codes = encoder(documents.flatten(0, 1)).unflatten(0, documents.shape[:2])
    pairs = (codes[:, :, None] - codes[:, None, :]).square().sum(3).mean()
    means = (codes - encoder(material.mean(documents))[:, None]).square().sum(2).mean()
    weights = list(encoder.parameters())
    one, other = (
        torch.cat(
            [grad.flatten() for grad in torch.autograd.grad(loss, weights, retain_graph=True)]
        )
        for loss in (pairs, means)
    )
    cosine = functional.cosine_similarity(one, other, dim=0)
    return float(cosine), float(one.norm() / other.norm())
