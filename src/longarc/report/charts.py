"""Charts of how good a model is: plain rows in, drawings out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longarc.report.drawing import (
    BLUE,
    HALF,
    INK,
    MUTED,
    NARROW,
    RED,
    SERIES,
    SHAPES,
    WHOLE,
    Panel,
    data_of,
    panel,
    printable,
    shorten,
)
from longarc.report.measures import Figure, Measure
from longarc.report.saved import is_number


def intervals(rows: Sequence[tuple[Measure, dict[str, Figure | None]]]) -> Panel | None:
    """Dots with 95 % intervals: a band for each measure, a dot for each system in it."""
    import altair as alt

    rows = [
        (measure, {shorten(name, 60): f for name, f in found.items()})
        for measure, found in rows
        if not measure.lower_is_better
    ]
    values = [
        {"measure": m.name, "system": name, "value": f.value, "low": f.low, "high": f.high}
        for m, found in rows
        for name, f in found.items()
        if f is not None
    ]
    if not values:
        return None
    systems = list(dict.fromkeys(name for _, found in rows for name in found))
    measures = [m.name for m, found in rows if any(f is not None for f in found.values())]

    def make(width: int) -> Any:
        narrow = width == NARROW
        colour = alt.Color(
            "system:N",
            scale=alt.Scale(domain=systems, range=[SERIES[i % 6] for i in range(len(systems))]),
            legend=alt.Legend(columns=1 if narrow else 0),
        )
        base = alt.Chart(data_of(values)).encode(
            y=alt.Y(
                "measure:N",
                sort=measures,
                title=None,
                scale=alt.Scale(paddingInner=0.25, paddingOuter=0.12),
                axis=alt.Axis(
                    labelColor=INK,
                    labelPadding=8,
                    ticks=False,
                    domain=False,
                    grid=True,
                    tickBand="extent",
                ),
            ),
            yOffset=alt.YOffset("system:N", sort=systems, scale=alt.Scale(paddingOuter=0.3)),
            color=colour,
        )
        x = alt.X(
            "value:Q",
            title=None,
            scale=_zoomed(values),
            axis=alt.Axis(tickCount=5 if narrow else 10, domain=False, ticks=False),
        )
        dots = base.mark_point(filled=True, size=70, opacity=1).encode(
            x=x,
            shape=alt.Shape(
                "system:N",
                scale=alt.Scale(domain=systems, range=[SHAPES[i % 6] for i in range(len(systems))]),
            ),
        )
        bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q")
        height = len(measures) * (18 + 13 * len(systems))
        return (bars + dots).properties(
            width=width,
            height=height + 60,
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
        )

    described = "; ".join(f"{v['measure']}, {v['system']}: {v['value']:.3f}" for v in values)
    return panel("", f"Measures with 95 % intervals. {described}.", make)


def intervals_of_runs(
    measure: Measure, found: dict[str, Figure | None], baselines: set[str]
) -> Panel | None:
    """One measure, a row for each run, those of ``baselines`` in grey."""
    import altair as alt

    values = [
        {
            "run": printable(name),
            "value": f.value,
            "low": f.low,
            "high": f.high,
            "colour": MUTED if name in baselines else BLUE,
        }
        for name, f in found.items()
        if f is not None
    ]
    if not values:
        return None

    def make(width: int) -> Any:
        base = alt.Chart(data_of(values)).encode(
            y=alt.Y(
                "run:N",
                sort=[v["run"] for v in values],
                title=None,
                axis=alt.Axis(
                    labelColor=INK,
                    ticks=False,
                    domain=False,
                    labelLimit=130,
                    minExtent=130,
                    maxExtent=130,
                    labelPadding=8,
                ),
            ),
            color=alt.Color("colour:N", scale=None),
        )
        x = alt.X(
            "value:Q",
            title=None,
            scale=_zoomed(values),
            axis=alt.Axis(tickCount=4, format=".3~f", domain=False, ticks=False),
        )
        dots = base.mark_point(filled=True, size=80, opacity=1).encode(x=x)
        bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q")
        return (bars + dots).properties(
            width=width,
            height=34 + 26 * len(values),
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
        )

    described = "; ".join(f"{v['run']}: {v['value']:.3f}" for v in values)
    return panel(measure.name, f"{measure.name} by run. {described}.", make, wide=HALF)


def _zoomed(values: Sequence[dict[str, Any]]) -> Any:
    """The part of 0–1 that the intervals take up: dots, unlike bars, need no zero."""
    import altair as alt

    ends = [v[k] for v in values for k in ("low", "value", "high") if is_number(v[k])]
    margin = max(0.02, 0.06 * (max(ends) - min(ends)))
    domain = [max(-0.02, min(ends) - margin), min(1.02, max(ends) + margin)]
    return alt.Scale(domain=domain, nice=False, zero=False)


def reliability(bins: Sequence[dict[str, Any]], multi_label: bool = False) -> list[Panel]:
    """Accuracy against confidence, and how many predictions each bin holds."""
    import altair as alt

    values = [
        {**b, "gap": abs(b["accuracy"] - b["confidence"])}
        for b in bins
        if (b.get("n") or 0) > 0 and is_number(b.get("accuracy")) and is_number(b.get("confidence"))
    ]
    if not values:
        return []
    title = "probability of a label" if multi_label else "confidence in the prediction"
    share = "label is there" if multi_label else "accuracy"
    unit = alt.Scale(domain=[0, 1], nice=False)
    plain = {"domain": False, "ticks": False, "tickCount": 5, "minExtent": 36, "maxExtent": 36}
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    across = alt.Axis(tickCount=5, format=".1~f", grid=False)

    def accuracy(width: int) -> Any:
        x = alt.X("confidence:Q", scale=unit, title=title, axis=across)
        y = alt.Y("accuracy:Q", scale=unit, title=share, axis=alt.Axis(format=".1~f", **plain))
        ends = [{"confidence": end, "accuracy": end} for end in (0, 1)]
        diagonal = alt.Chart(data_of(ends)).mark_line(
            color="#8b94a0", strokeDash=[4, 4], strokeWidth=1.5
        )
        base = alt.Chart(data_of(values))
        gaps = base.mark_rule(color=RED, strokeWidth=2, opacity=0.8)
        points = base.mark_point(filled=True, color=BLUE, size=80, opacity=1)
        return alt.layer(
            diagonal.encode(x=x, y=y),
            gaps.encode(x=x, y=alt.Y("confidence:Q"), y2="accuracy:Q"),
            points.encode(x=x, y=y),
        ).properties(width=width, height=320, autosize=fit)

    def counts(width: int) -> Any:
        bars = alt.Chart(data_of({**v, "zero": 0} for v in values)).mark_rect(
            color=BLUE, xOffset=0.5, x2Offset=-0.5
        )
        return bars.encode(
            x=alt.X("low:Q", scale=unit, title=title, axis=across),
            x2="high:Q",
            y=alt.Y("n:Q", title="count", axis=alt.Axis(labelExpr=WHOLE, **plain)),
            y2="zero:Q",
        ).properties(width=width, height=320 if width == HALF else 170, autosize=fit)

    worst = max(values, key=lambda v: v["gap"] * v["n"])
    described = (
        f"Accuracy against confidence in {len(values)} bins; at a mean confidence of"
        f" {worst['confidence']:.2f} the accuracy is {worst['accuracy']:.2f}"
        f" ({worst['n']} predictions)."
    )
    return [
        panel("Accuracy", described, accuracy, wide=HALF),
        panel("How many", "Number of predictions by confidence.", counts, wide=HALF),
    ]
