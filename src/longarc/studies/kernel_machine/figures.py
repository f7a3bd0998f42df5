"""What the study of kernel machines draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from longarc.report.drawing import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    NARROW,
    ORANGE,
    RED,
    WIDE,
    data_of,
    panel,
)
from longarc.studies.kernel_machine.findings import orders, told
from longarc.studies.kernel_machine.measured import Measured
from longarc.studies.kernel_machine.neighbours import MEASURES, TOP
from longarc.studies.shared.charts import chart_title, side_by_side
from longarc.studies.shared.intervals import interval
from longarc.studies.study import StudyFigure

CONSTANT = "constant weights"
COLOURS = {
    "start of the step": ORANGE,
    "middle": BLUE,
    "two points": GREEN,
    CONSTANT: RED,
}
POINTS = 300
"""Marks of a cloud, at most."""


def figures(measured: Measured) -> list[StudyFigure]:
    """The rebuilt value by step size, the ledger against training again, neighbours."""
    return [_rebuilt(measured), _ledger(measured), _neighbours(measured)]


def _rebuilt(measured: Measured) -> StudyFigure:
    rows = [
        {"who": rule, "rate": walked.rate, "missing": float(values.mean())}
        for walked in measured.walks
        for rule, values in {**walked.missing, CONSTANT: walked.constant}.items()
    ]
    slopes = "; ".join(f"{rule} {told(values)}" for rule, values in orders(measured).items())
    return StudyFigure(
        "rebuilt",
        "What is missing from f_T, rebuilt from the kernel, as a share of how far the logits "
        "moved, by learning rate γ; both axes logarithmic, mean of the seeds. Where the query’s "
        "gradient is taken on each step decides the order. With one weight for each example for "
        "the whole path the error stays.",
        panel(
            "f_T from the kernel",
            f"Slopes: {slopes}. With constant weights "
            + ", ".join(f"{float(w.constant.mean()):.2f} at {w.rate:g}" for w in measured.walks)
            + ".",
            lambda width: _rebuilt_chart(rows, width),
        ),
    )


def _rebuilt_chart(rows: Sequence[dict[str, Any]], width: int) -> Any:
    import altair as alt

    rates = sorted({row["rate"] for row in rows})
    narrow = width == NARROW
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X(
            "rate:Q",
            title="learning rate γ",
            scale=alt.Scale(type="log", domain=[rates[0] / 1.15, rates[-1] * 1.15], nice=False),
            axis=alt.Axis(grid=False, values=rates, format="~g"),
        ),
        y=alt.Y(
            "missing:Q",
            title="missing, as a share of the movement",
            scale=alt.Scale(type="log", nice=True),
            axis=alt.Axis(grid=False, format="~e", tickCount=6, labelOverlap=True),
        ),
        color=alt.Color(
            "who:N",
            scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
            legend=alt.Legend(symbolType="stroke", symbolSize=300, columns=2 if narrow else 0),
        ),
    )
    drawn = base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=45, opacity=1)
    return drawn.properties(width=width - (75 if narrow else 90), height=250 if narrow else 300)


def _ledger(measured: Measured) -> StudyFigure:
    sides = []
    for kind, title in (("forgotten", "one example forgotten"), ("learned", "one example learned")):
        edits = [getattr(b, kind)[1] for b in measured.binary]
        foretold = np.concatenate([e.foretold.ravel() for e in edits])
        again = np.concatenate([e.retrained.ravel() for e in edits])
        some = np.random.default_rng(0).permutation(len(again))[:POINTS]
        mean = interval([e.slope for e in edits])[0]
        sides.append((title, foretold[some], again[some], mean, [e.correlation for e in edits]))
    said = "; ".join(
        f"{title}: correlation {told(values)}, {mean:.2f} times the change foretold"
        for title, _, _, mean, values in sides
    )
    return StudyFigure(
        "ledger",
        "Change of a test digit’s margin when one training example is taken off or added: by the "
        f"ledger, and by training again. {POINTS} of all edits and digits, drawn at random. On the "
        "dashed line both agree; the other line is the best multiple of what was foretold.",
        panel(
            "The ledger against training again",
            f"{said}.",
            lambda width: side_by_side(
                [_cloud(title, a, b, mean, width) for title, a, b, mean, _ in sides], width
            ),
        ),
    )


def _cloud(title: str, foretold: np.ndarray, again: np.ndarray, slope: float, width: int) -> Any:
    import altair as alt

    # The few largest would press all others into a point.
    far = float(np.quantile(np.abs(foretold), 0.97)) * 1.1
    high = float(np.quantile(np.abs(again), 0.99)) * 1.3
    rows = [
        {"x": float(a), "y": float(b)}
        for a, b in zip(foretold, again, strict=True)
        if abs(a) <= far and abs(b) <= high
    ]
    x = alt.X(
        "x:Q", title="foretold by the ledger",
        scale=alt.Scale(domain=[-far, far], nice=False), axis=alt.Axis(grid=False, tickCount=5),
    )  # fmt: skip
    y = alt.Y(
        "y:Q", title="by training again",
        scale=alt.Scale(domain=[-high, high], nice=False), axis=alt.Axis(grid=False, tickCount=5),
    )  # fmt: skip
    marks = alt.Chart(data_of(rows)).mark_point(filled=True, size=18, opacity=0.5, color=BLUE)
    same, best = (
        [{"x": place * far, "y": place * far * times} for place in (-1, 1)] for times in (1, slope)
    )
    lines = [
        alt.Chart(data_of(line)).mark_line(clip=True, color=color, strokeDash=dash, strokeWidth=1.5)
        for line, color, dash in ((same, MUTED, [4, 4]), (best, INK, []))
    ]
    drawn = [chart.encode(x=x, y=y) for chart in (marks, *lines)]
    narrow = width == NARROW
    return alt.layer(*drawn).properties(
        width=width - 75 if narrow else (WIDE - 170) // 2,
        height=220 if narrow else 260,
        title=chart_title(title),
    )


def _neighbours(measured: Measured) -> StudyFigure:
    sides = []
    for of, title in (("licence", "same licence"), ("category", "same category")):
        rows = []
        for who in MEASURES:
            values = [100 * getattr(found, of)[who] for found in measured.found]
            mean, half = interval(values)
            rows.append({"who": who, "mean": mean, "low": mean - half, "high": mean + half})
        chance = 100 * measured.found[0].chance[of == "category"]
        sides.append((title, rows, chance))
    said = "; ".join(
        f"{title}: " + ", ".join(f"{r['who']} {r['mean']:.1f} %" for r in rows)
        for title, rows, _ in sides
    )
    return StudyFigure(
        "neighbours",
        f"Share of the {TOP} nearest training texts that are of the asker’s licence, which the "
        "network was not told, and of its category, which it learned. Bars are 95 % intervals over "
        "the seeds, the dashed line is chance.",
        panel(
            "Nearest training texts",
            f"{said}.",
            lambda width: side_by_side(
                [_shares(title, rows, chance, width) for title, rows, chance in sides], width
            ),
        ),
    )


def _shares(title: str, rows: Sequence[dict[str, Any]], chance: float, width: int) -> Any:
    import altair as alt

    scale = alt.Scale(domain=[0, 100], nice=False)
    axis = alt.Axis(tickCount=5, format="d")
    y = alt.Y("who:N", sort=list(MEASURES), title=None, axis=alt.Axis(domain=False, ticks=False))
    base = alt.Chart(data_of(rows)).encode(y=y)
    bars = base.mark_rule(strokeWidth=1.5, color=BLUE).encode(
        x=alt.X("low:Q", title="per cent", scale=scale, axis=axis), x2="high:Q"
    )
    dots = base.mark_point(filled=True, size=60, opacity=1, color=BLUE).encode(
        x=alt.X("mean:Q", title="per cent", scale=scale, axis=axis)
    )
    level = (
        alt.Chart(data_of([{"x": chance}]))
        .mark_rule(color=MUTED, strokeDash=[3, 3])
        .encode(x=alt.X("x:Q", scale=scale))
    )
    narrow = width == NARROW
    return alt.layer(level, bars, dots).properties(
        width=width - 110 if narrow else (WIDE - 270) // 2,
        height=34 * len(rows),
        title=chart_title(title),
    )
