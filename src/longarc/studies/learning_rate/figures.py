"""What the study of learning rates draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from longarc.dynamics.modified_flow import ORDERS
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
from longarc.studies.learning_rate.findings import Measured, mean_of
from longarc.studies.learning_rate.flooding import Flooded
from longarc.studies.learning_rate.product import TARGET, Followed, path_name
from longarc.studies.learning_rate.runs import Trial, of
from longarc.studies.shared.charts import chart_title, side_by_side
from longarc.studies.study import StudyFigure

WALKED = "gradient descent"
FLOWS = {path_name(0): ORANGE, path_name(1): BLUE, path_name(2): GREEN}


def figures(measured: Measured) -> list[StudyFigure]:
    """Paths and orders on two weights; digits by rate, with flooding, with Adam."""
    return [
        _paths(measured.products),
        _orders(measured.products),
        _rates(measured),
        _flooding(measured.flooded),
        _adam(measured),
    ]


def _paths(products: Sequence[Followed]) -> StudyFigure:
    said = "; ".join(
        f"from {f.start.name} with γ = {f.start.lr:g}: "
        + ", ".join(f"{name} to {_place(path[-1].tolist())}" for name, path in f.paths.items())
        for f in products
    )
    return StudyFigure(
        "paths",
        "The steps of gradient descent and the flows, both axes logarithmic; the dotted line are "
        "the minima, a·b = 0.6. The large step moves towards a = b, where the minimum is flattest, "
        "and so does the modified flow.",
        panel(
            "Where descent goes",
            f"Ends: {said}.",
            lambda width: side_by_side([_path_chart(f, width) for f in products], width),
        ),
    )


def _path_chart(followed: Followed, width: int) -> Any:
    import altair as alt

    rows = []
    for name, path in followed.paths.items():
        kept = _thinned(path.tolist())
        rows += [
            {"who": name, "a": a, "b": b, "place": i} for i, (a, b) in enumerate(kept) if a and b
        ]
    low_b = 0.8 * min(row["b"] for row in rows)
    low_a, high_a = 0.8 * min(row["a"] for row in rows), 1.25 * max(row["a"] for row in rows)
    high_b = 1.25 * max(row["b"] for row in rows)
    minima = [
        {"a": a, "b": TARGET / a}
        for a in _between(max(low_a, TARGET / high_b), min(high_a, TARGET / low_b))
    ]
    x = alt.X("a:Q", title="a", scale=_log([low_a, high_a]), axis=_log_axis())
    y = alt.Y("b:Q", title="b", scale=_log([low_b, high_b]), axis=_log_axis())
    colour = alt.Color(
        "who:N",
        scale=alt.Scale(domain=[WALKED, *FLOWS], range=[INK, *FLOWS.values()]),
        legend=_legend(width, 2),
    )
    valley = alt.Chart(data_of(minima)).mark_line(color=MUTED, strokeDash=[2, 3]).encode(x=x, y=y)
    flows = (
        alt.Chart(data_of(r for r in rows if r["who"] != WALKED))
        .mark_line(strokeWidth=2)
        .encode(x=x, y=y, color=colour, order="place:Q")
    )
    steps = alt.Chart(data_of(r for r in rows if r["who"] == WALKED)).encode(x=x, y=y)
    walked = steps.mark_line(strokeWidth=0.7, color=INK).encode(order="place:Q") + (
        steps.mark_point(filled=True, size=22, opacity=1).encode(color=colour)
    )
    return (valley + flows + walked).properties(
        **_half(width), title=chart_title(f"from {followed.start.name}, γ = {followed.start.lr:g}")
    )


def _orders(products: Sequence[Followed]) -> StudyFigure:
    said = "; ".join(
        f"from {f.start.name}: "
        + ", ".join(f"{path_name(order)} {f.slope(order):.2f}" for order in ORDERS)
        for f in products
    )
    return StudyFigure(
        "orders",
        "Largest distance between gradient descent and each flow on the way, against the learning "
        "rate γ; both axes logarithmic, so that the slope is the order.",
        panel(
            "How closely it follows",
            f"Slopes: {said}.",
            lambda width: side_by_side([_order_chart(f, width) for f in products], width),
        ),
    )


def _order_chart(followed: Followed, width: int) -> Any:
    import altair as alt

    sizes = followed.sizes
    rows = [
        {"who": path_name(order), "lr": lr, "distance": error}
        for order in ORDERS
        for lr, error in zip(sizes, followed.errors[order], strict=True)
    ]
    ends = [
        {**rows[order * len(sizes) + len(sizes) - 2], "slope": f"slope {followed.slope(order):.2f}"}
        for order in ORDERS
    ]
    x = alt.X(
        "lr:Q",
        title="γ",
        scale=_log([sizes[-1] / 1.15, sizes[0] * 1.15]),
        axis=alt.Axis(grid=False, values=sizes, format=".2~e"),
    )
    y = alt.Y(
        "distance:Q", title="distance", scale=alt.Scale(type="log", nice=True), axis=_log_axis("~e")
    )
    base = alt.Chart(data_of(rows)).encode(
        x=x,
        y=y,
        color=alt.Color(
            "who:N",
            scale=alt.Scale(domain=list(FLOWS), range=list(FLOWS.values())),
            legend=_legend(width, 1),
        ),
    )
    label = (
        alt.Chart(data_of(ends))
        .mark_text(align="left", dx=6, dy=13, fontSize=11, color=MUTED)
        .encode(x=x, y=y, text="slope:N")
    )
    drawn = base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=40, opacity=1)
    return (drawn + label).properties(
        **_half(width), title=chart_title(f"from {followed.start.name}")
    )


def _rates(measured: Measured) -> StudyFigure:
    smallest = measured.size.rates[0]
    sides = []
    for quantity, title in (("accuracy", "test accuracy"), ("robust", "with noise on the weights")):
        rows = []
        for wrong, who in ((True, "labels wrong in part, γ"), (False, "labels right, γ")):
            trials = of(measured.trials, wrong=wrong, penalty=0.0, beta2=None)
            rows += [_gain(who, t.setting.rate, t, trials[0], quantity) for t in trials]
        first = of(measured.trials, wrong=True, penalty=0.0, beta2=None)[0]
        rows += [
            _gain("labels wrong in part, 4 λ", 4 * t.setting.penalty, t, first, quantity)
            for t in of(measured.trials, wrong=True, beta2=None)
            if t.setting.penalty
        ]
        sides.append((title, rows))
    said = "; ".join(
        f"{title}: " + ", ".join(f"{r['who']} {r['x']:g} {r['gain']:+.1f}" for r in rows)
        for title, rows in sides
    )
    colours = {
        "labels wrong in part, γ": BLUE,
        "labels right, γ": GREEN,
        "labels wrong in part, 4 λ": ORANGE,
    }
    return StudyFigure(
        "rates",
        "Points of test accuracy gained over the smallest learning rate at the same training loss, "
        f"by learning rate γ, and with γ = {smallest:g} by four times the explicit penalty λ, "
        f"which a learning rate of {smallest:g} + 4 λ would have by itself. Bars are 95 % "
        "intervals over the seeds.",
        panel(
            "What a large rate gains",
            f"Points gained: {said}.",
            lambda width: side_by_side(
                [
                    _gain_chart(title, rows, colours, width, "γ, or 4 λ", "gain", "points gained")
                    for title, rows in sides
                ],
                width,
            ),
        ),
    )


def _gain(who: str, x: float, trial: Trial, first: Trial, quantity: str) -> dict[str, Any]:
    mean = mean_of(getattr(trial, quantity) - getattr(first, quantity))
    return {
        "who": who,
        "x": x,
        "gain": 100 * mean.value,
        "low": 100 * (mean.value - mean.half),
        "high": 100 * (mean.value + mean.half),
    }


def _gain_chart(
    title: str,
    rows: Sequence[dict[str, Any]],
    colours: dict[str, str],
    width: int,
    x_title: str,
    y_name: str,
    y_title: str,
    *,
    zero: bool = True,
) -> Any:
    import altair as alt

    places = sorted({row["x"] for row in rows})
    x = alt.X(
        "x:Q",
        title=x_title,
        scale=_log([places[0] / 1.2, places[-1] * 1.2]),
        axis=alt.Axis(grid=False, format=".2~r", values=_apart(places)),
    )
    low, high = min(r["low"] for r in rows), max(r["high"] for r in rows)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.04 * (high - low)
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False)
    axis = alt.Axis(tickCount=5, domain=False, ticks=False, format=".4~r")
    colour = alt.Color(
        "who:N",
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        legend=_legend(width, 1),
    )
    base = alt.Chart(data_of(rows)).encode(x=x, color=colour)
    y = alt.Y(f"{y_name}:Q", title=y_title, scale=scale, axis=axis)
    bars = base.mark_rule(strokeWidth=1.5).encode(
        y=alt.Y("low:Q", title=y_title, scale=scale, axis=axis), y2="high:Q"
    )
    lines = base.mark_line(strokeWidth=2).encode(y=y)
    dots = base.mark_point(filled=True, size=45, opacity=1).encode(y=y)
    drawn = bars + lines + dots
    if zero:
        level = alt.Chart(data_of([{"z": 0}])).mark_rule(color=MUTED, strokeDash=[3, 3])
        drawn = level.encode(y="z:Q") + drawn
    return drawn.properties(**_half(width), title=chart_title(title))


def _flooding(runs: Sequence[Flooded]) -> StudyFigure:
    said = "; ".join(
        f"γ = {run.rate:g}, first {float(run.squared[0][0].median()):.2g}, flooded "
        f"{float(run.squared[0][-1].median()):.2g}, trained on "
        f"{float(run.squared[1][-1].median()):.2g}"
        for run in runs
    )
    return StudyFigure(
        "flooding",
        "‖g‖² from where the loss first reaches the level, with flooding and without; median of "
        "the seeds and of neighbouring steps. Training on, it falls because the loss does, out of "
        "the picture; with flooding the loss stays.",
        panel(
            "Flooding",
            f"‖g‖² at the end, median over seeds: {said}.",
            lambda width: _flooding_chart(runs, width),
        ),
    )


def _flooding_chart(runs: Sequence[Flooded], width: int) -> Any:
    import altair as alt

    colours = dict(zip((f"γ = {run.rate:g}" for run in runs), (BLUE, PURPLE, RED), strict=False))
    rows = []
    for run in runs:
        for how, squared in zip(("flooding", "training on"), run.squared, strict=True):
            by_step = squared.median(1).values
            bin_size = max(1, len(by_step) // 50)
            rows += [
                {
                    "rate": f"γ = {run.rate:g}",
                    "how": how,
                    "step": i + bin_size / 2,
                    "squared": float(by_step[i : i + bin_size].median()),
                }
                for i in range(0, len(by_step) - bin_size + 1, bin_size)
            ]
    flooded = [row["squared"] for row in rows if row["how"] == "flooding"]
    scale = _log([min(flooded) / 3, 2 * max(flooded)])
    narrow = width == NARROW
    return (
        alt.Chart(data_of(rows))
        .mark_line(strokeWidth=2, clip=True)
        .encode(
            x=alt.X(
                "step:Q",
                title="steps after the level was reached",
                axis=alt.Axis(grid=False, tickCount=5),
            ),
            y=alt.Y("squared:Q", title="‖g‖²", scale=scale, axis=_log_axis()),
            color=alt.Color(
                "rate:N",
                scale=alt.Scale(domain=list(colours), range=list(colours.values())),
                legend=_legend(width, 3),
            ),
            strokeDash=alt.StrokeDash(
                "how:N",
                scale=alt.Scale(domain=["flooding", "training on"], range=[[], [5, 4]]),
                legend=alt.Legend(
                    symbolType="stroke", symbolSize=400, orient="bottom" if narrow else "top"
                ),
            ),
        )
        .properties(width=width - 70 if narrow else WIDE - 70, height=230 if narrow else 270)
    )


def _adam(measured: Measured) -> StudyFigure:
    colours = {
        "Adam, 0.9 and 0.999": RED,
        "Adam, 0.9 and 0.9": SKY,
        "gradient descent": BLUE,
    }
    sides = []
    for wrong, title in ((True, "labels wrong in part"), (False, "labels right")):
        rows = []
        for beta2, who in (
            (0.999, "Adam, 0.9 and 0.999"),
            (0.9, "Adam, 0.9 and 0.9"),
            (None, WALKED),
        ):
            trials = of(measured.trials, wrong=wrong, penalty=0.0, beta2=beta2)
            for trial in trials:
                mean = mean_of(trial.settled.one_norm)
                rows.append(
                    {
                        "who": who,
                        "x": trial.setting.rate / trials[0].setting.rate,
                        "norm": mean.value,
                        "low": mean.value - mean.half,
                        "high": mean.value + mean.half,
                    }
                )
        sides.append((title, rows))
    said = "; ".join(
        f"{title}: " + ", ".join(f"{r['who']} × {r['x']:g} {r['norm']:.2f}" for r in rows)
        for title, rows in sides
    )
    return StudyFigure(
        "adam",
        "One-norm of the gradient at the same training loss, against the learning rate in "
        f"multiples of the smallest ({measured.size.adam_rates[0]:g} of Adam, "
        f"{measured.size.rates[0]:g} of gradient descent). Adam’s numbers are β₁ and β₂. Bars are "
        "95 % intervals over the seeds.",
        panel(
            "The one-norm",
            f"One-norm of the gradient: {said}.",
            lambda width: side_by_side(
                [
                    _gain_chart(
                        title,
                        rows,
                        colours,
                        width,
                        "γ / smallest γ",
                        "norm",
                        "one-norm of g",
                        zero=False,
                    )
                    for title, rows in sides
                ],
                width,
            ),
        ),
    )


def _place(point: Sequence[float]) -> str:
    return f"({point[0]:.2f}, {point[1]:.2f})"


def _thinned(path: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """The first twelve points, and of the others those that are 6 % away from the last one kept."""
    kept = list(path[:12])
    for point in path[12:]:
        if math.dist(point, kept[-1]) > 0.06 * math.hypot(*kept[-1]):
            kept.append(point)
    return [*kept, path[-1]]


def _apart(places: Sequence[float]) -> list[float]:
    """Those of ascending places that have room for a label on a logarithmic axis; the last has."""
    kept = [places[-1]]
    for place in reversed(places[:-1]):
        if 1.5 * place < kept[-1]:
            kept.append(place)
    return kept


def _between(low: float, high: float, count: int = 60) -> list[float]:
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


def _log(domain: Sequence[float]) -> Any:
    import altair as alt

    return alt.Scale(type="log", domain=list(domain), nice=False)


def _log_axis(form: str = "~g") -> Any:
    import altair as alt

    return alt.Axis(grid=False, tickCount=5, format=form, labelOverlap=True)


def _legend(width: int, columns: int) -> Any:
    import altair as alt

    return alt.Legend(
        symbolType="stroke", symbolSize=300, columns=columns if width == NARROW else 0
    )


def _half(width: int) -> dict[str, int]:
    narrow = width == NARROW
    return {"width": width - 75 if narrow else (WIDE - 170) // 2, "height": 220 if narrow else 260}
