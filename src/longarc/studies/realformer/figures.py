"""What the study of RealFormer draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from longarc.report.drawing import (
    BLUE,
    GREEN,
    MUTED,
    NARROW,
    ORANGE,
    PURPLE,
    WIDE,
    data_of,
    panel,
)
from longarc.studies.realformer.findings import class_gains
from longarc.studies.realformer.measured import Measured
from longarc.studies.realformer.residual_minilm import WAYS
from longarc.studies.shared.charts import colour_by_name
from longarc.studies.study import StudyFigure

COLOURS = {"PostLN": BLUE, "PreLN": GREEN, "RealFormer": ORANGE, "ReZero": PURPLE}
MINILM = {"none": BLUE, "plain": ORANGE, "gate": GREEN}
NAMES = {"none": "none", "plain": "in full", "gate": "gates"}


def figures(measured: Measured) -> list[StudyFigure]:
    """Draw accuracy over steps, gradients and attention over depth, gains, and MiniLM."""
    return [
        _curves(measured),
        _by_layer(
            "gradients",
            "Gradients at the start",
            "Norm of the first batch’s gradient in each layer’s weights, before any training; a "
            "mean over seeds, on a logarithmic axis. ReZero’s layers begin as the identity, and "
            "only their α have a gradient.",
            "norm",
            measured.gradients,
            log=True,
        ),
        _by_layer(
            "entropy",
            "How spread out attention is",
            "Entropy of attention as a share of that of attending to all tokens alike, by layer, "
            "after training; the band is the range over seeds.",
            "entropy",
            measured.entropies,
        ),
        _by_layer(
            "likeness",
            "How alike neighbouring layers attend",
            "Likeness of each head’s attention to the most similar head of the layer before, "
            "after training: 1 is the same, 0 nothing in common; the band is the range over seeds.",
            "likeness",
            measured.alike,
            first=2,
        ),
        _gains(measured),
        _minilm(measured),
    ]


def _curves(measured: Measured) -> StudyFigure:
    rows, said = [], []
    for name, runs in measured.runs.items():
        for step in runs[0].shares:
            shares = torch.stack([run.shares[step] for run in runs])  # (seeds, texts)
            variance = shares.mean(0).var() / shares.shape[1] + shares.mean(1).var() / len(shares)
            mean, noise = float(shares.mean()), 2 * float(variance) ** 0.5
            rows.append(
                {"who": name, "x": step, "y": mean, "low": mean - noise, "high": mean + noise}
            )
        said.append(f"{name} {rows[-1]['y']:.1%}")
    return StudyFigure(
        "curves",
        "Masked tokens restored in held-out texts over the steps, the best cell of each encoder; "
        "the band is two standard errors over texts and seeds to either side.",
        panel(
            "Masked tokens restored",
            f"Share of masked tokens restored after the last step: {', '.join(said)}.",
            lambda width: _lines(rows, "step", "masked tokens restored", width, percent=True),
        ),
    )


def _by_layer(
    name: str,
    title: str,
    caption: str,
    unit: str,
    values: dict[str, list[list[float]]],
    *,
    first: int = 1,
    log: bool = False,
) -> StudyFigure:
    rows, said = [], []
    for who, runs in values.items():
        for layer, found in enumerate(zip(*runs, strict=True), start=first):
            mean = sum(found) / len(found)
            rows.append({"who": who, "x": layer, "y": mean, "low": min(found), "high": max(found)})
        ends = (
            f"{sum(each) / len(runs):.2g}"
            for each in list(zip(*runs, strict=True))[:: max(1, len(runs[0]) - 1)]
        )
        said.append(f"{who} {' to '.join(ends)}")
    return StudyFigure(
        name,
        caption,
        panel(
            title,
            f"{unit.capitalize()}, layer {first} to the last: {'; '.join(said)}.",
            lambda width: _lines(rows, "layer", unit, width, log=log, whole=True),
        ),
    )


def _lines(
    rows: Sequence[dict[str, Any]],
    x: str,
    y: str,
    width: int,
    *,
    percent: bool = False,
    log: bool = False,
    whole: bool = False,
) -> Any:
    import altair as alt

    names = list(dict.fromkeys(row["who"] for row in rows))
    ticks = sorted({row["x"] for row in rows})
    ends = alt.Scale(domain=[ticks[0] if whole else 0, ticks[-1]], nice=False)
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=False)
    base = alt.Chart(data_of(rows)).encode(
        x=alt.X(
            "x:Q",
            title=x,
            scale=ends,
            axis=alt.Axis(
                grid=False, format="d" if whole else ",d", tickCount=5,
                values=ticks if whole else alt.Undefined,
            ),
        ),
        color=colour_by_name({name: COLOURS[name] for name in names}, width, columns=2),
    )  # fmt: skip
    axis = alt.Axis(tickCount=5, format=".0%" if percent else "~g", domain=False, grid=not log)
    band = base.mark_area(opacity=0.15).encode(
        y=alt.Y("low:Q", title=y, scale=scale, axis=axis), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2, point={"size": 36}).encode(
        y=alt.Y("y:Q", title=y, scale=scale, axis=axis)
    )
    return (band + line).properties(width=_inner(width), height=260)


def _gains(measured: Measured) -> StudyFigure:
    rows = []
    for figure, label in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced accuracy")):
        for tuned, gained in zip(measured.tuned, class_gains(measured, figure), strict=True):
            low, high = gained.interval
            rows.append(
                {
                    "figure": label,
                    "task": f"{tuned.task.name}, {tuned.task.classes} classes",
                    "classes": tuned.task.classes,
                    "gain": 100 * gained.difference,
                    "low": 100 * low,
                    "high": 100 * high,
                }
            )
    order = [row["task"] for row in sorted(rows, key=lambda row: row["classes"])]
    said = "; ".join(
        f"{r['task']}, {r['figure']} {r['gain']:+.1f} ({r['low']:+.1f} to {r['high']:+.1f})"
        for r in rows
    )

    def make(width: int) -> Any:
        import altair as alt

        shared: dict[str, Any] = {
            "y": alt.Y("task:N", sort=list(dict.fromkeys(order)), title=None,
                       axis=alt.Axis(domain=False, ticks=False, labelLimit=190)),
            "yOffset": alt.YOffset("figure:N"),
            "color": alt.Color(
                "figure:N", scale=alt.Scale(range=[BLUE, ORANGE]),
                legend=alt.Legend(columns=1 if width == NARROW else 0),
            ),
        }  # fmt: skip
        chart = alt.Chart(data_of(rows)).encode(**shared)
        title = "percentage points"
        zero = alt.Chart(data_of([{"at": 0}])).mark_rule(color=MUTED, strokeDash=[3, 3])
        axis = alt.Axis(tickCount=4 if width == NARROW else 8)
        bars = chart.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=title, axis=axis), x2="high:Q"
        )
        dots = chart.mark_point(filled=True, size=70, opacity=1).encode(
            x=alt.X("gain:Q", title=title, axis=axis)
        )
        return (zero.encode(x="at:Q") + bars + dots).properties(
            width=width - (170 if width == NARROW else 230), height=alt.Step(26)
        )

    return StudyFigure(
        "classes",
        "What RealFormer has over PostLN after fine-tuning, in percentage points, with 95 % "
        "bootstrap intervals over the test documents; few classes at the top.",
        panel("Gain with few and with many classes", f"Gain in points: {said}.", make),
    )


def _minilm(measured: Measured) -> StudyFigure:
    rows = []
    for way in measured.minilm:
        for when, shares in (("before training", way.before), ("after", way.after)):
            mean = float(shares.mean())
            noise = 2 * float(shares.std()) / len(shares) ** 0.5
            rows.append(
                {
                    "way": NAMES[way.way], "when": when, "share": mean,
                    "low": mean - noise, "high": mean + noise,
                }
            )  # fmt: skip
    said = "; ".join(f"{r['way']}, {r['when']}: {r['share']:.1%}" for r in rows)

    def make(width: int) -> Any:
        import altair as alt

        names = [NAMES[way] for way in WAYS]
        scale = alt.Scale(domain=names, range=[MINILM[way] for way in WAYS])
        chart = alt.Chart(data_of(rows)).encode(
            x=alt.X("when:N", sort=["before training", "after"], title=None,
                    axis=alt.Axis(labelAngle=0, domain=False, ticks=False)),
            xOffset=alt.XOffset("way:N", sort=names),
            color=alt.Color("way:N", scale=scale, legend=alt.Legend(columns=0)),
        )  # fmt: skip
        axis = alt.Axis(format=".0%", tickCount=5, domain=False)
        bars = chart.mark_bar().encode(
            y=alt.Y("share:Q", title="masked tokens restored", axis=axis)
        )
        noise = chart.mark_rule(color=MUTED).encode(
            y=alt.Y("low:Q", title="masked tokens restored", axis=axis), y2="high:Q",
            color=alt.value(MUTED),
        )  # fmt: skip
        return (bars + noise).properties(width=_inner(width), height=240)

    return StudyFigure(
        "minilm",
        "Residual attention put into the pretrained MiniLM, in full or by gates that start at 0, "
        "before and after a short training; lines are two standard errors over texts to either "
        "side.",
        panel(
            "Residual attention in a pretrained encoder",
            f"Share of masked tokens restored; {said}.",
            make,
        ),
    )


def _inner(width: int) -> int:
    return width - 60 if width == NARROW else WIDE - 70
