"""What the study of SimSiam claims, and how close counts: decided before it was run."""

from __future__ import annotations

from longarc.studies.shared.intervals import interval
from longarc.studies.simsiam.measured import (
    COLLAPSING,
    HEALTHY,
    LENGTH,
    LONGER,
    NORMS,
    Measured,
)
from longarc.studies.simsiam.reading import (
    compared,
    end_spreads,
    mean_knn,
    mean_loss,
    outcomes_of,
    pair,
    quoted,
    rate_ratio,
    span,
    values_of,
    written_spreads,
)
from longarc.studies.simsiam.scalar import START, end, least_speed
from longarc.studies.study import Finding

COLLAPSED, APART = 0.1, 0.5
"""A spread below the first is collapse, one above the second is not."""

LATE = 50
"""Steps from onset to alarm that are allowed. Of these two of three measurements are patience."""


def findings(measured: Measured) -> list[Finding]:
    """Every claim with its verdict."""
    return [
        *_scalar(measured),
        *_ablations(measured),
        *_accuracies(measured),
        _told_apart(measured),
        _alarms(measured),
        _fast_and_slow(measured),
        *_mean_view(measured),
        _heads(measured),
    ]


def _scalar(measured: Measured) -> list[Finding]:
    cases = {
        "first": "With the stop-gradient the scalar model’s predictor fits and its encoder lives: "
        "φ → 1, θ → √(θ₀² + 1 − φ₀²).",
        "both": "Without it the encoder dies first: θ → 0, φ → 1 − √((1 − φ₀)² − θ₀²).",
        "second": "With a gradient through the target alone it dies too: θ → 0, φ → φ₀ + θ₀²/2.",
    }
    found = []
    for branches, claim in cases.items():
        flow, at = measured.flows[branches], end(branches)  # pyright: ignore[reportArgumentType]
        reached = flow.phi[-1], flow.theta[-1]
        found.append(
            Finding(
                claim,
                pair(at),
                pair(reached),
                max(abs(a - b) for a, b in zip(at, reached, strict=True)) < 1e-6,
                f"φ and θ at time {flow.times[-1]:g} from {pair(START)}, by Runge-Kutta steps, "
                "against the end that the invariant gives; to within 1e-6.",
            )
        )
    ends = {r: (flow.phi[-1], flow.theta[-1]) for r, flow in measured.speeds.items()}
    right = all(
        max(abs(a - b) for a, b in zip(end("both", r), at, strict=True)) < 1e-6
        for r, at in ends.items()
    )
    found.append(
        Finding(
            f"With a predictor more than ((1 − φ₀)/θ₀)² = {least_speed():.0f} times as fast the "
            "encoder lives even without the stop-gradient.",
            "; ".join(f"{r:g} times: {pair(end('both', r))}" for r in ends),
            "; ".join(f"{r:g} times: {pair(at)}" for r, at in ends.items()),
            right and ends[10.0][1] < 1e-6 < ends[25.0][1],
            "longarc’s, from the invariant θ² − (1 − φ)²/r; φ and θ at the end, to within 1e-6.",
        )
    )
    return found


def _ablations(measured: Measured) -> list[Finding]:
    claims = (
        ("no stop-gradient", "Without the stop-gradient codes collapse.", "0.1 % accuracy"),
        ("no predictor", "Without a predictor they collapse in spite of it.", "0.1 % accuracy"),
    )
    found = []
    for name, claim, published in claims:
        spreads = {
            runs.material.name: (end_spreads(runs, "SimSiam"), end_spreads(runs, name))
            for runs in measured.materials
        }
        found.append(
            Finding(
                claim,
                published,
                "; ".join(
                    f"{data}: spread {span(gone)} against {span(kept)}"
                    for data, (kept, gone) in spreads.items()
                ),
                all(min(k) > APART and max(g) < COLLAPSED for k, g in spreads.values()),
                f"Spread of the projections at the end, range over {measured.size.seeds} starts. "
                f"Holds if it is below {COLLAPSED:g} in every run, and above {APART:g} in every "
                "run of SimSiam.",
            )
        )
    return found


