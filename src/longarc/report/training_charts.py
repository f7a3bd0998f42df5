"""Charts of what went in and how it was learnt: lengths of documents, training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longarc.report.drawing import (
    BLUE,
    INK,
    MUTED,
    NARROW,
    ORANGE,
    SERIES,
    WHOLE,
    Panel,
    data_of,
    panel,
)
from longarc.report.saved import is_number

MAX_STEPS = 250  # points of a training curve
MAX_BINS = 40


def training_curves(log: Sequence[dict[str, Any]]) -> list[Panel]:
    """Loss, quality on validation and learning rate by step, the kept step marked."""
    train, validation = by_step(log, "train"), by_step(log, "validation")
    best = best_step(log)
    if not train:
        return []
    steps = [r["step"] for r in train + validation]
    span = (min(0, *steps), max(steps))

    drawn = [
        curve(
            "Loss",
            [("training", train, "loss"), ("validation", validation, "loss")],
            span,
            best,
            zero=True,
        ),
        curve(
            "Validation",
            [("macro-F1", validation, "macro_f1"), ("accuracy", validation, "accuracy")],
            span,
            best,
        ),
        curve("Learning rate", [("learning rate", train, "learning_rate")], span, best, rate=True),
    ]
    return [p for p in drawn if p is not None]


def best_step(log: Sequence[dict[str, Any]]) -> int | None:
    """The step whose weights were kept, if the log tells.

    >>> best_step([{"event": "start"}, {"event": "end", "step": 96, "best_step": 80}])
    80
    """
    ends = [r for r in log if r.get("event") == "end" and is_number(r.get("best_step"))]
    return ends[-1]["best_step"] if ends else None


def by_step(log: Sequence[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    """The records of an event by step; a step that was logged again, by a resumed run, once."""
    last = {r["step"]: r for r in log if r.get("event") == event and is_number(r.get("step"))}
    return [last[step] for step in sorted(last)]


def curve(
    title: str,
    series: Sequence[tuple[str, Sequence[dict[str, Any]], str]],
    span: tuple[int, int],
    mark: int | float | None,
    *,
    rate: bool = False,
    zero: bool = False,
    log_scale: bool = False,
) -> Panel | None:
    """Series of records by step: (name, records, key of the value), with one step marked.

    ``rate`` draws a learning rate, lower and with the title of the axis; ``zero`` keeps 0 in view,
    as it is for a loss; ``log_scale`` leaves out what is 0 or less. None if there is nothing to
    draw.
    """
    import altair as alt

    values: list[dict[str, Any]] = []
    for name, records, key in series:
        points = [(r["step"], r[key]) for r in records if is_number(r.get(key))]
        points = [(s, v) for s, v in points if v > 0 or not log_scale]
        values += [{"series": name, "step": s, "value": v} for s, v in thin(points, MAX_STEPS)]
    if not values:
        return None
    names = [name for name, _, _ in series if any(v["series"] == name for v in values)]
    decades = _decades([v["value"] for v in values]) if log_scale else []
    ticks: dict[str, Any] = {"values": decades} if log_scale else {"tickCount": 2 if rate else 4}
    few = {n for n in names if sum(v["series"] == n for v in values) <= 40}

    def make(width: int) -> Any:
        narrow = width == NARROW
        x = alt.X(
            "step:Q",
            scale=alt.Scale(domain=list(span), nice=False),
            title="step" if rate else None,
            axis=alt.Axis(tickCount=4 if narrow else 8, format="~s", grid=False),
        )
        y = alt.Y(
            "value:Q",
            scale=alt.Scale(type="log", domain=[decades[0], decades[-1]])
            if log_scale
            else alt.Scale(zero=rate or zero, nice=True),
            title=None,
            axis=alt.Axis(
                **ticks,
                labelExpr="datum.value == 0 ? '0' : "
                f"format(datum.value, '{'~e' if rate or log_scale else '~g'}')",
                domain=False,
                ticks=False,
                minExtent=52,
                maxExtent=52,
            ),
        )
        palette = alt.Scale(domain=names, range=SERIES[: len(names)])
        colour = alt.Color(
            "series:N",
            scale=palette,
            legend=alt.Legend(symbolType="stroke") if len(names) > 1 else None,
        )
        lines = alt.Chart(data_of(values)).mark_line(strokeWidth=2).encode(x=x, y=y, color=colour)
        layers = [lines]
        dotted = [v for v in values if v["series"] in few]
        if dotted and not rate:
            layers.append(
                alt.Chart(data_of(dotted))
                .mark_point(filled=True, size=34, opacity=1)
                .encode(x=x, y=y, color=alt.Color("series:N", scale=palette, legend=None))
            )
        if mark is not None:
            rule = alt.Chart(data_of([{"step": mark}]))
            layers.append(rule.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x=x))
        return alt.layer(*layers).properties(
            width=width,
            height=110 if rate else 190,
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
        )

    ends = []
    for name in names:
        of_series = [v for v in values if v["series"] == name]
        ends.append(f"{name} from {of_series[0]['value']:.3g} to {of_series[-1]['value']:.3g}")
    return panel(title, f"{title} by training step: {'; '.join(ends)}.", make)


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten from below the least value to above the largest.

    >>> _decades([0.02, 3.0])
    [0.01, 0.1, 1.0, 10.0]
    """
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most ``most`` points: means over equal stretches, at the last step of each stretch.

    >>> thin([(1, 4.0), (2, 2.0), (3, 1.0)], most=2)
    [(2, 3.0), (3, 1.0)]
    """
    stretch = math.ceil(len(points) / most)
    if stretch <= 1:
        return list(points)
    parts = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [(part[-1][0], sum(v for _, v in part) / len(part)) for part in parts]


def lengths(histogram: Sequence[dict[str, Any]], max_length: float | None) -> Panel | None:
    """Documents by length in tokens, the limit marked.

    Bins are drawn equally wide, whatever their edges: bins that double read as a log scale,
    equal ones as a linear scale.
    """
    import altair as alt

    bins = [
        dict(b) for b in histogram if all(is_number(b.get(k)) for k in ("low", "high", "count"))
    ]
    while len(bins) > MAX_BINS:
        pairs = [bins[i : i + 2] for i in range(0, len(bins), 2)]
        bins = [
            {"low": p[0]["low"], "high": p[-1]["high"], "count": sum(b["count"] for b in p)}
            for p in pairs
        ]
    if not bins:
        return None
    edges = [bins[0]["low"], *(b["high"] for b in bins)]
    limit = None
    if is_number(max_length) and max_length is not None and max_length < edges[-1]:
        at = next(i for i, b in enumerate(bins) if max_length < b["high"])
        low, high = bins[at]["low"], bins[at]["high"]
        limit = at + max(0.0, (max_length - low) / (high - low))
    values = []
    for i, b in enumerate(bins):
        cut = limit is not None and i + 0.5 > limit
        values.append(
            {
                "from": i,
                "to": i + 1,
                "zero": 0,
                "count": b["count"],
                "part": "cut" if cut else "whole",
            }
        )

    def make(width: int) -> Any:
        every = math.ceil(len(edges) / (6 if width == NARROW else 14))
        written = [f"{e:,.0f}" for e in edges]
        x_axis = alt.Axis(
            values=list(range(0, len(edges), every)),
            labelExpr=f"{written!r}[datum.value]",
            grid=False,
            labelOverlap=True,
        )
        x_scale = alt.Scale(domain=[0, len(bins)], nice=False)
        bars = (
            alt.Chart(data_of(values))
            .mark_rect(xOffset=0.5, x2Offset=-0.5)
            .encode(
                x=alt.X("from:Q", scale=x_scale, axis=x_axis, title="tokens in the document"),
                x2="to:Q",
                y=alt.Y(
                    "count:Q",
                    title="documents",
                    axis=alt.Axis(tickCount=4, labelExpr=WHOLE, domain=False, ticks=False),
                ),
                y2="zero:Q",
                color=alt.Color(
                    "part:N",
                    scale=alt.Scale(domain=["whole", "cut"], range=[BLUE, ORANGE]),
                    legend=None,
                ),
            )
        )
        layers = [bars]
        if limit is not None:
            late = limit > 0.6 * len(bins)
            mark = alt.Chart(data_of([{"from": limit, "text": f"max_length {max_length:,}"}]))
            x = alt.X("from:Q", scale=x_scale)
            layers.append(mark.mark_rule(color=INK, strokeDash=[4, 3], strokeWidth=1.5).encode(x=x))
            layers.append(
                mark.mark_text(
                    align="right" if late else "left",
                    dx=-6 if late else 6,
                    fontSize=12,
                    color=INK,
                    baseline="top",
                ).encode(x=x, y=alt.value(0), text="text:N")
            )
        return alt.layer(*layers).properties(
            width=width,
            height=220,
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
        )

    total = sum(b["count"] for b in bins)
    return panel("", f"{total:,} documents by length, up to {edges[-1]:,.0f} tokens.", make)
