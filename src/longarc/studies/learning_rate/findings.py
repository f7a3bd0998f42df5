"""What the study of learning rates claims, and how close counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from longarc.dynamics.modified_flow import ORDERS
from longarc.studies.learning_rate.flooding import PAIR_RATES, Flooded, Pair
from longarc.studies.learning_rate.product import Followed, path_name
from longarc.studies.learning_rate.runs import NOISE, SETTLE, WRONG, Size, Trial, of
from longarc.studies.shared.intervals import interval
from longarc.studies.study import Finding

CLOSE = 0.1  # an order of convergence, to count as the one expected


@dataclass(frozen=True)
class Measured:
    """Everything the study measures.

    ``smooth`` and ``kinked`` are what explicit penalties leave unexplained with GELU and ReLU.
    """

    size: Size
    products: list[Followed]
    trials: list[Trial]
    smooth: dict[float, tuple[float, Tensor]]
    kinked: dict[float, tuple[float, Tensor]]
    pair: Pair
    flooded: list[Flooded]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with the half-width of its 95 % interval (Student's t)."""

    value: float
    half: float

    @property
    def above(self) -> bool:
        """Whether all of the interval is above 0."""
        return self.value > self.half

    @property
    def below(self) -> bool:
        """Whether all of the interval is below 0."""
        return self.value < -self.half


def mean_of(values: Tensor) -> Mean:
    """Mean of values (S,) of as many seeds.

    >>> import torch
    >>> mean_of(torch.tensor([1.0, 2.0, 3.0]))  # t of 2 degrees of freedom is 4.303
    Mean(value=2.0, half=2.4841...)
    """
    return Mean(*interval(values.double().tolist()))


def findings(measured: Measured) -> list[Finding]:
    """Every claim with its verdict."""
    return [
        *_orders(measured.products),
        _flatter(measured.products[-1]),
        *_rates(measured),
        *_explicit(measured),
        *_flooding(measured),
        *_adam(measured),
    ]


def points(mean: Mean) -> str:
    """A difference of shares in percentage points, with its interval.

    >>> points(Mean(0.0123, 0.004))
    '+1.2 ± 0.4'
    """
    return f"{100 * mean.value:+.1f} ± {100 * mean.half:.1f}".replace("-", "−")


def percent(mean: Mean) -> str:
    """A relative change.

    >>> percent(Mean(-0.25, 0.031))
    '−25 ± 3 %'
    """
    digits = 0 if max(abs(mean.value), mean.half) >= 0.095 else 1
    shown = f"{100 * mean.value:+.{digits}f} ± {100 * mean.half:.{digits}f} %"
    return shown.replace("-", "−")


def _orders(products: Sequence[Followed]) -> list[Finding]:
    found = []
    for order, flow in enumerate(("gradient flow", "modified flow", "next order’s flow")):
        slopes = [followed.slope(order) for followed in products]
        source = "" if order < 2 else "longarc’s addition to the published claim. "
        found.append(
            Finding(
                f"On a·b gradient descent is O(γ{'' if order == 0 else '²³'[order - 1]}) away from "
                f"the {flow}.",
                f"slope {order + 1}",
                ", ".join(f"{value:.2f}" for value in slopes),
                all(abs(value - order - 1) <= CLOSE for value in slopes),
                f"{source}Slope of the logarithm of the largest distance on the way against that "
                "of γ, from "
                + "; ".join(
                    f"{f.start.name}, γ = {f.sizes[0]:.2g} to {f.sizes[-1]:.2g}" for f in products
                )
                + f". Holds if each is within {CLOSE:g}.",
            )
        )
    return found


def _flatter(followed: Followed) -> Finding:
    flow, first, second = (followed.sharpness(path_name(order)) for order in ORDERS)
    walked = followed.sharpness("gradient descent")
    return Finding(
        "A large step ends in a flatter minimum, and the modified flow says in which.",
        f"below {flow:.1f}",
        f"{walked:.1f}; modified flow {first:.1f}, second order {second:.1f}",
        walked < flow and abs(first - walked) < abs(flow - walked) / 2,
        f"Second derivative a² + b² at the end, from {followed.start.name} with γ = "
        f"{followed.start.lr:g}; the gradient flow’s is {flow:.1f}. Holds if descent’s is lower "
        "and the modified flow is off by less than half of the difference.",
    )