def _accuracies(measured: Measured) -> list[Finding]:
    how = (
        "Accuracy of nearest neighbours, and the difference with its 95 % interval over "
        f"{measured.size.seeds} starts, paired. Holds if "
    )
    averages = [name for name in HEALTHY if name.startswith("moving average")]
    best = {
        runs.material.name: max(averages, key=lambda name: mean_knn(runs, name))
        for runs in measured.materials
    }
    return [
        Finding(
            "SimSiam’s codes are better than those of the untrained network.",
            "better",
            *compared(measured, "SimSiam", "untrained", more=True),
            f"{how}the interval is above zero on both.",
        ),
        Finding(
            "They are better than what the encoder is given.",
            "better",
            *compared(measured, "SimSiam", "inputs", more=True),
            "Against pixels and MiniLM’s vectors as they are, which the encoder reads. "
            f"{how}the interval is above zero on both. SimCLR has "
            + "; ".join(
                f"{r.material.name} {mean_knn(r, 'SimCLR'):.1%}" for r in measured.materials
            )
            + ".",
        ),
        Finding(
            "A linear probe, too, tells collapsed codes from SimSiam’s.",
            "0.1 % against 67.7 %",
            *compared(measured, "no stop-gradient", "SimSiam", more=False, by="probe"),
            "Accuracy of a linear classifier of the codes, which scales them as it likes: without "
            "the stop-gradient against SimSiam. Without a predictor it has "
            + "; ".join(
                f"{r.material.name} {interval(values_of(r, 'no predictor', 'probe'))[0]:.1%}"
                for r in measured.materials
            )
            + f". The difference with its 95 % interval over {measured.size.seeds} starts, paired. "
            "Holds if the interval is below zero on both.",
        ),
        Finding(
            "A predictor fixed at random does not make up for one that learns.",
            "1.5 % against 67.7 %",
            *compared(measured, "predictor fixed at random", "SimSiam", more=False),
            f"{how}the interval is below zero on both. Its spread at the end: "
            + written_spreads(measured, "predictor fixed at random")
            + ": that is no collapse; its loss is: "
            + "; ".join(
                f"{r.material.name} {mean_loss(r, 'predictor fixed at random'):.2f} against "
                f"{mean_loss(r, 'SimSiam'):.2f}"
                for r in measured.materials
            )
            + ".",
        ),
        Finding(
            "Without decay of the predictor’s learning rate codes are no worse.",
            "68.1 % against 67.7 %",
            *compared(measured, "predictor’s rate not decayed", "SimSiam", more=None),
            f"{how}the interval is not below zero on either.",
        ),
        Finding(
            "A fast predictor is better than a slow one.",
            "better",
            *compared(measured, "predictor’s rate × 10", "predictor’s rate × 0.1", more=True),
            "Predictor’s learning rate 10 times the encoder’s against a tenth of it; in between: "
            + "; ".join(
                f"{r.material.name} {mean_knn(r, 'SimSiam'):.1%}" for r in measured.materials
            )
            + f". {how}the interval is above zero on both.",
        ),
        Finding(
            "No moving average as target is needed.",
            "no worse without",
            *compared(measured, "SimSiam", best, more=None),
            f"SimSiam against the best of {', '.join(n.split()[-1] for n in averages)} on each "
            f"data set ({', '.join(f'{d}: {n.split()[-1]}' for d, n in best.items())}). {how}"
            "the interval is not below zero on either.",
        ),
    ]


