"""Quality, speed and memory in one drawing: the bubble chart known from Long Range Arena.

Tay et al. 2021, "Long Range Arena: a benchmark for efficient transformers", figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from longarc.report.drawing import (
    BLUE,
    INK,
    MUTED,
    NARROW,
    ORANGE,
    Panel,
    data_of,
    panel,
    printable,
)
from longarc.report.label_placement import Box, Circle, place_labels, text_width

GREY = "#8b94a0"
LARGEST = 1500.0
"""Square pixels of the circle of the largest peak."""

LEFT, RIGHT = 72, 14
"""Pixels beside the drawing: the axis with its title, and what the last number sticks out."""


@dataclass(frozen=True)
class Point:
    """A candidate: macro-F1 and its interval, documents a second and their spread, peak in MiB."""

    name: str
    quality: float
    low: float
    high: float
    speed: float
    slowest: float
    fastest: float
    memory: float | None
    front: bool


def trade_off_chart(
    points: Sequence[Point], *, baseline: tuple[str, float] | None = None, memory: str = ""
) -> Panel | None:
    """Quality up, speed to the right on a log scale, a circle's area its peak memory.

    Bars are the quality's intervals and the speed's spread. Candidates on the front are blue and
    connected. ``baseline`` is a name and its quality, a dashed line; ``memory`` says whose memory.
    """
    import altair as alt

    if not points:
        return None
    peaks = [p.memory for p in points if p.memory is not None]
    top = max(peaks, default=1.0)
    ends = [end for p in points for end in (p.low, p.quality, p.high)]
    if baseline is not None:
        ends.append(baseline[1])
    margin = max(0.05, 0.1 * (max(ends) - min(ends)))  # so that no circle is cut at 0 or 1
    floor, ceiling = min(ends) - margin, max(ends) + margin
    slow, fast = min(p.slowest for p in points), max(p.fastest for p in points)
    room = max(1.25, (fast / slow) ** 0.14)
    slow, fast = slow / room, fast * room

    def make(width: int) -> Any:
        narrow = width == NARROW
        across, down = width - LEFT - RIGHT, 300 if narrow else 400
        scale = 0.6 if narrow else 1.0

        def to_x(value: float) -> float:
            return across * math.log(value / slow) / math.log(fast / slow)

        def to_y(value: float) -> float:
            return down * (ceiling - value) / (ceiling - floor)

        def area(point: Point) -> float:
            return scale * LARGEST * (point.memory if point.memory is not None else 0.1 * top) / top

        circles = [
            Circle(to_x(p.speed), to_y(p.quality), math.sqrt(area(p) / math.pi)) for p in points
        ]
        size = 11 if narrow else 12
        names = [printable(p.name) for p in points]
        bars = [
            Box(c.x - 1, to_y(p.high), 2, to_y(p.low) - to_y(p.high))
            for c, p in zip(circles, points, strict=True)
        ]
        bars += [
            Box(to_x(p.slowest), c.y - 1, to_x(p.fastest) - to_x(p.slowest), 2)
            for c, p in zip(circles, points, strict=True)
        ]
        joined = sorted(
            (c for c, p in zip(circles, points, strict=True) if p.front), key=lambda c: c.x
        )
        for one, other in pairwise(joined):  # the line, as boxes along it
            bars += [
                Box(one.x + t * (other.x - one.x) - 2, one.y + t * (other.y - one.y) - 2, 4, 4)
                for t in (i / 40 for i in range(41))
            ]
        if baseline is not None:
            told = f"{baseline[0]} {baseline[1]:.3f}"
            above = to_y(baseline[1])
            bars += [Box(0, above - 1, across, 2), Box(0, above - 14, text_width(told, 11) + 6, 14)]
        labels = place_labels(
            circles,
            [text_width(n, size, bold=p.front) for n, p in zip(names, points, strict=True)],
            width=across,
            height=down,
            obstacles=bars,
        )

        def from_pixels(x: float, y: float) -> dict[str, float]:
            return {
                "speed": slow * (fast / slow) ** (x / across),
                "quality": ceiling - y / down * (ceiling - floor),
            }

        x = alt.X(
            "speed:Q",
            title="documents predicted a second",
            scale=alt.Scale(type="log", domain=[slow, fast], nice=False),
            axis=alt.Axis(values=ticks(slow, fast, 6 if narrow else 10), format="~g", grid=False),
        )
        y = alt.Y(
            "quality:Q",
            title="macro-F1",
            scale=alt.Scale(domain=[floor, ceiling], nice=False, zero=False),
            axis=alt.Axis(
                values=shares(floor, ceiling),
                format=".2~f",
                domain=False,
                ticks=False,
                minExtent=30,
                maxExtent=30,
            ),
        )
        rows = [
            {
                "name": name, "speed": p.speed, "quality": p.quality, "low": p.low, "high": p.high,
                "slowest": p.slowest, "fastest": p.fastest, "memory": p.memory,
                "size": _size(area(p)), "colour": BLUE if p.front else GREY,
            }
            for name, p in zip(names, points, strict=True)
        ]  # fmt: skip
        base = alt.Chart(data_of(rows))
        colour = alt.Color("colour:N", scale=None)
        layers: list[Any] = []
        if baseline is not None:
            mark = {
                "name": f"{baseline[0]} {baseline[1]:.3f}", "quality": baseline[1], "speed": slow,
            }  # fmt: skip
            line = alt.Chart(data_of([mark]))
            layers.append(
                line.mark_rule(color=ORANGE, strokeDash=[5, 4], strokeWidth=1.5).encode(y=y)
            )
            layers.append(
                line.mark_text(align="left", dx=4, dy=-6, color="#a86a00", fontSize=11).encode(
                    x=x, y=y, text="name:N"
                )
            )
        on_front = sorted((p for p in points if p.front), key=lambda p: p.speed)
        steps = [{"speed": p.speed, "quality": p.quality} for p in on_front]
        front = alt.Chart(data_of(steps))
        layers.append(front.mark_line(color=BLUE, strokeWidth=1.5, opacity=0.6).encode(x=x, y=y))
        layers += [
            base.mark_rule(strokeWidth=1.5, opacity=0.75).encode(
                x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour
            ),
            base.mark_rule(strokeWidth=1.5, opacity=0.75).encode(
                x=alt.X("slowest:Q"), x2="fastest:Q", y=y, color=colour
            ),
            base.mark_point(filled=True, opacity=0.55, strokeWidth=0).encode(
                x=x, y=y, color=colour, size=alt.Size("size:Q", scale=None)
            ),
        ]
        leaders = []
        for circle, label in zip(circles, labels, strict=True):
            if label.led:
                box = label.box
                end = (
                    min(max(circle.x, box.x), box.x + box.width),
                    min(max(circle.y, box.y), box.y + box.height),
                )
                far = from_pixels(*end)
                near = from_pixels(circle.x, circle.y)
                leaders.append({**near, "speed2": far["speed"], "quality2": far["quality"]})
        if leaders:
            layers.append(
                alt.Chart(data_of(leaders))
                .mark_rule(color=GREY, strokeWidth=0.75)
                .encode(x=x, y=y, x2="speed2:Q", y2="quality2:Q")
            )
        texts = [
            {
                "name": name,
                "bold": p.front,
                **from_pixels(
                    label.box.x + label.box.width / 2, label.box.y + label.box.height / 2
                ),
            }
            for name, p, label in zip(names, points, labels, strict=True)
        ]
        for bold in (True, False):
            some = [t for t in texts if t["bold"] == bold]
            if some:
                layers.append(
                    alt.Chart(data_of(some))
                    .mark_text(
                        align="center",
                        baseline="middle",
                        fontSize=size,
                        fontWeight="bold" if bold else "normal",
                        color=INK if bold else MUTED,
                        limit=across,
                    )
                    .encode(x=x, y=y, text="name:N")
                )
        chart = alt.layer(*layers).properties(width=across, height=down)
        if not peaks:
            return chart
        return alt.vconcat(_legend(top, memory, scale, across), chart, spacing=6)

    told = "; ".join(
        f"{p.name}: macro-F1 {p.quality:.3f}, {p.speed:.3g} documents a second"
        + (f", {p.memory:,.0f} MiB" if p.memory is not None else "")
        + (", on the front" if p.front else "")
        for p in points
    )
    return panel("", f"Quality against the speed of prediction. {told}.", make)


def _legend(top: float, memory: str, scale: float, across: int) -> Any:
    """A row of circles with their memory, above the drawing and to its scale."""
    import altair as alt

    values = legend_values(top)
    rows = []
    heading = f"peak memory {memory}".strip() + ":"
    x = text_width(heading, 11) + 10
    for value in values:
        radius = math.sqrt(scale * LARGEST * value / top / math.pi)
        text = f"{value:,.0f} MiB" if value < 1024 else f"{value / 1024:g} GiB"
        rows.append(
            {
                "x": x + radius,
                "text_x": x + 2 * radius + 5,
                "size": _size(scale * LARGEST * value / top),
                "text": text,
            }
        )
        x += 2 * radius + 5 + text_width(text, 11) + 14
    place: dict[str, Any] = {"scale": alt.Scale(domain=[0, across], nice=False), "axis": None}
    base = alt.Chart(data_of(rows))
    middle = alt.value(20)
    title = alt.Chart(data_of([{"x": 0, "text": heading}]))
    return alt.layer(
        title.mark_text(align="left", baseline="middle", fontSize=11, color=MUTED).encode(
            x=alt.X("x:Q", **place), y=middle, text="text:N"
        ),
        base.mark_point(filled=True, color=GREY, opacity=0.55, strokeWidth=0).encode(
            x=alt.X("x:Q", **place), y=middle, size=alt.Size("size:Q", scale=None)
        ),
        base.mark_text(align="left", baseline="middle", fontSize=11, color=MUTED).encode(
            x=alt.X("text_x:Q", **place), y=middle, text="text:N"
        ),
    ).properties(width=across, height=40)


def _size(area: float) -> float:
    """Vega's size of a circle: the square around it."""
    return area * 4 / math.pi