def _rates(measured: Measured) -> list[Finding]:
    size = measured.size
    low, high = size.rates[0], size.rates[-1]
    wrong, right = (of(measured.trials, wrong=w, penalty=0.0, beta2=None) for w in (True, False))
    seeds = f"{size.seeds} seeds, paired; ± is half a 95 % interval"
    found = []
    for trials, labels in ((wrong, f"{WRONG:.0%} of the labels wrong"), (right, "labels right")):
        gained = mean_of(trials[-1].accuracy - trials[0].accuracy)
        found.append(
            Finding(
                f"At the same training loss a large learning rate tests better, {labels}.",
                "more",
                f"{_share(trials[-1].accuracy)} against {_share(trials[0].accuracy)}",
                gained.above,
                f"Test accuracy with γ = {high:g} and {low:g} at the loss "
                f"{size.levels[trials[0].setting.wrong]:g}; {points(gained)} points; {seeds}. "
                "Holds if the interval is above zero.",
            )
        )
    robust = [mean_of(trials[-1].robust - trials[0].robust) for trials in (wrong, right)]
    found.append(
        Finding(
            "It finds weights that bear noise better.",
            "more",
            f"{_share(wrong[-1].robust)} against {_share(wrong[0].robust)}",
            all(gained.above for gained in robust),
            f"Test accuracy with {NOISE:.0%} of noise on every weight, γ = {high:g} and {low:g}; "
            f"{points(robust[0])} points, with labels right {points(robust[1])}; {seeds}. Holds "
            "if both intervals are above zero.",
        )
    )
    squares = [
        mean_of(trials[-1].settled.squared / trials[0].settled.squared - 1)
        for trials in (wrong, right)
    ]
    there = mean_of(wrong[-1].arrived.squared / wrong[0].arrived.squared - 1)
    found.append(
        Finding(
            "It ends where ‖g‖² is smaller.",
            "less",
            f"{percent(squares[0])}; labels right {percent(squares[1])}",
            all(change.below for change in squares),
            f"‖g‖² with γ = {high:g} against {low:g} at the same loss, after the last part was "
            f"walked at {low:g} by both. Before that, at {SETTLE:g} times the loss and bouncing: "
            f"{percent(there)}. {seeds}. Holds if both intervals are below zero.",
        )
    )
    return found


def _explicit(measured: Measured) -> list[Finding]:
    size = measured.size
    found = []
    for left, function, note in (
        (measured.smooth, "GELU", ""),
        (measured.kinked, "ReLU", "longarc’s question: ReLU has no second derivative at 0. "),
    ):
        shares = {rate: mean_of(share) for rate, (_, share) in left.items()}
        found.append(
            Finding(
                "An explicit penalty of a quarter of the difference leads a small rate where the "
                f"large one goes, with {function}.",
                "0 % left",
                ", ".join(f"{share.value:.1%}" for share in shares.values()),
                all(share.value + share.half < 0.5 for share in shares.values()),
                f"{note}Distance between the weights after the time {size.follow_time:g} with γ = "
                + ", ".join(f"{rate:g}" for rate in shares)
                + " and with γ/4 and λ = (γ − γ/4)/4, as a share of the distance without λ; "
                f"{size.seeds} seeds, up to ± {max(s.half for s in shares.values()):.1%}. Holds if "
                "less than half is left.",
            )
        )
    plain = of(measured.trials, wrong=True, penalty=0.0, beta2=None)
    penalised = [t for t in of(measured.trials, wrong=True, beta2=None) if t.setting.penalty]
    small, large = plain[0], plain[-1]
    behind = [mean_of(t.accuracy - large.accuracy) for t in penalised]
    gains = [mean_of(t.accuracy - small.accuracy) for t in penalised]
    robust = [mean_of(t.robust - small.robust) for t in (*penalised, large)]
    found.append(
        Finding(
            "In a whole training an explicit penalty makes up for a small learning rate.",
            f"as much, {points(mean_of(large.accuracy - small.accuracy))}",
            ", ".join(points(gain) for gain in gains),
            any(g.above and not b.below for g, b in zip(gains, behind, strict=True)),
            f"Points of test accuracy gained over γ = {small.setting.rate:g} alone, {WRONG:.0%} of "
            f"the labels wrong, by γ = {large.setting.rate:g}, and by λ = "
            + ", ".join(f"{t.setting.penalty:g}" for t in penalised)
            + f" with γ = {small.setting.rate:g}; the first λ is (γ − {small.setting.rate:g})/4. "
            "With noise on the weights "
            + ", ".join(points(gain) for gain in robust[:-1])
            + f" of {points(robust[-1])}. Holds if some λ gains and its interval against the "
            "large rate reaches zero.",
        )
    )
    return found