def _told_apart(measured: Measured) -> Finding:
    said, apart = [], []
    for name in ("relative_std", "effective_rank", "uniformity", "cosine_spread", "alignment"):
        values = [
            [getattr(o.measured[-1], name) for o in outcomes_of(measured, names)]
            for names in (COLLAPSING, HEALTHY)
        ]
        low, high = sorted(values, key=max)
        apart.append(max(low) < min(high))
        said.append(f"{name.replace('_', ' ')} {span(values[0])} against {span(values[1])}")
    return Finding(
        "Every measure tells collapsed runs from healthy ones.",
        "no overlap",
        "; ".join(said),
        all(apart),
        f"Of the last batch’s projections: ranges over {len(outcomes_of(measured, COLLAPSING))} "
        f"runs {quoted(COLLAPSING)} and {len(outcomes_of(measured, HEALTHY))} others that should "
        "be healthy, both data sets together.",
    )


def _alarms(measured: Measured) -> Finding:
    gone, healthy = outcomes_of(measured, COLLAPSING), outcomes_of(measured, HEALTHY)
    alarms = [o.alarm for o in gone if o.alarm is not None]
    false = sum(o.alarm is not None for o in healthy)
    late = [o.alarm.step - o.onset for o in gone if o.alarm is not None and o.onset is not None]
    lowest = min(
        min(min(o.spread) / max(o.spread), (min(o.rank) - 1) / (max(o.rank) - 1)) for o in healthy
    )
    return Finding(
        f"The detector gives the alarm within {LATE} steps of the onset in every run that "
        "collapses, and in no other.",
        "all, and none",
        f"{len(alarms)} of {len(gone)}, {span(late)} steps after the onset; {false} of "
        f"{len(healthy)}",
        len(alarms) == len(gone) and not false and bool(late) and max(late) <= LATE,
        f"longarc’s detector, told of the projections every {measured.size.every} steps. Onset is "
        "the step from which on spread or rank stays below half of its best. The lowest that a "
        f"healthy run was in either is {lowest:.2f} of its best; the limit is 0.2, chosen on runs "
        "from other starts.",
    )


def _fast_and_slow(measured: Measured) -> Finding:
    names = ("predictor’s rate × 0.1", "SimSiam", "predictor’s rate × 10")
    ratios = {
        name: {
            r.material.name: [rate_ratio(o) for o in r.outcomes[name]] for r in measured.materials
        }
        for name in names
    }
    plain = ratios["SimSiam"]
    return Finding(
        "The predictor is fast, the encoder slow.",
        "above 1",
        "; ".join(f"{data}: {span(values)}" for data, values in plain.items()),
        min(min(values) for values in plain.values()) > 1,
        "How far a step moves the predictor’s weights, relative to their norm, over the same of "
        "encoder and projector: geometric mean over the steps of the first half, range over "
        "starts. Holds if above 1 in every run. With the predictor’s learning rate × 0.1 "
        + ", × 10 ".join(
            " and ".join(f"{span(values)}" for values in ratios[name].values())
            for name in (names[0], names[2])
        )
        + ".",
    )


