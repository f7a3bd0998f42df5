"""What the study of RealFormer claims, and how close counts: decided before it was run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from longarc.studies.realformer.measured import Measured
from longarc.studies.realformer.scratch_training import Outcome
from longarc.studies.shared.long_tailed_tuning import Gain, gain
from longarc.studies.study import Finding


def findings(measured: Measured) -> list[Finding]:
    """Every claim with its verdict."""
    return [
        *_ordering(measured),
        _warm_up(measured),
        _gradients(measured),
        *_patterns(measured),
        _many_classes(measured),
        *_pretrained(measured),
    ]


def difference(one: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[float, float]:
    """Mean difference of the shares restored, and its standard error over texts and seeds.

    Texts and seeds are drawn independently of each other, so that their variances add up.
    """
    pairs = zip(one, other, strict=True)
    by_seed = torch.stack([a.final - b.final for a, b in pairs])  # (seeds, texts)
    error = _error(by_seed.mean(0)) ** 2 + _error(by_seed.mean(1)) ** 2
    return float(by_seed.mean()), error**0.5


def class_gains(measured: Measured, figure: str = "accuracy") -> list[Gain]:
    """What RealFormer has over PostLN on each task; each task draws its own resamples."""
    return [
        gain(tuned.task, tuned.given["RealFormer"], tuned.given["PostLN"], figure, seed)
        for seed, tuned in enumerate(measured.tuned)
    ]


def _ordering(measured: Measured) -> list[Finding]:
    found = []
    for better, worse in (("RealFormer", "PostLN"), ("PostLN", "PreLN")):
        ahead, noise = difference(measured.runs[better], measured.runs[worse])
        shares = (_mean(measured.runs[name]) for name in (better, worse))
        found.append(
            Finding(
                f"{better} restores more masked tokens than {worse}.",
                "more",
                " against ".join(f"{share:.1%}" for share in shares),
                ahead > 2 * noise,
                f"At the best learning rate of each; difference {ahead:+.2%} ± {noise:.2%}. Holds "
                "if it is above zero by more than two.",
            )
        )
    return found


def _warm_up(measured: Measured) -> Finding:
    gained = {
        name: torch.stack(
            [
                measured.cell(name, rate, True).final - measured.cell(name, rate, False).final
                for rate in measured.size.rates
            ]
        ).mean(0)
        for name in ("PostLN", "PreLN")
    }
    more = gained["PostLN"] - gained["PreLN"]
    noise = _error(more)
    return Finding(
        "PostLN gains from warm-up more than PreLN does.",
        "more",
        f"{gained['PostLN'].mean():+.2%} against {gained['PreLN'].mean():+.2%}",
        float(more.mean()) > 2 * noise,
        "Share restored with warm-up minus without, a mean over the learning rates "
        + ", ".join(f"{rate:g}" for rate in measured.size.rates)
        + f", one seed; difference {more.mean():+.2%} ± {noise:.2%} over texts. Holds if it is "
        "above zero by more than two.",
    )


def _gradients(measured: Measured) -> Finding:
    ratios = {
        name: torch.tensor(
            [math.log(run[0] / run[-1]) for run in measured.gradients[name]], dtype=torch.float64
        )
        for name in ("PostLN", "PreLN")
    }
    post, pre = ratios["PostLN"], ratios["PreLN"]
    below_one = float(post.mean()) + 2 * _error(post) < 0
    below_other = float((post - pre).mean()) + 2 * _error(post - pre) < 0
    return Finding(
        "At the start PostLN’s gradients are smaller in the first layer than in the last, and "
        "smaller against it than PreLN’s.",
        "below 1, and below PreLN’s",
        f"{post.mean().exp():.2f} against {pre.mean().exp():.2f}",
        below_one and below_other,
        "Norm of the first batch’s gradient in the first layer’s weights over that in the last’s, "
        f"a geometric mean over {len(post)} seeds. Holds if both are so by more than two standard "
        "errors over the seeds.",
    )


def _patterns(measured: Measured) -> list[Finding]:
    seeds = len(measured.runs["PostLN"])
    by_number = {
        name: torch.tensor(measured.alike_by_number[name]).mean()
        for name in ("RealFormer", "PostLN")
    }
    claims = (
        (
            "Neighbouring layers attend more alike in RealFormer than in PostLN.",
            "more alike",
            measured.alike,
            1,
            "1 − Jensen-Shannon divergence in bits between each head and the head of the layer "
            "before that is most like it, which favours neither. Heads of the same number: "
            f"{by_number['RealFormer']:.2f} against {by_number['PostLN']:.2f}.",
        ),
        (
            "RealFormer’s attention has a lower entropy than PostLN’s.",
            "lower",
            measured.entropies,
            -1,
            "A share of the entropy of attending to all tokens alike.",
        ),
    )
    found = []
    for claim, expected, values, sign, how in claims:
        # A mean over layers; the seeds are paired by the weights they start from.
        one, other = (torch.tensor(values[name]).mean(1) for name in ("RealFormer", "PostLN"))
        more = one - other
        found.append(
            Finding(
                claim,
                expected,
                f"{one.mean():.3f} against {other.mean():.3f}",
                sign * float(more.mean()) > 2 * _error(more),
                f"{how} A mean over layers, held-out texts and {seeds} seeds; difference "
                f"{more.mean():+.3f} ± {_error(more):.3f} over seeds. Holds from two.",
            )
        )
    return found


def _many_classes(measured: Measured) -> Finding:
    gains = class_gains(measured)
    tasks = [tuned.task for tuned in measured.tuned]
    order = sorted(range(len(tasks)), key=lambda i: tasks[i].classes)
    few, many = gains[order[0]], gains[order[-1]]
    shrunk = Gain(few.difference - many.difference, few.drawn - many.drawn)
    low, high = shrunk.interval
    return Finding(
        "RealFormer’s gain over PostLN shrinks as classes become many.",
        "shrinking",
        "; ".join(f"{tasks[i].classes} classes: {_with_interval(gains[i])}" for i in order),
        low > 0,
        f"Gain in accuracy, a mean over {len(measured.runs['PostLN'])} seeds. With the fewest "
        f"classes it is larger than with the most by {shrunk.difference:+.1%} ({low:+.1%} to "
        f"{high:+.1%}). Holds if that interval is above zero: 95 %, bootstrap over the test "
        "documents, paired for the two encoders; it says nothing of other seeds.",
    )


def _pretrained(measured: Measured) -> list[Finding]:
    none, plain, gate = measured.minilm
    lost, noise = _paired(plain.before, none.before)
    still, still_noise = _paired(plain.after, none.after)
    gated, gated_noise = _paired(gate.after, none.after)
    tested = f"{len(none.before)} texts; ± is one standard error over texts"
    return [
        Finding(
            "Residual attention put into a pretrained encoder puts it out.",
            "fewer restored",
            f"{plain.before.mean():.1%} against {none.before.mean():.1%}",
            lost < -2 * noise,
            f"MiniLM, before any training with it; {lost:+.1%} ± {noise:.1%}; {tested}. Holds if "
            "it is below zero by more than two.",
        ),
        Finding(
            "With gates that start at 0 nothing changes before training.",
            f"{none.before.mean():.1%}",
            f"{gate.before.mean():.1%}",
            float((gate.before - none.before).abs().max()) < 1e-6,
            "The share of every text, to within 1e-6.",
        ),
        Finding(
            "A short training does not make up for what was put out.",
            "fewer restored",
            f"{plain.after.mean():.1%} against {none.after.mean():.1%}",
            still < -2 * still_noise,
            f"longarc’s question, not published; after training on {measured.size.minilm[2]} texts "
            f"each, {still:+.1%} ± {still_noise:.1%}; {tested}. Holds if it is below zero by more "
            "than two.",
        ),
        Finding(
            "With gates nothing is lost by a short training.",
            "no fewer restored",
            f"{gate.after.mean():.1%} against {none.after.mean():.1%}",
            gated >= -2 * gated_noise,
            f"longarc’s question; {gated:+.1%} ± {gated_noise:.1%}; {tested}. Holds unless it is "
            "below zero by more than two.",
        ),
    ]


def _with_interval(gained: Gain) -> str:
    low, high = gained.interval
    return f"{gained.difference:+.1%} ({low:+.1%} to {high:+.1%})"


def _mean(outcomes: Sequence[Outcome]) -> float:
    return float(torch.stack([outcome.final for outcome in outcomes]).mean())


def _paired(one: Tensor, other: Tensor) -> tuple[float, float]:
    return float((one - other).mean()), _error(one - other)


def _error(values: Tensor) -> float:
    """Standard error of the mean of values (N,)."""
    return float(values.std()) / len(values) ** 0.5