def legend_values(top: float) -> list[float]:
    """Two or three round numbers of MiB up to the largest peak.

    >>> legend_values(900.0), legend_values(5000.0)
    ([256, 512], [1024, 4096])
    """
    powers = [2**k for k in range(26) if 2**k <= top]
    return [powers[-2], powers[-1]] if top < 1024 and len(powers) > 1 else powers[-3::2] or [top]


def shares(low: float, high: float) -> list[float]:
    """Four to nine round shares in a range, none below 0 or above 1.

    >>> shares(0.31, 0.62), shares(0.95, 1.05)
    ([0.35, 0.4, 0.45, 0.5, 0.55, 0.6], [0.96, 0.98, 1.0])
    """
    span = high - low
    step = next(step for step in (0.02, 0.05, 0.1, 0.2) if span / step <= 8 or step == 0.2)
    found = [round(step * i, 2) for i in range(round(1 / step) + 1)]
    return [share for share in found if low <= share <= high]


def ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten in a range; fewer of them where there are too many.

    >>> ticks(0.8, 30, 10), ticks(0.8, 3000, 4)
    ([1.0, 2.0, 5.0, 10.0, 20.0], [1.0, 10.0, 100.0, 1000.0])
    """
    for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1,)):
        found = [float(f"{f}e{p}") for p in range(-9, 10) for f in factors]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= most and (len(found) > 2 or factors == (1, 2, 3, 4, 5, 6, 7, 8, 9)):
            return found
    return found[:: max(1, len(found) // most)]
