"""Charts of how good a model is: plain rows in, drawings out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longarc.report.drawing import (
    BLUE,
    GROUPS,
    HALF,
    INK,
    MUTED,
    NARROW,
    RED,
    SERIES,
    SHAPES,
    Panel,
    data_of,
    panel,
    shorten,
)
from longarc.report.measures import Figure, Measure
from longarc.report.saved import is_number


def intervals(rows: Sequence[tuple[Measure, dict[str, Figure | None]]]) -> Panel | None:
    """Dots with 95 % intervals: a band for each measure, a dot for each system in it."""
    import altair as alt

    rows = [(measure, found) for measure, found in rows if not measure.lower_is_better]
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
                    labelColor=INK, labelPadding=8, ticks=False, domain=False, grid=True, tickBand="extent"
                ),
            ),
            yOffset=alt.YOffset("system:N", sort=systems, scale=alt.Scale(paddingOuter=0.3)),
            color=colour,
        )
        x = alt.X(
            "value:Q",
            title=None,
            scale=_zoomed(values),
            axis=alt.Axis(tickCount=5 if narrow else 10, format=".2~f", domain=False, ticks=False),
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
            "run": shorten(name, 60),
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


def recall_by_count(per_class: Sequence[dict[str, Any]]) -> Panel | None:
    """Recall of each class against its training examples; the biggest losses carry their names."""
    import altair as alt

    values = _marks(per_class)
    if not values:
        return None
    top = max(200, max(v["count"] for v in values)) * 1.25
    left, right, above, below = 54, 16, 34, 48

    def make(width: int) -> Any:
        narrow = width == NARROW
        plot = (width - left - right, 280 if narrow else 340)
        placed = _place_names(values, plot, top, most=5 if narrow else 18)
        x = alt.X(
            "count:Q",
            scale=alt.Scale(type="log", domain=[0.8, top], nice=False),
            title="training examples of the class (log scale)",
            axis=alt.Axis(values=[10**k for k in range(8)], format=",d", grid=False, domain=True),
        )
        y = alt.Y(
            "recall:Q",
            scale=alt.Scale(domain=[-0.04, 1.04], nice=False),
            title="recall",
            axis=alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format=".2~f", domain=False, ticks=False),
        )
        edges = (
            alt.Chart(data_of({"count": edge} for edge in (20, 100)))
            .mark_rule(color="#aab1ba", strokeDash=[3, 4])
            .encode(x=x)
        )
        most = max(v["support"] for v in values)
        points = (
            alt.Chart(data_of(values))
            .mark_point(filled=True, opacity=0.7, stroke="white", strokeWidth=0.7)
            .encode(
                x=x,
                y=y,
                size=alt.Size(
                    "support:Q",
                    scale=alt.Scale(type="linear", domain=[0, most], range=[54, 400]),
                    legend=None,
                ),
                color=alt.Color(
                    "group:N",
                    scale=alt.Scale(domain=list(GROUPS), range=list(GROUPS.values())),
                    legend=alt.Legend(symbolSize=110, symbolOpacity=0.9),
                ),
                shape=alt.Shape(
                    "group:N",
                    scale=alt.Scale(domain=list(GROUPS), range=["circle", "square", "triangle-up"]),
                ),
            )
        )
        layers = [edges, points]
        for side, (align, dx, dy) in _SIDES.items():
            names = [v for v, where in placed if where == side]
            if names:
                layers.append(
                    alt.Chart(data_of(names))
                    .mark_text(align=align, dx=dx, dy=dy, fontSize=11, color=INK, baseline="middle")
                    .encode(x=x, y=y, text="label:N")
                )
        return alt.layer(*layers).properties(
            width=plot[0],
            height=plot[1],
            autosize=alt.AutoSizeParams(type="none"),
            padding={"left": left, "right": right, "top": above, "bottom": below},
        )

    return panel(
        "",
        f"Recall of {len(per_class)} classes against their number of training examples;"
        " the table of classes below has every figure.",
        make,
    )


def _marks(per_class: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A mark for each place in the chart: rare classes share a few recalls and would hide others.

    The recall is rounded to hundredths, and counts to what can be told apart on the log axis, so
    that thousands of classes make some hundred marks.
    """
    places: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for row in per_class:
        if is_number(row.get("recall")) and (row.get("support") or 0) > 0:
            count = max(1, int(row["train_count"]))
            place = count if count < 200 else round(math.exp(round(math.log(count), 2)))
            places.setdefault((place, round(row["recall"], 2)), []).append(row)
    marks = []
    for (count, recall), rows in places.items():
        alone = shorten(str(rows[0]["label"]), 22)
        marks.append(
            {
                "label": alone if len(rows) == 1 else f"{len(rows)} classes",
                "group": rows[0]["group"],
                "count": count,
                "recall": recall,
                "support": sum(row["support"] for row in rows),
            }
        )
    return marks


_SIDES = {
    "right": ("left", 11, 0),
    "left": ("right", -11, 0),
    "above": ("center", 0, -15),
    "below": ("center", 0, 15),
}


def _place_names(
    values: Sequence[dict[str, Any]], plot: tuple[int, int], top: float, most: int
) -> list[tuple[dict[str, Any], str]]:
    """Names for the classes that lose most documents, each where it covers no point and no name.

    Vega-Lite places no labels by itself. Greedy: the greatest loss first; a class whose name fits
    on no side goes without.
    """
    width, height = plot

    def place(v: dict[str, Any]) -> tuple[float, float]:
        x = width * math.log(v["count"] / 0.8) / math.log(top / 0.8)
        return x, height * (1.04 - v["recall"]) / 1.08

    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in map(place, values)]
    placed = []
    lost = sorted(values, key=lambda v: (-(1 - v["recall"]) * v["support"], v["label"]))
    for v in lost:
        if len(placed) == most:
            break
        x, y = place(v)
        long = 6.2 * len(v["label"])
        boxes = {
            "right": (x + 9, y - 7, x + 13 + long, y + 7),
            "left": (x - 13 - long, y - 7, x - 9, y + 7),
            "above": (x - long / 2, y - 22, x + long / 2, y - 9),
            "below": (x - long / 2, y + 9, x + long / 2, y + 22),
        }
        for side, box in boxes.items():
            inside = box[0] >= 0 and box[2] <= width and box[1] >= 0 and box[3] <= height
            if inside and not any(
                box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken
            ):
                placed.append((v, side))
                taken.append(box)
                break
    return placed


def reliability(bins: Sequence[dict[str, Any]]) -> list[Panel]:
    """Accuracy against confidence, and how many predictions each bin holds."""
    import altair as alt

    values = [
        {**b, "gap": abs(b["accuracy"] - b["confidence"])}
        for b in bins
        if (b.get("n") or 0) > 0 and is_number(b.get("accuracy")) and is_number(b.get("confidence"))
    ]
    if not values:
        return []
    unit = alt.Scale(domain=[0, 1], nice=False)
    plain = {"domain": False, "ticks": False, "tickCount": 5, "minExtent": 36, "maxExtent": 36}
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    across = alt.Axis(tickCount=5, format=".1~f", grid=False)

    def accuracy(width: int) -> Any:
        x = alt.X("confidence:Q", scale=unit, title="confidence in the prediction", axis=across)
        y = alt.Y(
            "accuracy:Q", scale=unit, title="accuracy", axis=alt.Axis(format=".1~f", **plain)
        )
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
            x=alt.X("low:Q", scale=unit, title="confidence in the prediction", axis=across),
            x2="high:Q",
            y=alt.Y("n:Q", title="count", axis=alt.Axis(format=",d", **plain)),
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