def _mean_view(measured: Measured) -> list[Finding]:
    found = []
    claims = (
        (
            "neither, f(x̄)",
            "neither",
            "With f(x̄) as target codes do not collapse, without stop-gradient and predictor.",
        ),
        (
            "no stop-gradient, f(x̄)",
            "no stop-gradient",
            "Nor do they with a predictor, without stop-gradient.",
        ),
        (
            "no predictor, f(x̄)",
            "no predictor",
            "Nor do they with the stop-gradient, without a predictor.",
        ),
    )
    for name, other, claim in claims:
        spreads = [end_spreads(runs, name) for runs in measured.materials]
        found.append(
            Finding(
                claim,
                "an open question",
                f"spread {written_spreads(measured, name)}; with the other view as target "
                f"{written_spreads(measured, other)}",
                all(min(values) > APART for values in spreads),
                f"Mean over {measured.size.seeds} starts at the end, ± its 95 % interval. Holds if "
                f"it is above {APART:g} in every run. Largest of any run: "
                + ", ".join(f"{max(values):.3f}" for values in spreads)
                + f".{_longer(measured, name)}",
            )
        )
    scales = {
        name: [values_of(runs, name, "end_scale") for runs in measured.materials]
        for name in ("neither, squared", "neither, f(x̄), squared")
    }
    found.append(
        Finding(
            "With squared distances, as the question was put, they do not either.",
            "an open question",
            " and ".join(
                f"{name}: "
                + ", ".join("{:.2f} ± {:.2f}".format(*interval(each)) for each in values)
                for name, values in scales.items()
            ),
            all(min(each) > APART for each in scales["neither, f(x̄), squared"]),
            "Standard deviation of the projections at the end, not normalised, relative to the "
            "start: digits, licences. Holds if above "
            f"{APART:g} in every run.",
        )
    )
    linear, network = measured.linear_gradients, measured.network_gradients
    exact = max(max(abs(cosine - 1), abs(ratio - 2)) for cosine, ratio in linear)
    found.append(
        Finding(
            "For a linear encoder f(x̄) leads the same way at half the speed: its gradient is half "
            "of that with the other view as target.",
            "cosine 1, ratio 2",
            f"cosine {span([c for c, _ in linear])}, ratio {span([r for _, r in linear])}",
            exact < 1e-4,
            "longarc’s: E‖W(T₁x − T₂x)‖² = 2 E‖W(Tx − x̄)‖². Exact means over all passages of the "
            "documents, to within 1e-4. For the network of two layers at its start: cosine "
            f"{span([c for c, _ in network])}, ratio {span([r for _, r in network])}.",
        )
    )
    gains = {
        runs.material.name: interval([o.knn_of_means - o.knn for o in runs.outcomes["SimSiam"]])
        for runs in measured.materials
    }
    found.append(
        Finding(
            "f(x̄) is a better feature than f of one view.",
            "an open question",
            "; ".join(f"{data}: {mean:+.1%} ± {half:.1%}" for data, (mean, half) in gains.items()),
            all(mean > half for mean, half in gains.values()),
            "Accuracy of nearest neighbours, mean views among mean views less views among views; "
            "SimSiam. Holds if the interval is above zero on both. x̄ has seen all views: for the "
            "untrained network it is "
            + "; ".join(
                f"{r.material.name} "
                f"{interval([o.knn_of_means - o.knn for o in r.outcomes['untrained']])[0]:+.1%}"
                for r in measured.materials
            )
            + ".",
        )
    )
    return found


def _longer(measured: Measured, name: str) -> str:
    """What becomes of it in a longer training, if that was tried."""
    if name not in LONGER:
        return ""
    spreads = [end_spreads(runs, LONGER[name]) for runs in measured.materials]
    return f" In {LENGTH} times the steps it ends at {span([v for s in spreads for v in s])}."


def _heads(measured: Measured) -> Finding:
    said, kept = [], []
    for norm in NORMS.values():
        values = [end_spreads(runs, f"SimSiam, norm {norm}") for runs in measured.materials]
        ratios = [
            [o.end_spread / o.spread[0] for o in runs.outcomes[f"SimSiam, norm {norm}"]]
            for runs in measured.materials
        ]
        kept.append(min(min(each) for each in ratios) > COLLAPSED)
        said.append(
            f"{norm}: {span([v for each in values for v in each])}, "
            f"{span([v for each in ratios for v in each])} of the start"
        )
    blind = [
        o
        for runs in measured.materials
        for name in ("no stop-gradient", "no predictor")
        for o in runs.outcomes[f"{name}, norm {NORMS['output']}"]
    ]
    return Finding(
        "With the stop-gradient codes do not collapse, whatever the normalisation of the heads.",
        "34.6 % without any, 68.1 % with batch normalisation after the last layer too",
        "spread by norm " + "; ".join(said),
        all(kept),
        f"SimSiam at the end, range over {measured.size.few_seeds} starts and both data sets. "
        f"Holds if above {COLLAPSED:g} of the start in every run: without batch normalisation "
        "projections start alike. With batch normalisation after the last layer, runs without "
        f"stop-gradient or predictor end at a spread of {span([o.end_spread for o in blind])} but "
        f"a rank of {span([o.end_rank for o in blind])}: they collapse where the spread does not "
        "show it.",
    )
