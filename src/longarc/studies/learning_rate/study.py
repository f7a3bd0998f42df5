"""The study's entry: its sizes, what it says, its table."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn import functional

from longarc.studies.conclusion import Conclusion, conclude, measured
from longarc.studies.learning_rate.figures import figures
from longarc.studies.learning_rate.findings import Measured, findings
from longarc.studies.learning_rate.flooding import flood, step_down_and_up
from longarc.studies.learning_rate.product import STARTS, follow
from longarc.studies.learning_rate.runs import (
    NOISE,
    SETTLE,
    WRONG,
    Size,
    Trial,
    settings,
    try_settings,
    unexplained,
)
from longarc.studies.shared.digits_networks import WIDTHS
from longarc.studies.study import Finding, StudyResult
from longarc.training.progress import Reporter

FULL = Size(
    starts=STARTS,
    numbers=(40, 80, 160, 320),
    seeds=8,
    train=300,
    levels=(0.02, 0.1),
    limit=5000,
    rates=(0.05, 0.1, 0.2, 0.5, 1.0),
    penalties=(0.2375, 1.0, 3.0),
    adam_rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    follow=(0.1, 0.2, 0.4),
    follow_time=4.0,
    flood_level=0.4,
    flood_rates=(0.1, 0.4, 0.8),
    flood_steps=400,
)
QUICK = Size(
    starts=STARTS[:1],
    numbers=(60, 120),
    seeds=2,
    train=60,
    levels=(1.5, 1.5),
    limit=60,
    rates=(0.1, 0.3),
    penalties=(0.05,),
    adam_rates=(1e-3, 1e-2),
    follow=(0.4,),
    follow_time=0.8,
    flood_level=1.6,
    flood_rates=(0.2,),
    flood_steps=20,
)


def learning_rate(quick: bool = False, *, reporter: Reporter | None = None) -> StudyResult:
    """Follow gradient descent on two weights; train small networks in every way to one loss.

    Args:
        quick: hardly any training: it shows that the study runs, and its numbers say nothing.
        reporter: told of the progress.
    """
    everything = measure(QUICK if quick else FULL, reporter or Reporter(None))
    found = findings(everything)
    return StudyResult(
        title="A learning rate is a gradient penalty",
        text=_text(everything.size),
        findings=found,
        table=[_row(trial) for trial in everything.trials],
        figures=figures(everything),
        source=(
            "Barrett & Dherin 2021, “Implicit Gradient Regularization” (arXiv 2009.11162): "
            "gradient descent follows the flow of L + (γ/4)‖g‖², so that large learning rates end "
            "in flatter minima, with smaller gradients, better test accuracy and more robust "
            "weights; an explicit penalty does the same. Flooding: Ishida et al. 2020 (arXiv "
            "2002.08709); as a gradient penalty, Su Jianlin (2020, kexue.fm/archives/7643, in "
            "Chinese) and Karakida et al. 2023 (arXiv 2210.02720). Adam, which holds the one-norm "
            "of the gradient up where β₂ > β₁: Cattaneo et al. 2024 (arXiv 2309.00079)."
        ),
        conclusion=_conclusion(found),
    )


def _conclusion(found: Sequence[Finding]) -> Conclusion:
    tests = "At the same training loss a large learning rate tests better, "
    return conclude(
        "A large learning rate is said to be a gradient penalty, to end in flatter minima and to "
        "test better, as an explicit penalty of the same size would",
        found,
        "descent is away from the modified flow with the orders "
        f"{measured(found, 'On a·b gradient descent is O(γ²)')}, a large rate tests "
        f"{measured(found, f'{tests}{WRONG:.0%}')} with wrong labels, and ‖g‖² changes by "
        f"{measured(found, 'It ends where')}",
        "It depends on the labels, the activation and the optimiser: with right labels a large "
        f"rate tests {measured(found, f'{tests}labels right')}, an explicit penalty leaves "
        f"{_left(found, 'GELU')} of the way with GELU and {_left(found, 'ReLU')} with ReLU, and a "
        f"large step of Adam brings {measured(found, 'A large step of Adam')} points",
    )


def _left(found: Sequence[Finding], activation: str) -> str:
    claim = "An explicit penalty of a quarter of the difference leads a small rate where the"
    return measured(found, f"{claim} large one goes, with {activation}")


def measure(size: Size, reporter: Reporter) -> Measured:
    """Measure all that the study has findings on."""
    with reporter.task("two weights", len(size.starts)) as advance:
        products = []
        for start in size.starts:
            products.append(follow(start, size.numbers))
            advance()
    with reporter.task("digits", len(settings(size))) as advance:
        trials = try_settings(size, advance)
    smooth, kinked = (unexplained(size, a) for a in (functional.gelu, functional.relu))
    with reporter.task("flooding", 2 * len(size.flood_rates)) as advance:
        flooded = [flood(size, rate, advance) for rate in size.flood_rates]
    return Measured(size, products, trials, smooth, kinked, step_down_and_up(size), flooded)


def _text(size: Size) -> Sequence[str]:
    return (
        "Gradient descent θ ← θ − γ g leaves the flow θ' = −g by O(γ); the flow of ∇(L + "
        "(γ/4)‖g‖²) it leaves by O(γ²) only. So a learning rate is itself a gradient penalty, "
        "which is said to make flat minima of large ones, to be had by an explicit penalty too, "
        "and to be what flooding does near its level by going down and up. Adam is said to do the "
        "opposite in the one-norm.",
        "The two-parameter model has the loss (0.6 − a·b)²/2, the starts are Barrett and "
        "Dherin’s. Gradient descent is compared with the flows, solved to eleven digits, at the "
        "time of each step.",
        f"Networks of {', '.join(map(str, WIDTHS))} units with GELU learn {size.train} of "
        "scikit-learn’s digits, by gradient descent or Adam on all of them at once, once with all "
        f"labels right and once with {WRONG:.0%} drawn at random, to the losses "
        f"{size.levels[0]:g} and {size.levels[1]:g}. From {SETTLE:g} times that loss on all are "
        f"trained alike, by gradient descent with γ = {size.rates[0]:g}, so that places are "
        "compared and not phases of an oscillation. The other digits test; once more with noise "
        f"of {NOISE:.0%} of each weight. {size.seeds} seeds, each with its own images, labels and "
        "first weights, the same for all ways of training.",
    )


def _row(trial: Trial) -> dict[str, str | float]:
    setting = trial.setting
    return {
        "labels": f"{WRONG:.0%} wrong" if setting.wrong else "right",
        "optimizer": "descent" if setting.beta2 is None else f"Adam, β₂ = {setting.beta2:g}",
        "γ": setting.rate,
        "λ": setting.penalty,
        "steps": float(trial.steps.mean()),
        "steps uphill": float(trial.rises.mean()),
        "accuracy": float(trial.accuracy.mean()),
        "with noise": float(trial.robust.mean()),
        "‖g‖²": float(trial.settled.squared.mean()),
        "‖g‖₁": float(trial.settled.one_norm.mean()),
    }
