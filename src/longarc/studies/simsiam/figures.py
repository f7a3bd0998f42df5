"""What the study of SimSiam draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from longarc.report.drawing import (
    BLUE,
    GREEN,
    INK,
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
from longarc.studies.shared.charts import chart_title, colour_by_name, side_by_side
from longarc.studies.shared.intervals import interval
from longarc.studies.simsiam.measured import ABLATIONS, MEAN_VIEW, Measured, Runs
from longarc.studies.simsiam.runs import Outcome
from longarc.studies.study import StudyFigure

SHOWN = {
    "SimSiam": BLUE,
    "no stop-gradient": RED,
    "no predictor": ORANGE,
    "predictor fixed at random": PURPLE,
    "SimCLR": GREEN,
}
MEANS = {
    "SimSiam, f(x̄)": BLUE,
    "no predictor, f(x̄)": SKY,
    "no stop-gradient, f(x̄)": PURPLE,
    "neither, f(x̄)": ORANGE,
    "neither": RED,
}
SPEEDS = {
    "predictor’s rate × 10": ORANGE,
    "SimSiam": BLUE,
    "predictor’s rate × 0.1": PURPLE,
}
FLOWS = {
    "first": "with the stop-gradient",
    "both": "without",
    "second": "through the target alone",
}
UNTIL = 40.0  # time to which the scalar model is drawn


def figures(measured: Measured) -> list[StudyFigure]:
    """Draw the scalar model, collapse, accuracies, rates, and the mean view."""
    return [
        _flows(measured),
        _over_steps(
            "collapse",
            "Spread of the projections over the steps",
            "√d times the standard deviation of normalised projections, on a logarithmic axis: 1 "
            "is evenly spread, 0 the same for all. Mean and range over starts.",
            measured,
            SHOWN,
            "spread",
            lambda o: o.spread,
        ),
        _accuracies(measured),
        _over_steps(
            "rates",
            "Predictor against encoder",
            "How far a step moves the predictor’s weights, relative to their norm, over the same "
            "of the encoder with its projector; on a logarithmic axis. Above 1 the predictor is "
            "the faster. Mean and range over starts.",
            measured,
            SPEEDS,
            "rate of φ over rate of θ",
            lambda o: [phi / theta for phi, theta in o.rates],
        ),
        _over_steps(
            "mean-view",
            "The mean view as target",
            "Spread over the steps, as above, with f(x̄) as target. “Neither” is without "
            "stop-gradient and predictor; without f(x̄) its target is the other view.",
            measured,
            MEANS,
            "spread",
            lambda o: o.spread,
        ),
    ]


def _flows(measured: Measured) -> StudyFigure:
    rows, said = [], []
    for branches, title in FLOWS.items():
        flow = measured.flows[branches]
        last = sum(time <= UNTIL for time in flow.times)
        for i in range(0, last, 8):
            rows += [
                {"case": title, "who": who, "x": flow.times[i], "y": values[i]}
                for who, values in (("φ, predictor", flow.phi), ("θ, encoder", flow.theta))
            ]
        said.append(f"{title} φ ends at {flow.phi[-1]:.3f} and θ at {flow.theta[-1]:.3f}")

    def make(width: int) -> Any:
        import altair as alt

        def one(title: str) -> Any:
            return (
                alt.Chart(data_of(row for row in rows if row["case"] == title))
                .mark_line(strokeWidth=2.5)
                .encode(
                    x=alt.X("x:Q", title="time", axis=alt.Axis(grid=False, tickCount=4)),
                    y=alt.Y("y:Q", title=None, scale=alt.Scale(domain=[0, 1.05], nice=False),
                            axis=alt.Axis(tickCount=5, domain=False, minExtent=28)),
                    color=colour_by_name({"φ, predictor": ORANGE, "θ, encoder": BLUE}, width),
                )
                .properties(title=chart_title(title), **_part(width, 3, 190))
            )  # fmt: skip

        return side_by_side([one(title) for title in FLOWS.values()], width, spacing=20)

    return StudyFigure(
        "scalar",
        "The scalar model l = ½ (φθ − θ)² from φ = 0.6, θ = 0.1: gradient flow with gradients "
        "through the prediction alone (the stop-gradient), through both branches, and through the "
        "target alone. Collapse is θ = 0.",
        panel("Two numbers", f"Gradient flow: {'; '.join(said)}.", make),
    )


def _over_steps(
    name: str,
    title: str,
    caption: str,
    measured: Measured,
    colours: dict[str, str],
    y: str,
    values: Callable[[Outcome], list[float]],
) -> StudyFigure:
    """Lines over steps on a logarithmic axis, a part for each data set."""
    rows, said = [], []
    for runs in measured.materials:
        ends = []
        for who in colours:
            each = runs.outcomes[who]
            by_step = list(zip(*(values(o) for o in each), strict=True))
            for step, found in zip(each[0].steps, by_step, strict=True):
                kept = [max(value, 1e-3) for value in found]
                mean = sum(kept) / len(kept)
                rows.append(
                    {"data": runs.material.name, "who": who, "x": step, "y": mean,
                     "low": min(kept), "high": max(kept)}
                )  # fmt: skip
            ends.append(f"{who} {rows[-1]['y']:.2g}")
        said.append(f"{runs.material.name}: {', '.join(ends)}")

    def make(width: int) -> Any:
        return side_by_side(
            [_lines(rows, runs, y, colours, width) for runs in measured.materials],
            width,
            spacing=20,
        )

    return StudyFigure(
        name, caption, panel(title, f"{y.capitalize()} at the last step. {'; '.join(said)}.", make)
    )


def _lines(
    rows: Sequence[dict[str, Any]], runs: Runs, y: str, colours: dict[str, str], width: int
) -> Any:
    import altair as alt

    data = runs.material.name
    chart = alt.Chart(data_of(row for row in rows if row["data"] == data)).encode(
        x=alt.X("x:Q", title="step", axis=alt.Axis(grid=False, tickCount=5)),
        color=colour_by_name(colours, width),
    )
    scale = alt.Scale(
        type="log", domain=[min(r["low"] for r in rows) / 1.1, max(r["high"] for r in rows) * 1.1],
        nice=False,
    )  # fmt: skip
    axis = alt.Axis(tickCount=4, format="~g", domain=False, minExtent=34)
    band = chart.mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", title=y, scale=scale, axis=axis), y2="high:Q"
    )
    line = chart.mark_line(strokeWidth=2).encode(y=alt.Y("y:Q", title=y, scale=scale, axis=axis))
    return (band + line).properties(title=chart_title(data), **_part(width, 2, 260))


def _accuracies(measured: Measured) -> StudyFigure:
    names = ["untrained", *(v.name for v in ABLATIONS), *(v.name for v in MEAN_VIEW)]
    rows, said = [], []
    for runs in measured.materials:
        values = []
        for who in names:
            mean, half = interval([o.knn for o in runs.outcomes[who]])
            rows.append(
                {"data": runs.material.name, "who": who, "x": mean, "low": mean - half,
                 "high": mean + half}
            )  # fmt: skip
            values.append(f"{who} {mean:.1%}")
        said.append(f"{runs.material.name}: {', '.join(values)}")

    def make(width: int) -> Any:
        import altair as alt

        def one(runs: Runs, first: bool) -> Any:
            here = [row for row in rows if row["data"] == runs.material.name]
            labels = first or width == NARROW
            chart = alt.Chart(data_of(here)).encode(
                y=alt.Y("who:N", sort=names, title=None,
                        axis=alt.Axis(domain=False, ticks=False, labels=labels, labelLimit=190,
                                      labelColor=INK, grid=True)),
            )  # fmt: skip
            x: dict[str, Any] = {
                "title": "nearest neighbours, accuracy",
                "scale": alt.Scale(zero=False),
                "axis": alt.Axis(format=".0%", tickCount=4, grid=False),
            }
            start = data_of([row for row in here if row["who"] == "untrained"])
            level = alt.Chart(start).mark_rule(color=MUTED, strokeDash=[3, 3])
            bars = chart.mark_rule(strokeWidth=2, color=BLUE).encode(
                x=alt.X("low:Q", **x), x2="high:Q"
            )
            dots = chart.mark_point(filled=True, size=60, opacity=1, color=BLUE).encode(
                x=alt.X("x:Q", **x)
            )
            size = width - 210 if width == NARROW else (WIDE - 260) // 2
            return (level.encode(x=alt.X("x:Q", **x)) + bars + dots).properties(
                title=chart_title(runs.material.name), width=size, height=alt.Step(20)
            )

        parts = [one(runs, i == 0) for i, runs in enumerate(measured.materials)]
        return side_by_side(parts, width, spacing=20)

    return StudyFigure(
        "accuracy",
        "Accuracy of nearest neighbours by the encoder’s codes of held-out views: mean over starts "
        "and its 95 % interval; dashed, the untrained network.",
        panel(
            "What the codes are worth", f"Accuracy of nearest neighbours. {'; '.join(said)}.", make
        ),
    )


def _part(width: int, parts: int, height: int) -> dict[str, int]:
    if width == NARROW:
        return {"width": width - 65, "height": height}
    return {"width": (WIDE - 40) // parts - 50, "height": height}
