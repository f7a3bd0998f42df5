"""The study's entry: its sizes, what it says, its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longarc.studies.conclusion import Conclusion, conclude, holds, measured
from longarc.studies.rnn.figures import figures
from longarc.studies.rnn.findings import NAMES, findings
from longarc.studies.rnn.measured import Measured, Size, measure
from longarc.studies.rnn.readers import Outcome
from longarc.studies.rnn.statistics import accuracies, finite
from longarc.studies.rnn.texts import RATE
from longarc.studies.study import Finding, StudyResult
from longarc.training.progress import Reporter

FULL = Size(
    bounds=(100_000, 1000),
    hidden=32,
    batch=32,
    rates=(3e-3, 1e-2),
    recall=(30, (0, 5, 20), 400),
    seeds=4,
    points=7,
    scales=(0.5, 1.0, 2.0, 4.0),
    starts=3,
    start_steps=300,
    add=((40,), 800, 3),
    texts=(4000, 64, 64, 1500, 750, 6, 3),
    rounds=15,
    limit=3000,
)
QUICK = Size(
    bounds=(50, 20),
    hidden=4,
    batch=4,
    rates=(1e-3,),
    recall=(6, (0, 2, 3), 2),
    seeds=2,
    points=2,
    scales=(0.5, 2.0),
    starts=2,
    start_steps=2,
    add=((6,), 2, 2),
    texts=(100, 4, 12, 24, 16, 1, 2),
    rounds=2,
    limit=60,
)


def rnn(
    quick: bool = False,
    *,
    tables: tuple[str | Path, str | Path] | None = None,
    reporter: Reporter | None = None,
) -> StudyResult:
    """Bound single steps, train five cells on exercises and texts, and decompose their gradients.

    It runs on a GPU where there is one.

    Args:
        quick: hardly any training: it shows that the study runs, and its numbers say nothing.
        tables: documents with labels to train on too, and others to test with.
        reporter: told of the progress.
    """
    everything = measure(QUICK if quick else FULL, tables, reporter or Reporter(None))
    found = findings(everything)
    return StudyResult(
        title="What recurrent cells keep, and by which gate",
        text=_text(everything),
        findings=found,
        table=_table(everything),
        figures=figures(everything),
        source=(
            "The derivative of an LSTM’s c by the c before is its forget gate and three terms that "
            "are small, since |(1 − tanh²c) c| < 0.45; the GRU’s terms have a gate fewer and are "
            "said to make it less stable; and a GRU whose gate acts on what leaves it is proposed: "
            "Su Jianlin 2020, kexue.fm (in Chinese). LSTM and the exercises: Hochreiter & "
            "Schmidhuber 1997. GRU: Cho et al. 2014 (arXiv 1406.1078). Vanishing and exploding "
            "gradients: Pascanu et al. 2013 (arXiv 1211.5063). Forget bias: Jozefowicz et al. "
            "2015. Orthogonal starts: Saxe et al. 2014 (arXiv 1312.6120)."
        ),
        conclusion=_conclusion(found),
    )


def _conclusion(found: Sequence[Finding]) -> Conclusion:
    growth = "The growth of the GRU’s gradient"
    longer = "The longer the distance, the closer the"
    share = "With the paths through h counted too, over half of the"
    return conclude(
        "A forget gate close to 1 is said to keep memory and gradient alike, and the GRU, with a "
        "gate fewer, to be less stable than the LSTM",
        found,
        "the LSTM’s forget gate keeps more where something has to be kept "
        f"({measured(found, 'The LSTM’s forget gate is larger than where')}), and the growth of "
        f"the GRU’s gradient depends on the start {'more' if holds(found, growth) else 'no more'} "
        f"than the LSTM’s ({measured(found, growth)} nats a step)",
        "It depends on the cell: by the distance in steps the gate that keeps is, where the "
        f"gradient passes, at ({measured(found, f'{longer} LSTM')}) in the LSTM and "
        f"({measured(found, f'{longer} GRU')}) in the GRU, and its share of the gradient is "
        f"{measured(found, f'{share} LSTM')} and {measured(found, f'{share} GRU')}",
    )


def _text(measured: Measured) -> Sequence[str]:
    size = measured.size
    length, distances, steps = size.recall
    lengths, add_steps, _ = size.add
    _, hidden, tokens, train, _, epochs, _ = size.texts
    rates = "; ".join(
        f"{kind}: " + ", ".join(f"{NAMES[cell]} {rate:g}" for cell, rate in chosen.items())
        for kind, chosen in measured.rates.items()
    )
    return (
        "A gradient that goes back a step through a recurrent cell is multiplied by ∂h_t/∂h_(t−1). "
        "That of tanh is bounded in U, that of ReLU is not. An LSTM’s c has its forget gate and "
        "terms that gates make small, so that a forget gate close to 1 keeps memory and gradient "
        "alike; the GRU’s have a gate fewer. The output-gated GRU is a GRU whose second gate acts "
        "on what leaves the cell, h = r c, as the LSTM’s does.",
        f"Five cells of {size.hidden} units, U orthogonal and the LSTM’s forget bias 1 at the "
        f"start, learn two exercises. Recall: which of four symbols came k steps before the last "
        f"of {length}, k = {', '.join(map(str, distances))}, in {steps} batches of {size.batch}. "
        f"Add: the sum of two marked numbers of {' or '.join(map(str, lengths))}, in {add_steps}. "
        "Every cell has the learning rate of "
        f"{', '.join(f'{rate:g}' for rate in size.rates)} with which it learns soonest with one "
        f"seed ({rates}), and is measured with others. Each step’s Jacobian is decomposed exactly, "
        "as is dL/dU by the steps that were crossed.",
        "The same cells in one layer of one direction tell what a text is: "
        + ", ".join(
            f"{reading.task.name} ({reading.task.classes} classes)"
            for reading in measured.readings[::2]
        )
        + f"; {hidden} units, the first {tokens} tokens, up to {train} documents, {epochs} passes, "
        f"Adam with {RATE:g} falling to 0, words from the main directions of MiniLM’s vectors. "
        "Small cells and short trainings say how the five begin; an encoder for use has both "
        "directions, dropout and more units.",
    )


def _table(measured: Measured) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []

    def add(what: str, cell: str, setting: str, score: float, growth: float | str,
            reach: float | str, milliseconds: float) -> None:  # fmt: skip
        rows.append(
            {
                "what": what, "cell": cell, "setting": setting, "score": score,
                "growth": growth, "reach": reach, "ms a step": milliseconds,
            }
        )  # fmt: skip

    def exercise(cell: str, runs: Sequence[Outcome], scaled: bool = False) -> None:
        for run in runs:
            setting = f"seed {run.start.seed}"
            if scaled:
                setting = f"U times {run.start.scale:g}, {setting}"
            add(
                run.exercise.name, cell, setting, run.score, finite(run.last.growth),
                run.last.reach, run.milliseconds,
            )  # fmt: skip

    for cell, by_distance in measured.recall.items():
        for runs in by_distance.values():
            exercise(NAMES[cell], runs)
    for variant, by_scale in measured.starts.items():
        for runs in by_scale.values():
            exercise(NAMES[variant], runs, scaled=True)
    for cell, by_length in measured.add.items():
        for runs in by_length.values():
            exercise(NAMES[cell], runs)
    for reading in measured.readings:
        for cell, runs in reading.runs.items():
            for run, accuracy in zip(runs, accuracies(reading, cell), strict=True):
                look = run.last
                add(
                    f"{reading.task.name}, {reading.pooling}", NAMES[cell], f"seed {run.seed}",
                    accuracy, "" if look is None else finite(look.growth),
                    "" if look is None else look.reach, run.milliseconds,
                )  # fmt: skip
    return rows
