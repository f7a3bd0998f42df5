"""The chart of frequent and rare classes: recall against the number of training examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from longarc.report.drawing import GROUPS, INK, NARROW, Panel, data_of, panel, shorten
from longarc.report.saved import is_number

MAX_MARKS = 800
"""Marks in the chart: more show nothing more and make a large file."""


def recall_by_count(per_class: Sequence[dict[str, Any]]) -> Panel | None:
    """Recall of each class against its training examples; the biggest losses carry their names."""
    import altair as alt

    values = _marks(per_class)
    if not values:
        return None
    top = max(200, *(v["count"] for v in values)) * 1.25
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
    """Marks for the classes; those at the same place share one, or they would hide each other.

    Thousands of classes are gathered in ever larger cells until ``MAX_MARKS`` do.
    """
    rows = [r for r in per_class if is_number(r.get("recall")) and (r.get("support") or 0) > 0]
    cells: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for size in (0.01, 0.03, 0.1, 0.3):  # of the recall, and of the logarithm of the count
        cells = {}
        for row in rows:
            count = max(1, row["train_count"])
            place = (row["group"], round(math.log(count) / size), round(row["recall"] / size))
            cells.setdefault(place, []).append(row)
        if len(cells) <= MAX_MARKS:
            break
    return [_mark(together) for together in cells.values()]


def _mark(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    logs = [math.log(max(1, row["train_count"])) for row in rows]
    return {
        "label": shorten(str(rows[0]["label"]), 22) if len(rows) == 1 else f"{len(rows)} classes",
        "group": rows[0]["group"],
        "count": math.exp(sum(logs) / len(rows)),
        "recall": sum(row["recall"] for row in rows) / len(rows),
        "support": sum(row["support"] for row in rows),
    }


_SIDES: dict[str, tuple[Literal["left", "right", "center"], int, int]] = {
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
