"""Charts of where a model's gradient goes: by distance, by term, by depth, along the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longarc.report.drawing import (
    BLUE,
    HALF,
    INK,
    MUTED,
    NARROW,
    SERIES,
    Panel,
    data_of,
    panel,
    shorten,
)
from longarc.report.saved import is_number

LAYERS = 6
"""Recurrent layers that are drawn: more lines than colours cannot be told apart."""

FLOOR = 1e-6
"""The least that a logarithmic axis shows: what lies below is gone for every purpose. A line ends
there."""

POINTS = 300


def by_distance(recurrent: Sequence[dict[str, Any]], key: str, title: str) -> Panel | None:
    """A line for each recurrent layer: what is left of the gradient k steps back.

    ``key`` is ``norms``, relative to the first, or ``parameters``, as shares of their sum.
    """
    values, told = [], []
    for layer in recurrent[:LAYERS]:
        norms = layer.get(key) or []
        whole = (sum(norms) if key == "parameters" else norms[0]) if norms else 0.0
        if not whole:
            continue
        every = math.ceil(len(norms) / POINTS)
        name = shorten(layer["name"], 40)
        values += [
            {"layer": name, "distance": k, "left": norms[k] / whole}
            for k in range(0, len(norms), every)
            if norms[k] / whole >= FLOOR
        ]
        told.append(f"{name}, {len(norms) - 1} steps back: {norms[-1] / whole:.2g}")
    if not values:
        return None
    names = list(dict.fromkeys(v["layer"] for v in values))
    return _lines(
        title,
        f"{title}. {'; '.join(told)}.",
        values,
        x=("distance", "steps back"),
        y="left",
        series=("layer", names),
        rule=0.01 if key == "norms" else None,
    )


def by_term(recurrent: Sequence[dict[str, Any]]) -> Panel | None:
    """Bars: the share of each term of a step's Jacobian in what is carried back over it."""
    import altair as alt

    rows = [
        {"layer": shorten(layer["name"], 40), "term": term, "share": share}
        for layer in recurrent[:LAYERS]
        for term, share in layer["terms"].items()
        if is_number(share)
    ]
    if not rows:
        return None
    names = list(dict.fromkeys(row["layer"] for row in rows))
    terms = list(dict.fromkeys(row["term"] for row in rows))
    for row in rows:
        row["written"] = f"{round(100 * row['share'])} %"
        row["end"] = max(row["share"], 0.0)

    def make(width: int) -> Any:
        y = alt.Y(
            "term:N",
            sort=terms,
            title=None,
            scale=alt.Scale(paddingInner=0.25),
            axis=alt.Axis(labelColor=INK, ticks=False, domain=False, labelLimit=130, minExtent=96),
        )
        offset = alt.YOffset("layer:N", sort=names)
        low = min(0.0, *(row["share"] for row in rows))
        high = max(row["share"] for row in rows)
        scale = alt.Scale(domain=[low, max(1.0, high) * 1.14], nice=False)
        axis = alt.Axis(format=".0%", tickCount=5, domain=False, ticks=False)
        base = alt.Chart(data_of(rows)).encode(y=y, yOffset=offset)
        bars = base.mark_bar().encode(
            x=alt.X("share:Q", title=None, scale=scale, axis=axis),
            color=alt.Color(
                "layer:N",
                scale=alt.Scale(domain=names, range=SERIES[: len(names)]),
                legend=alt.Legend(columns=1 if width == NARROW else 0) if len(names) > 1 else None,
            ),
        )
        amounts = base.mark_text(align="left", dx=5, color=INK, fontSize=12).encode(
            x=alt.X("end:Q", title=None), text="written:N"
        )
        return alt.layer(bars, amounts).properties(
            width=width,
            height=40 + len(terms) * (14 + 16 * len(names)),
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
        )

    told = "; ".join(f"{row['layer']}, {row['term']} {row['written']}" for row in rows)
    return panel("What carries it back over a step", f"Shares of the terms. {told}.", make)


def by_depth(sublayers: Sequence[dict[str, Any]]) -> list[Panel]:
    """The gradient at each sub-layer's entry, and what the sub-layers do to the stream."""
    if len(sublayers) < 2:
        return []
    last = next(s["gradient"] for s in reversed(sublayers) if s["part"] != "feed-forward")
    strongest = max(s["parameters"] for s in sublayers)
    series = {
        "of the stream": ("gradient", last),
        "back through the branch": ("through", last),
        "back past it": ("residual", last),
        "of the sub-layer’s weights": ("parameters", strongest),
    }
    values = [
        {"kind": kind, "layer": _place(s), "value": max(s[key] / whole, FLOOR)}
        for kind, (key, whole) in series.items()
        for s in sublayers
        if is_number(s[key]) and whole
    ]
    first = sublayers[0]["gradient"] / last if last else math.nan
    kinds = [k for k in series if any(v["kind"] == k for v in values)]
    drawn = []
    if values:
        drawn.append(
            _lines(
                "Gradient by layer, relative to the last (of weights: to the largest)",
                f"At the first layer the stream's gradient is {first:.2g} of that at the last.",
                values,
                x=("layer", "layer (half: its feed-forward part)"),
                y="value",
                series=("kind", kinds),
                points=True,
            )
        )
    stream = [
        {"kind": kind, "layer": _place(s), "value": max(s[key], FLOOR)}
        for kind, key in (("size of the stream", "size"), ("change by a sub-layer", "change"))
        for s in sublayers
        if is_number(s[key])
    ]
    sizes = [s["size"] for s in sublayers]
    drawn.append(
        _lines(
            "The stream",
            f"Its size goes from {sizes[0]:.2g} to {sizes[-1]:.2g}.",
            stream,
            x=("layer", "layer"),
            y="value",
            series=("kind", ["size of the stream", "change by a sub-layer"]),
            points=True,
        )
    )
    return drawn