def _flooding(measured: Measured) -> list[Finding]:
    size = measured.size
    moved, missed = measured.pair.slopes
    claims = [
        Finding(
            "A step down and a step up of size γ move by −γ² H g = −(γ²/2) ∇‖g‖².",
            "slopes 2 and 3",
            f"{moved:.2f} and {missed:.2f}",
            abs(moved - 2) <= CLOSE and abs(missed - 3) <= CLOSE,
            "Order in γ of the displacement, and of what is left of it without the prediction: "
            f"γ = {PAIR_RATES[0]:g} to {PAIR_RATES[-1]:g}, float64, one network where its loss is "
            f"{size.flood_level:g}. Relative error at γ = {PAIR_RATES[0]:g}: "
            f"{measured.pair.missed[0] / measured.pair.moved[0]:.1%}. Holds if both are within "
            f"{CLOSE:g}.",
        )
    ]
    window = max(1, size.flood_steps // 20)
    first, last = (
        [run.squared[0][part].median(0).values for run in measured.flooded]
        for part in (slice(window), slice(-window, None))
    )
    changes = {
        run.rate: mean_of(b / a - 1)
        for run, a, b in zip(measured.flooded, first, last, strict=True)
    }
    claims.append(
        Finding(
            "So flooding penalises the gradient: at the level ‖g‖² falls.",
            "less",
            "; ".join(f"γ = {rate:g}: {percent(change)}" for rate, change in changes.items()),
            all(change.below for change in changes.values()),
            f"Median of ‖g‖² over the last {window} of {size.flood_steps} steps at the level "
            f"{size.flood_level:g}, against the first {window}, bouncing included; "
            f"{WRONG:.0%} of the labels wrong. It ends at "
            + ", ".join(f"{float(squared.mean()):.3g}" for squared in last)
            + ". Of the steps "
            + ", ".join(f"{run.turns:.1%}" for run in measured.flooded)
            + " turn round. Holds if every interval is below zero.",
        )
    )
    against_plain = [mean_of(run.accuracy[1] - run.accuracy[2]) for run in measured.flooded]
    against_first = [mean_of(run.accuracy[1] - run.accuracy[0]) for run in measured.flooded]
    rates = ", ".join(f"{run.rate:g}" for run in measured.flooded)
    claims += [
        Finding(
            "Flooding tests better than training on.",
            "more",
            ", ".join(points(gain) for gain in against_plain),
            all(gain.above for gain in against_plain),
            f"Test accuracy after {size.flood_steps} more steps with flooding less that without, "
            f"in points, γ = {rates}. Holds if every interval is above zero.",
        ),
        Finding(
            "Flooding tests better than stopping at the level.",
            "more",
            ", ".join(points(gain) for gain in against_first),
            all(gain.above for gain in against_first),
            f"longarc’s question: the same less that where the level was reached, γ = {rates}. "
            "Holds if every interval is above zero.",
        ),
    ]
    return claims


def _adam(measured: Measured) -> list[Finding]:
    size = measured.size
    low, high = size.adam_rates[0], size.adam_rates[-1]
    usual, less = (
        [of(measured.trials, wrong=wrong, beta2=beta2) for wrong in (True, False)]
        for beta2 in (0.999, 0.9)
    )
    by_rate = [mean_of(t[-1].settled.one_norm / t[0].settled.one_norm - 1) for t in usual]
    squares = [mean_of(t[-1].settled.squared / t[0].settled.squared - 1) for t in usual]
    by_beta = [
        mean_of(a[0].settled.one_norm / b[0].settled.one_norm - 1)
        for a, b in zip(usual, less, strict=True)
    ]
    rates = ", ".join(f"{rate:g}" for rate in size.adam_rates)
    along = "; ".join(
        ", ".join(f"{float(trial.settled.one_norm.mean()):.2f}" for trial in trials)
        for trials in usual
    )
    accuracy = [mean_of(t[-1].accuracy - t[0].accuracy) for t in usual]
    seeds = f"{size.seeds} seeds"
    return [
        Finding(
            "The larger Adam’s step, the larger ‖g‖₁ at the same loss.",
            "more",
            f"{percent(by_rate[0])}; labels right {percent(by_rate[1])}",
            all(change.above for change in by_rate),
            f"β₁ = 0.9, β₂ = 0.999; γ = {high:g} against {low:g}, {seeds}. ‖g‖₁ for γ = {rates}: "
            f"{along}. ‖g‖² changes by {percent(squares[0])}; {percent(squares[1])}. Holds if both "
            "intervals are above zero.",
        ),
        Finding(
            "The larger β₂, the larger ‖g‖₁ at the same loss.",
            "more",
            f"{percent(by_beta[0])}; labels right {percent(by_beta[1])}",
            all(change.above for change in by_beta),
            f"β₂ = 0.999 against 0.9, both with γ = {low:g} and β₁ = 0.9, {seeds}. Holds if both "
            "intervals are above zero.",
        ),
        Finding(
            "A large step of Adam tests better, as one of gradient descent does.",
            "more",
            f"{points(accuracy[0])}; labels right {points(accuracy[1])}",
            all(gain.above for gain in accuracy),
            f"longarc’s question: test accuracy in points, γ = {high:g} against {low:g}, {seeds}. "
            "Holds if both intervals are above zero.",
        ),
    ]


def _share(values: Tensor) -> str:
    return f"{float(values.mean()):.1%}"
