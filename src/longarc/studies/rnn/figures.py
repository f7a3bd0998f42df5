"""What the study of recurrent cells draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from longarc.report.drawing import (
    BLUE,
    GREEN,
    MUTED,
    NARROW,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDE,
    data_of,
    panel,
)
from longarc.studies.rnn.bounds import SCALES
from longarc.studies.rnn.findings import GATES, NAMES
from longarc.studies.rnn.measured import NO_BIAS, Measured
from longarc.studies.rnn.readers import CELLS, GATED
from longarc.studies.rnn.statistics import accuracies, finite
from longarc.studies.shared.charts import colour_by_name
from longarc.studies.shared.intervals import interval
from longarc.studies.study import StudyFigure

COLOURS = {
    NAMES["rnn"]: PURPLE,
    NAMES["relu-rnn"]: RED,
    NAMES["lstm"]: BLUE,
    NAMES["gru"]: ORANGE,
    NAMES["output-gated-gru"]: GREEN,
    NAMES[NO_BIAS]: SKY,
}
TERMS = {
    "carry": BLUE,
    "candidate": ORANGE,
    "forget gate": GREEN,
    "update gate": GREEN,
    "input gate": PURPLE,
    "reset gate": SKY,
    "output gate": RED,
}
DISTANCES = (MUTED, SKY, BLUE, ORANGE, RED)


def figures(measured: Measured) -> list[StudyFigure]:
    """Draw the bounds, gates and terms, starts, adding, gradient shares and accuracies."""
    return [
        _bounds(measured),
        _gates(measured),
        _terms(measured),
        _starts(
            measured,
            "starts",
            "What is learnt from each start",
            "Score on the exercise of recall by what the orthogonal U is multiplied by at the "
            "start; the band is the range over seeds.",
            "share right",
            lambda outcome: outcome.score,
        ),
        _starts(
            measured,
            "growth",
            "Growth of the gradient at the start",
            "By how many nats a step the gradient grows on its way back, before any training: "
            "below 0 it vanishes, above it explodes; the band is the range over seeds.",
            "nats a step",
            lambda outcome: finite(outcome.first.growth),
        ),
        _adding(measured),
        _shares(measured),
        _accuracies(measured),
    ]


def _bounds(measured: Measured) -> StudyFigure:
    rows = [
        {"who": NAMES[kind], "x": scale, "y": norm}
        for kind, norms in measured.bounds.norms.items()
        for scale, norm in zip(SCALES, norms, strict=True)
    ]
    said = "; ".join(
        f"{NAMES[kind]} {norms[0]:.2g} to {norms[-1]:.3g}"
        for kind, norms in measured.bounds.norms.items()
    )
    return StudyFigure(
        "bounds",
        "Norm of one step’s Jacobian over √H at the same states, by what U is multiplied by; both "
        "axes are logarithmic.",
        panel(
            "One step’s Jacobian, tanh and ReLU",
            f"Norm over √H for U times {SCALES[0]:g} to {SCALES[-1]:,.0f}: {said}.",
            lambda width: _lines(rows, "U times", "norm / √H", width, log_x=True, log_y=True),
        ),
    )


def _gates(measured: Measured) -> StudyFigure:
    rows, said = [], []
    for cell in GATED:
        for distance, runs in measured.recall[cell].items():
            steps = zip(*[run.last.carry for run in runs], strict=True)
            for step, values in enumerate(steps, start=1):
                rows.append(
                    {
                        "facet": f"{NAMES[cell]}, {GATES[cell]}",
                        "who": f"distance {distance}",
                        "x": step,
                        "y": sum(values) / len(values),
                    }
                )
            said.append(f"{NAMES[cell]}, distance {distance}: {rows[-1]['y']:.2f}")
    names = list(dict.fromkeys(row["who"] for row in rows))
    colours = dict(zip(names, DISTANCES, strict=False))
    return StudyFigure(
        "gates",
        "Mean of the gate that keeps, by step, after training on recall: the symbol comes so many "
        "steps before the last, where it is asked for. A mean over units, documents and seeds.",
        panel(
            "Where the gate is open",
            f"Mean of the gate in the last step: {'; '.join(said)}.",
            lambda width: _facets(rows, "step", "mean of the gate", colours, width),
        ),
    )


def _terms(measured: Measured) -> StudyFigure:
    rows, said = [], []
    for cell in GATED:
        runs = measured.recall[cell][measured.size.farthest.distance]
        shares: dict[str, float] = {}
        for step in sorted(runs[0].looks):
            shares = {
                name: sum(run.looks[step].terms[name] for run in runs) / len(runs)
                for name in runs[0].looks[step].terms
            }
            # The update gate does for the GRUs what the forget gate does for the LSTM.
            rows += [
                {"facet": NAMES[cell], "who": name.replace("forget", "update"), "x": step, "y": y}
                for name, y in shares.items()
            ]
        said.append(f"{NAMES[cell]}: " + ", ".join(f"{n} {y:.2f}" for n, y in shares.items()))
    seen = {row["who"] for row in rows}
    colours = {
        name: colour for name, colour in TERMS.items() if name != "forget gate" and name in seen
    }
    return StudyFigure(
        "terms",
        "What each named term of the full Jacobian has of a step’s squared gradient, over the "
        "training; a mean over seeds. Shares add up to 1, and are negative where a term works "
        "against the others. The LSTM’s forget gate is drawn as its update gate.",
        panel(
            "Terms of the Jacobian over the training",
            f"Shares after training. {'; '.join(said)}.",
            lambda width: _facets(rows, "batches", "share of the gradient", colours, width),
        ),
    )


def _starts(
    measured: Measured,
    name: str,
    title: str,
    caption: str,
    unit: str,
    value: Callable[[Any], float],
) -> StudyFigure:
    rows, said = [], []
    for variant, by_scale in measured.starts.items():
        for scale, runs in by_scale.items():
            rows.append(
                {"who": NAMES[variant], "x": scale, **_with_range([value(r) for r in runs])}
            )
        own = [row["y"] for row in rows if row["who"] == NAMES[variant]]
        said.append(f"{NAMES[variant]} {', '.join(f'{y:.2f}' for y in own)}")
    scales = ", ".join(f"{scale:g}" for scale in measured.size.scales)
    return StudyFigure(
        name,
        caption,
        panel(
            title,
            f"{unit.capitalize()} for U times {scales}: {'; '.join(said)}.",
            lambda width: _lines(
                rows, "U times", unit, width, log_x=True, ticks=list(measured.size.scales)
            ),
        ),
    )


def _adding(measured: Measured) -> StudyFigure:
    longest = max(measured.size.add[0])
    rows = []
    for cell in CELLS:
        runs = measured.add[cell][longest]
        for step in runs[0].scores:
            found = _with_range([run.scores[step] for run in runs])
            rows.append({"who": NAMES[cell], "x": step, **found})
    ends = {row["who"]: row["y"] for row in rows}
    said = ", ".join(f"{who} {y:.2f}" for who, y in ends.items())
    return StudyFigure(
        "adding",
        f"Share of sums within 0.1 over the training, two numbers among {longest}; the band is "
        "the range over seeds.",
        panel(
            f"Adding two of {longest} numbers",
            f"Share of sums within 0.1 after the last batch: {said}.",
            lambda width: _lines(rows, "batches", "share within 0.1", width),
        ),
    )


def _shares(measured: Measured) -> StudyFigure:
    rows, said = [], []
    reading = next(reading for reading in measured.readings if reading.pooling == "last")
    for when, title in (("first", "before training"), ("last", "after training")):
        for cell in CELLS:
            looks = [getattr(run, when) for run in reading.runs[cell]]
            length = min(len(look.parameters) for look in looks)
            for k in range(length):
                beyond = sum(look.beyond(k) for look in looks) / len(looks)
                rows.append({"facet": title, "who": NAMES[cell], "x": k, "y": beyond})
            half = sum(look.beyond(length // 2) for look in looks) / len(looks)
            said.append(f"{NAMES[cell]}, {title}: {half:.2f}")
    colours = {NAMES[cell]: COLOURS[NAMES[cell]] for cell in CELLS}
    return StudyFigure(
        "shares",
        f"Share of the gradient by U that crossed so many steps or more, {reading.task.name} read "
        "from the last state; a mean over seeds.",
        panel(
            "How far back the gradient comes from",
            f"Share that crossed half the document or more. {'; '.join(said)}.",
            lambda width: _facets(
                rows, "steps crossed, at least", "share of the gradient", colours, width
            ),
        ),
    )


def _accuracies(measured: Measured) -> StudyFigure:
    rows = []
    for reading in measured.readings:
        for cell in CELLS:
            found = _with_interval([100 * value for value in accuracies(reading, cell)])
            rows.append(
                {"task": f"{reading.task.name}, {reading.pooling}", "who": NAMES[cell], **found}
            )
    said = "; ".join(
        f"{r['task']}, {r['who']} {r['y']:.1f} ({r['low']:.1f} to {r['high']:.1f})" for r in rows
    )
    names = [NAMES[cell] for cell in CELLS]
    tasks = list(dict.fromkeys(row["task"] for row in rows))

    def make(width: int) -> Any:
        import altair as alt

        base = alt.Chart(data_of(rows)).encode(
            y=alt.Y("task:N", sort=tasks, title=None,
                    axis=alt.Axis(domain=False, ticks=False, labelLimit=190)),
            yOffset=alt.YOffset("who:N", sort=names),
            color=colour_by_name({name: COLOURS[name] for name in names}, width, columns=2),
        )  # fmt: skip
        scale, title = alt.Scale(zero=False), "accuracy, %"
        bars = base.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=title, scale=scale), x2="high:Q"
        )
        dots = base.mark_point(filled=True, size=70, opacity=1).encode(
            x=alt.X("y:Q", title=title, scale=scale)
        )
        return (bars + dots).properties(
            width=width - (120 if width == NARROW else 200), height=alt.Step(16)
        )

    return StudyFigure(
        "accuracy",
        "Accuracy on texts, pooled by the last state or by the maximum over tokens; lines are 95 % "
        "intervals over seeds.",
        panel("Accuracy on texts", f"Accuracy in percent. {said}.", make),
    )


def _with_range(values: Sequence[float]) -> dict[str, float]:
    return {"y": sum(values) / len(values), "low": min(values), "high": max(values)}


def _with_interval(values: Sequence[float]) -> dict[str, float]:
    mean, half = interval(values)
    return {"y": mean, "low": mean - half, "high": mean + half}


def _lines(
    rows: Sequence[dict[str, Any]],
    x: str,
    y: str,
    width: int,
    *,
    log_x: bool = False,
    log_y: bool = False,
    ticks: Sequence[float] | None = None,
) -> Any:
    """A line for each ``who``, with a band where rows have one."""
    import altair as alt

    names = list(dict.fromkeys(row["who"] for row in rows))
    ends = [min(row["x"] for row in rows), max(row["x"] for row in rows)]
    across = alt.Scale(type="log" if log_x else "linear", domain=ends, nice=False)
    up = alt.Scale(type="log") if log_y else alt.Scale(zero=False)
    axis = alt.Axis(
        grid=False,
        format="~g" if log_x else ",d",
        tickCount=5,
        values=alt.Undefined if ticks is None else ticks,
    )
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X("x:Q", title=x, scale=across, axis=axis),
        color=colour_by_name({name: COLOURS[name] for name in names}, width, columns=2),
    )
    side = alt.Axis(tickCount=5, format="~g", domain=False)
    chart = base.mark_line(strokeWidth=2, point={"size": 36}).encode(
        y=alt.Y("y:Q", title=y, scale=up, axis=side)
    )
    if "low" in rows[0]:
        band = base.mark_area(opacity=0.12).encode(
            y=alt.Y("low:Q", title=y, scale=up, axis=side), y2="high:Q"
        )
        chart = band + chart
    return chart.properties(width=width - 60 if width == NARROW else WIDE - 70, height=260)


def _facets(
    rows: Sequence[dict[str, Any]], x: str, y: str, colours: Mapping[str, str], width: int
) -> Any:
    """Lines side by side, one drawing for each ``facet``; one above the other on a phone."""
    import altair as alt

    titles = list(dict.fromkeys(row["facet"] for row in rows))
    columns = 1 if width == NARROW else len(titles)
    values = [row["y"] for row in rows]
    up = alt.Scale(domain=[min(0.0, *values), max(1.0, *values)], nice=False)
    ends = [min(row["x"] for row in rows), max(row["x"] for row in rows)]
    drawn = []
    for title in titles:
        base = alt.Chart(data_of([row for row in rows if row["facet"] == title]))
        drawn.append(
            base.mark_line(strokeWidth=2)
            .encode(
                x=alt.X("x:Q", title=x, scale=alt.Scale(domain=ends, nice=False),
                        axis=alt.Axis(grid=False, format="d", tickCount=4)),
                y=alt.Y("y:Q", title=y if title in titles[::columns] else None, scale=up,
                        axis=alt.Axis(tickCount=5, format="~g", domain=False)),
                color=colour_by_name(colours, width, columns=2),
            )
            .properties(
                width=width - 60 if width == NARROW else (WIDE - 70) // columns - 30,
                height=200,
                title=alt.TitleParams(title, fontSize=12, fontWeight="normal", anchor="start"),
            )
        )  # fmt: skip
    return alt.concat(*drawn, columns=columns)