def along_text(inputs: dict[str, Any]) -> list[Panel]:
    """The inputs' gradient by tenths of a text, and how much of it lies near the end."""
    import altair as alt

    tenths, within = inputs["tenths"], inputs["within"]
    bars = [{"from": i, "to": i + 1, "zero": 0, "share": share} for i, share in enumerate(tenths)]

    def make(width: int) -> Any:
        fit = alt.AutoSizeParams(type="fit", contains="padding")
        y_axis = alt.Axis(
            format=".0%", tickCount=4, domain=False, ticks=False, minExtent=40, maxExtent=40
        )
        drawn = (
            alt.Chart(data_of(bars))
            .mark_rect(color=BLUE, xOffset=0.5, x2Offset=-0.5)
            .encode(
                x=alt.X(
                    "from:Q",
                    title="tenths of the text, from its start",
                    scale=alt.Scale(domain=[0, 10], nice=False),
                    axis=alt.Axis(tickCount=10, grid=False),
                ),
                x2="to:Q",
                y=alt.Y("share:Q", title=None, axis=y_axis),
                y2="zero:Q",
            )
        )
        even = alt.Chart(data_of([{"share": 0.1}])).mark_rule(color=INK, strokeDash=[4, 3])
        return alt.layer(drawn, even.encode(y="share:Q")).properties(
            width=width, height=230, autosize=fit
        )

    told = ", ".join(f"{100 * share:.0f} %" for share in tenths)
    every = math.ceil(len(within) / POINTS)
    kept = sorted({*range(0, len(within), every), len(within) - 1})
    values = [{"kind": "within", "distance": k, "share": within[k]} for k in kept]
    return [
        panel("Shares of the tenths", f"From the first to the last: {told}.", make, wide=HALF),
        _lines(
            "Share at most so many tokens before the end",
            f"99 % lie at most {inputs['reach']:.0f} tokens before the end.",
            values,
            x=("distance", "tokens before the end"),
            y="share",
            series=("kind", ["within"]),
            rule=0.99,
            log_scale=False,
            wide=HALF,
            height=230,
        ),
    ]


def _place(sublayer: dict[str, Any]) -> float:
    return sublayer["layer"] + (0.5 if sublayer["part"] == "feed-forward" else 0.0)


def _lines(
    title: str,
    described: str,
    values: Sequence[dict[str, Any]],
    *,
    x: tuple[str, str],
    y: str,
    series: tuple[str, list[str]],
    rule: float | None = None,
    points: bool = False,
    log_scale: bool = True,
    wide: int | None = None,
    height: int = 260,
) -> Panel:
    """Lines over ``x`` (key, title), one of ``series`` (key, names) each."""
    import altair as alt

    key, names = series
    found = [v[y] for v in values] + ([rule] if rule is not None and log_scale else [])
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    decades = range(low, max(high, low + 1) + 1)
    ticks = [10.0**power for power in decades if power % (1 if len(decades) < 8 else 2) == 0]

    def make(width: int) -> Any:
        span = [min(v[x[0]] for v in values), max(v[x[0]] for v in values)]
        across = alt.X(
            f"{x[0]}:Q",
            title=x[1],
            scale=alt.Scale(domain=span, nice=False, padding=8 if points else 0),
            axis=alt.Axis(tickCount=5 if width == NARROW else 8, tickMinStep=1, grid=False),
        )
        up = alt.Y(
            f"{y}:Q",
            title=None,
            scale=alt.Scale(type="log", domain=[10.0 ** decades[0], 10.0 ** decades[-1]])
            if log_scale
            else alt.Scale(domain=[0, 1], nice=False),
            axis=alt.Axis(
                values=ticks if log_scale else [0, 0.25, 0.5, 0.75, 1],
                labelExpr="datum.value >= 0.01 && datum.value <= 100 ? "
                "format(datum.value, '~r') : format(datum.value, '~e')"
                if log_scale
                else "format(datum.value, '.0%')",
                domain=False,
                ticks=False,
                minExtent=40,
                maxExtent=40,
            ),
        )
        narrow = width == NARROW
        colour = alt.Color(
            f"{key}:N",
            scale=alt.Scale(domain=names, range=SERIES[: len(names)]),
            legend=alt.Legend(symbolType="stroke", columns=1 if narrow else 0)
            if len(names) > 1
            else None,
        )
        base = alt.Chart(data_of(values)).encode(x=across, y=up, color=colour)
        layers = [base.mark_line(strokeWidth=2)]
        if points:
            layers.append(base.mark_point(filled=True, size=40, opacity=1))
        if rule is not None:
            mark = alt.Chart(data_of([{y: rule}]))
            layers.append(mark.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(y=f"{y}:Q"))
        return alt.layer(*layers).properties(
            width=width,
            height=height,
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
        )

    return panel(title, described, make, **({} if wide is None else {"wide": wide}))
