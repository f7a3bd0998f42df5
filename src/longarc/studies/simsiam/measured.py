"""All runs of the SimSiam study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from longarc.studies.simsiam.material import WIDTH, Material, digits, licences
from longarc.studies.simsiam.runs import (
    Outcome,
    Predictor,
    Variant,
    gradients_of_targets,
    inputs,
    train,
    untrained,
)
from longarc.studies.simsiam.scalar import Flow, flow
from longarc.training.progress import Reporter

ABLATIONS = (
    Variant("SimSiam"),
    Variant("no stop-gradient", stop_gradient=False),
    Variant("no predictor", predictor="none"),
    Variant("predictor fixed at random", predictor="fixed"),
    Variant("predictor’s rate × 0.1", factor=0.1),
    Variant("predictor’s rate × 10", factor=10.0),
    Variant("predictor’s rate not decayed", fixed_rate=True),
    Variant("moving average 0.9", decay=0.9),
    Variant("moving average 0.99", decay=0.99),
    Variant("moving average 0.999", decay=0.999),
    Variant("SimCLR", contrastive=True),
)

LENGTH = 3
LONGER = {"no stop-gradient, f(x̄)": "no stop-gradient, f(x̄), longer"}
"""What collapses slowest, and its training of ``LENGTH`` times the steps."""

MEAN_VIEW = (
    Variant("neither", stop_gradient=False, predictor="none"),
    Variant("neither, f(x̄)", stop_gradient=False, predictor="none", target="mean"),
    Variant("no stop-gradient, f(x̄)", stop_gradient=False, target="mean"),
    Variant("no predictor, f(x̄)", predictor="none", target="mean"),
    Variant("no stop-gradient, f(x̄), longer", stop_gradient=False, target="mean", length=LENGTH),
    Variant("SimSiam, f(x̄)", target="mean"),
    Variant("neither, squared", stop_gradient=False, predictor="none", squared=True),
    Variant(
        "neither, f(x̄), squared",
        stop_gradient=False, predictor="none", target="mean", squared=True,
    ),
)  # fmt: skip
"""“Neither” is without stop-gradient and without predictor."""

NORMS = {"output": "after the last too", "layer": "layer", "none": "none"}

_KINDS: tuple[tuple[str, bool, Predictor], ...] = (
    ("SimSiam", True, "learned"),
    ("no stop-gradient", False, "learned"),
    ("no predictor", True, "none"),
)

HEADS = tuple(
    Variant(f"{short}, norm {NORMS[heads]}", stop, predictor, heads=heads)
    for heads in ("output", "layer", "none")
    for short, stop, predictor in _KINDS
)

COLLAPSING = ("no stop-gradient", "no predictor", "neither")
HEALTHY = ("SimSiam", *(v.name for v in ABLATIONS[3:]), "SimSiam, f(x̄)")
"""By what is published, or by negatives; the rest are questions."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    ``steps`` are those on digits and on documents, ``few_seeds`` of heads with other norms;
    ``first_seed`` is the first of all.
    """

    steps: tuple[int, int]
    every: int
    seeds: int
    few_seeds: int
    documents: int
    digits: int = 1797
    first_seed: int = 10


@dataclass(frozen=True)
class Runs:
    """The outcomes on one material, by the variant's name."""

    material: Material
    outcomes: dict[str, list[Outcome]]


@dataclass(frozen=True)
class Measured:
    """Everything that was measured.

    ``flows`` are those of the scalar model by the branches that have gradients, ``speeds`` those
    without stop-gradient by how much faster the predictor is. ``network_gradients`` and
    ``linear_gradients`` are (cosine, ratio) of the gradients with target f(T₂x) and f(x̄), for the
    network that learns from documents and for a linear one, by seed.
    """

    size: Size
    flows: dict[str, Flow]
    speeds: dict[float, Flow]
    materials: tuple[Runs, Runs]
    network_gradients: list[tuple[float, float]]
    linear_gradients: list[tuple[float, float]]


def measure(size: Size, reporter: Reporter) -> Measured:
    """Follow the scalar model and train every variant."""
    with reporter.task("embedding passages"):
        materials = digits(size.digits), licences(size.documents)
    planned = [(v, size.seeds) for v in (*ABLATIONS, *MEAN_VIEW)]
    planned += [(v, size.few_seeds) for v in HEADS]
    with reporter.task("runs", total=2 * sum(seeds for _, seeds in planned)) as advance:
        runs = tuple(
            _runs(material, steps, size, planned, advance)
            for material, steps in zip(materials, size.steps, strict=True)
        )
    documents = materials[1]
    seeds = range(size.first_seed, size.first_seed + size.seeds)

    def linear() -> nn.Module:
        return nn.Linear(documents.train.shape[-1], WIDTH)

    return Measured(
        size,
        flows={branches: flow(branches) for branches in ("first", "both", "second")},
        speeds={speed: flow("both", speed=speed) for speed in (10.0, 25.0)},
        materials=(runs[0], runs[1]),
        network_gradients=[gradients_of_targets(documents, s) for s in seeds],
        linear_gradients=[gradients_of_targets(documents, s, linear) for s in seeds],
    )


def _runs(
    material: Material,
    steps: int,
    size: Size,
    planned: list[tuple[Variant, int]],
    advance: Callable[[], object],
) -> Runs:
    outcomes = {
        "inputs": [inputs(material)],
        "untrained": [untrained(material, size.first_seed + i) for i in range(size.seeds)],
    }
    for variant, seeds in planned:
        outcomes[variant.name] = []
        for seed in range(size.first_seed, size.first_seed + seeds):
            steps_each, every = variant.length * steps, variant.length * size.every
            outcomes[variant.name].append(train(variant, material, seed, steps_each, every))
            advance()
    return Runs(material, outcomes)
