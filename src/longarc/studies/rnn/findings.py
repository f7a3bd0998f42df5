"""What the study of recurrent cells claims, and how close counts: decided before it was run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from longarc.studies.rnn.bounds import GATE, SCALES
from longarc.studies.rnn.measured import NO_BIAS, Measured
from longarc.studies.rnn.readers import CELLS, GATED
from longarc.studies.rnn.statistics import (
    SOLVED,
    above,
    accuracies,
    carry_ahead,
    carry_share,
    distances,
    during,
    far,
    gating,
    growth_range,
    left,
    less,
    need,
    over_scales,
    rest,
    scores,
    told,
)
from longarc.studies.rnn.texts import Reading
from longarc.studies.shared.intervals import interval
from longarc.studies.study import Finding

NAMES = {
    "rnn": "tanh RNN",
    "relu-rnn": "ReLU RNN",
    "lstm": "LSTM",
    "gru": "GRU",
    "output-gated-gru": "output-gated GRU",
    NO_BIAS: "LSTM, forget bias 0",
}
GATES = {"lstm": "forget gate", "gru": "1 − z", "output-gated-gru": "1 − z"}

INTERVAL = "the 95 % interval over seeds (Student’s t)"


def findings(measured: Measured) -> list[Finding]:
    """Every claim with its verdict."""
    return [
        *_bounds(measured),
        *_memory(measured),
        *_terms(measured),
        *_starts(measured),
        *_adding(measured),
        *_texts(measured),
        _speed(measured),
    ]


def _bounds(measured: Measured) -> list[Finding]:
    found = measured.bounds
    tanh, relu = found.norms["rnn"], found.norms["relu-rnn"]
    slope = math.log(relu[-1] / relu[0]) / math.log(SCALES[-1] / SCALES[0])
    forget = GATE * found.peak
    limits = {"forget gate": forget, "input gate": GATE, "candidate": 1.0}
    states = found.states
    return [
        Finding(
            "|(1 − tanh²c) c| < 0.45.",
            "< 0.45",
            found.peak,
            found.peak < 0.45,
            f"Its maximum, where 2 c tanh c = 1: c = {found.at:.4f}.",
        ),
        Finding(
            "For a fixed h_(t−1) ≠ 0 a tanh step’s derivative is bounded whatever U is: by "
            "0.45 / |h_(t−1)| in one number.",
            "< 0.45",
            found.steps["tanh"],
            found.steps["tanh"] < 0.45,
            f"The largest |∂h_t/∂h_(t−1)| |h_(t−1)|, U from 1e-4 to 1e4. In a layer of 32 units, "
            f"U times {SCALES[-1]:,.0f}, the Jacobian’s norm over √H is {tanh[-1]:.2f}, and "
            f"{relu[-1]:,.0f} with ReLU.",
        ),
        Finding(
            "With ReLU it is U: it grows as U does, without bound.",
            "order 1",
            f"order {slope:.3f}",
            abs(slope - 1) < 1e-6,
            f"Norm of a layer’s Jacobian at the same states, U times {SCALES[0]:g} to "
            f"{SCALES[-1]:,.0f}; to within 1e-6.",
        ),
        Finding(
            "From c to c the LSTM’s path through a gate is at most 1/4 · 0.45 |U| for the forget "
            "gate, |U| / 4 for the input gate and |U| for the candidate.",
            "; ".join(f"{name} ≤ {limit:.3f}" for name, limit in limits.items()),
            "; ".join(f"{name} {found.terms[name]:.3f}" for name in limits),
            all(found.terms[name] <= limit for name, limit in limits.items()),
            f"The largest |term| / |U| over {3 * measured.size.bounds[0]:,} random cells of one "
            "number at random states.",
        ),
        Finding(
            "|h| ≤ 1 in the GRU, and |c| ≤ 1 in the output-gated GRU.",
            "at most 1",
            f"{states['gru'][0]:.3f}; {states['output-gated-gru'][1]:.3f}",
            max(states["gru"][0], states["output-gated-gru"][1]) <= 1 + 1e-12,
            f"The largest over {measured.size.bounds[1]:,} steps from 0, U times 0.1, 1, 10 and "
            f"100. The LSTM’s c has no such bound: {states['lstm'][1]:,.0f}.",
        ),
    ]


def _memory(measured: Measured) -> list[Finding]:
    length, _, steps = measured.size.recall
    asked = distances(measured)
    found = []
    how = (
        f"recall in {length} steps, {steps} batches, {measured.size.seeds} seeds; a mean over "
        f"units, steps and the distances {', '.join(map(str, asked))}"
    )
    for cell in GATED:
        gate = f"The {NAMES[cell]}’s {GATES[cell]}"
        learnt = sum(o.score >= SOLVED for d in asked for o in measured.recall[cell][d])
        share = f"{learnt} of {len(asked) * measured.size.seeds} runs learn it"
        one, other = gating(measured, cell), need(measured, cell)
        passed = told(gating(measured, cell, weighted=True))
        found += [
            Finding(
                f"{gate} is larger while something has to be kept than before.",
                "larger",
                told(one),
                above(one),
                f"After the symbol minus before it, {how}; {share}. Weighted by the squared "
                f"gradient that passes {passed}. Holds if {INTERVAL} of the plain mean is above "
                "0.",
            ),
            Finding(
                f"{gate} is larger than where nothing has to be kept.",
                "larger",
                told(other),
                above(other),
                f"Minus that of the same steps at distance 0, {how}. Holds if {INTERVAL} is above "
                "0.",
            ),
        ]
    near, distant = min(asked), max(asked)
    for cell in GATED:
        closer = less(left(measured, cell, near), left(measured, cell, distant))
        kept = [during(o.last, o, weighted=True) ** distant for o in measured.recall[cell][distant]]
        shown = "; ".join(
            f"{d}: {1 - sum(left(measured, cell, d)) / measured.size.seeds:.3f}" for d in asked
        )
        found.append(
            Finding(
                f"The longer the distance, the closer the {NAMES[cell]}’s {GATES[cell]} is to 1.",
                "closer",
                shown,
                above(closer),
                "In the steps that keep, weighted by the squared gradient that passes; "
                f"1 minus it is smaller at {distant} than at {near} by {told(closer)}, and to the "
                f"power of {distant} it is {told(kept, '.2f')}. Holds if {INTERVAL} of the "
                "difference is above 0.",
            )
        )
    return found


def _terms(measured: Measured) -> list[Finding]:
    exercise = measured.size.farthest
    steps = sorted(measured.recall["lstm"][exercise.distance][0].looks)
    found = []
    for cell in GATED:
        ahead = {step: carry_ahead(measured, cell, step) for step in steps}
        least = min(steps, key=lambda step: sum(ahead[step]))
        state = "h to h" if cell == "gru" else "c to c"
        found.append(
            Finding(
                f"From {state} the {NAMES[cell]}’s {GATES[cell]} outweighs all other terms, "
                "throughout the training.",
                "above 1",
                f"{_ratio(ahead[steps[0]])} at the start, {_ratio(ahead[steps[-1]])} at the end",
                all(above(values) for values in ahead.values()),
                f"Its Frobenius norm over that of the others’ sum, {exercise.name}; least at step "
                f"{least}, {_ratio(ahead[least])}. Holds if {INTERVAL} of the logarithm is above "
                "0 at each look.",
            )
        )
    for cell in GATED:
        shares = {step: carry_share(measured, cell, step) for step in (steps[0], steps[-1])}
        found.append(
            Finding(
                f"With the paths through h counted too, over half of the {NAMES[cell]}’s gradient "
                f"goes through its {GATES[cell]}.",
                "over half",
                f"{told(shares[steps[0]], '.2f')} at the start, "
                f"{told(shares[steps[-1]], '.2f')} at the end",
                all(above(values, 0.5) for values in shares.values()),
                "Share of the squared norm of what a step sends back, by the full Jacobian, "
                f"{exercise.name}. Holds if {INTERVAL} is above .5 at both.",
            )
        )
    return found


def _starts(measured: Measured) -> list[Finding]:
    scales = ", ".join(f"{scale:g}" for scale in measured.size.scales)
    how = f"U orthogonal times {scales}; {measured.size.starts} seeds. Holds if {INTERVAL} is"
    smaller = less(rest(measured, "gru"), rest(measured, "lstm"))
    ranges = {variant: growth_range(measured, variant) for variant in measured.starts}
    wide = less(ranges["gru"], ranges["lstm"])
    reached = {variant: over_scales(measured, variant) for variant in measured.starts}
    exploded = less(
        [run.first.growth for run in measured.starts["relu-rnn"][max(measured.size.scales)]],
        [run.first.growth for run in measured.starts["rnn"][max(measured.size.scales)]],
    )
    found = [
        Finding(
            "At the start the GRU’s terms beside the carry, with a gate fewer each, are larger "
            "than the LSTM’s.",
            "larger",
            f"times {_ratio(smaller)}",
            above(smaller),
            f"Norm of their sum, h to h and c to c, a geometric mean over scales. {how} above 1.",
        ),
        Finding(
            "The growth of the GRU’s gradient depends more on the start than the LSTM’s.",
            "more",
            f"{told(ranges['gru'], '.3f')} against {told(ranges['lstm'], '.3f')}",
            above(wide),
            "Largest minus smallest growth a step in nats over the scales, before any training; "
            f"output-gated GRU {told(ranges['output-gated-gru'], '.3f')}, LSTM with a forget bias "
            f"of 0 {told(ranges[NO_BIAS], '.3f')}. {how} above 0 for the difference.",
        ),
        Finding(
            "At the largest start a ReLU RNN’s gradient grows faster than a tanh RNN’s.",
            "faster",
            f"{told(exploded)} nats a step more",
            above(exploded),
            f"longarc’s question. U orthogonal times {max(measured.size.scales):g}. Holds if "
            f"{INTERVAL} is above 0.",
        ),
    ]
    pairs = (
        ("lstm", "gru", "The LSTM learns from more starts than the GRU.", ""),
        (
            "output-gated-gru", "gru", "The output-gated GRU learns from more starts than the GRU.",
            "longarc’s question. ",
        ),
        ("lstm", "output-gated-gru", "The LSTM learns from more than the output-gated GRU.",
         "longarc’s question. "),
        (
            "lstm", NO_BIAS, "A forget bias of 1 makes the LSTM learn from more starts than one of "
            "0.", "",
        ),
    )  # fmt: skip
    for better, worse, claim, asked in pairs:
        ahead = less(reached[better], reached[worse])
        found.append(
            Finding(
                claim,
                "more",
                " against ".join(told(reached[name], ".3f") for name in (better, worse)),
                above(ahead),
                f"{asked}Mean score on {measured.size.farthest.name} after "
                f"{measured.size.start_steps} batches; difference {told(ahead)}. {how} above 0.",
            )
        )
    return found


def _adding(measured: Measured) -> list[Finding]:
    longest = max(measured.size.add[0])
    ends = {cell: scores(measured.add[cell][longest]) for cell in CELLS}
    reaches = {
        cell: [run.first.beyond(longest // 2) for run in measured.add[cell][longest]]
        for cell in CELLS
    }
    found = []
    for better, worse in (("lstm", "rnn"), ("rnn", "relu-rnn"), ("output-gated-gru", "gru")):
        ahead = less(ends[better], ends[worse])
        found.append(
            Finding(
                f"The {NAMES[better]} adds better than the {NAMES[worse]}.",
                "better",
                f"{told(ends[better], '.3f')} against {told(ends[worse], '.3f')}",
                above(ahead),
                f"Share of sums within 0.1, in {longest} steps after {measured.size.add[1]} "
                f"batches, {measured.size.add[2]} seeds; always saying 1 has .19. Holds if "
                f"{INTERVAL} of the difference is above 0.",
            )
        )
    ahead = less(reaches["lstm"], reaches["rnn"])
    found.append(
        Finding(
            "Before any training more of the LSTM’s gradient comes from far back than of the tanh "
            "RNN’s.",
            "more",
            f"{told(reaches['lstm'], '.3f')} against {told(reaches['rnn'], '.3f')}",
            above(ahead),
            f"Share of the parts of dL/dU, by their norms, that crossed {longest // 2} steps or "
            f"more, add in {longest}; both with orthogonal U. Holds if {INTERVAL} of the "
            "difference is above 0.",
        )
    )
    return found


def _texts(measured: Measured) -> list[Finding]:
    found = []
    for reading in measured.readings:
        found += _compared(reading)
        if reading.pooling != "last":
            continue
        ahead = less(far(reading, "lstm", trained=True), far(reading, "rnn", trained=True))
        found.append(
            Finding(
                f"After training on {reading.task.name} more of the LSTM’s gradient comes from far "
                "back than of the tanh RNN’s.",
                "more",
                f"{told(far(reading, 'lstm', trained=True), '.3f')} against "
                f"{told(far(reading, 'rnn', trained=True), '.3f')}",
                above(ahead),
                "Share of the parts of dL/dU that crossed half of the longest document or more; "
                + "; ".join(
                    f"{NAMES[cell]} {told(far(reading, cell, trained=True), '.3f')}"
                    for cell in ("gru", "output-gated-gru")
                )
                + f". Holds if {INTERVAL} of the difference is above 0.",
            )
        )
    return found


def _compared(reading: Reading) -> list[Finding]:
    read = {cell: accuracies(reading, cell) for cell in CELLS}
    where = f"{reading.task.name} ({reading.task.classes} classes)"
    pooled = {"last": "by the last state", "max": "by the maximum over tokens"}[reading.pooling]
    found = []
    for cell in ("gru", "lstm"):
        behind = less(read["output-gated-gru"], read[cell])
        found.append(
            Finding(
                f"On {where}, {pooled}, the output-gated GRU is no less accurate than the "
                f"{NAMES[cell]}.",
                "no less",
                " against ".join(told(read[name], ".1%") for name in ("output-gated-gru", cell)),
                not above([-value for value in behind]),
                f"Accuracy on {len(reading.task.test[1])} documents, {len(behind)} seeds; "
                f"difference {told(behind, '+.1%')}. longarc’s question; holds unless {INTERVAL} "
                "of it is below 0.",
            )
        )
    return found


def _speed(measured: Measured) -> Finding:
    ratios = [
        gru / own
        for gru, own in zip(
            measured.speeds["gru"], measured.speeds["output-gated-gru"], strict=True
        )
    ]
    _, hidden, length, *_ = measured.size.texts
    return Finding(
        "The output-gated GRU trains at half the speed of torch’s GRU at least.",
        "at least .5",
        f"{told(ratios, '.2f')} times as fast",
        above(ratios, 0.5),
        f"Forward and backward, {hidden} units, {length} steps, {measured.size.batch} documents, "
        f"on {'a GPU' if measured.device == 'cuda' else 'the CPU'}; the cells take turns, "
        f"{len(ratios)} times. Medians in ms: "
        + ", ".join(f"{NAMES[cell]} {_median(measured.speeds[cell]):.0f}" for cell in CELLS)
        + ". Holds if the 95 % interval over turns is above .5.",
    )


def _ratio(logs: Sequence[float]) -> str:
    """A geometric mean with the interval's ends.

    >>> _ratio([0.0, 0.0])
    '1.00 (1.00 to 1.00)'
    """
    mean, half = interval(logs)
    low, high = (math.exp(mean + sign * half) for sign in (-1, 1))
    return f"{math.exp(mean):.2f} ({low:.2f} to {high:.2f})"


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2
