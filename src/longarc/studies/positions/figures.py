"""What the study of stretched positions draws."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForMaskedLM

from longarc.models.positions import stretch_positions
from longarc.report.drawing import MUTED, NARROW, SERIES, WIDE, data_of, panel
from longarc.studies.shared.masked_tokens import BLOCKS
from longarc.studies.study import StudyFigure

if TYPE_CHECKING:
    from longarc.studies.positions.study import Way

STAGES = ("windows", "stretched", "trained")


def figures(
    ways: Sequence[Way],
    windows: Tensor,
    published: Mapping[str, float],
    untouched: BertForMaskedLM,
) -> list[StudyFigure]:
    """Draw accuracy by stage beside the published one, by α, and how alike positions are."""
    return [
        _stages(ways, windows, published),
        _alphas(ways, windows),
        _likeness(untouched),
    ]


def _stages(ways: Sequence[Way], windows: Tensor, published: Mapping[str, float]) -> StudyFigure:
    rows = [
        {"who": "published, RoBERTa-base", "stage": stage, "accuracy": published[stage]}
        for stage in STAGES
    ]
    for way in ways:
        if way.trained is not None:
            who = way.name if way.alpha is None else f"measured, α = {way.alpha:g}"
            values = (windows.mean(), way.straight.mean(), way.trained.mean())
            rows += [
                {"who": who, "stage": stage, "accuracy": float(value)}
                for stage, value in zip(STAGES, values, strict=True)
            ]
    said = "; ".join(f"{r['who']}, {r['stage']}: {r['accuracy']:.1%}" for r in rows)
    return StudyFigure(
        "stages",
        "Masked tokens restored: in windows of the trained length, at three times that length "
        "straight after stretching, and after a training there. Values of the two models are not "
        "comparable; the directions are.",
        panel(
            "Before and after",
            f"Share of masked tokens restored; {said}.",
            lambda width: _lines(rows, "stage:N", "who", width, sort=STAGES, title="accuracy"),
        ),
    )


def _alphas(ways: Sequence[Way], windows: Tensor) -> StudyFigure:
    tried = [way for way in ways if way.alpha is not None]
    levels = {"in windows": windows} | {w.name: w.straight for w in ways if w.alpha is None}
    rows = [
        {"who": "hierarchical", "alpha": way.alpha, "accuracy": float(way.straight.mean())}
        for way in tried
    ]
    rows += [
        {"who": name, "alpha": way.alpha, "accuracy": float(level.mean())}
        for name, level in levels.items()
        for way in tried
    ]
    said = ", ".join(f"α = {w.alpha:g}: {float(w.straight.mean()):.1%}" for w in tried)
    level = ", ".join(f"{name}: {float(value.mean()):.1%}" for name, value in levels.items())
    return StudyFigure(
        "alphas",
        "Masked tokens restored straight after stretching, by α; the other methods have none.",
        panel(
            "Which α",
            f"Share of masked tokens restored; {said}; {level}.",
            lambda width: _lines(rows, "alpha:Q", "who", width, title="accuracy"),
        ),
    )


def _likeness(untouched: BertForMaskedLM) -> StudyFigure:
    """How alike a position in the middle of the second block is to every other."""
    n = untouched.config.max_position_embeddings
    place, step = n + n // 2, max(1, n // 64)
    rows, said = [], []
    ways: dict[str, dict[str, Any]] = {
        "hierarchical": {"origin": 1}, "from position 2": {"origin": 2},
        "copy": {"method": "copy"}, "interpolate": {"method": "interpolate"},
    }  # fmt: skip
    for method, how in ways.items():
        model: Any = stretch_positions(copy.deepcopy(untouched), BLOCKS * n, **how)
        table: nn.Module = model.bert.embeddings.position_embeddings
        with torch.no_grad():
            vectors = table(torch.arange(BLOCKS * n))
            vectors = vectors - vectors.mean(0)
            alike = functional.cosine_similarity(vectors, vectors[place][None])
        rows += [
            {"who": method, "position": i + 1, "cosine": float(alike[i])}
            for i in range(0, BLOCKS * n, step)
        ]
        said.append(f"{method} {float(alike[place - n]):.2f}")
    return StudyFigure(
        "likeness",
        f"Cosine between position {place + 1} and every other, their mean taken away. Copied "
        "positions recur in every block. The hierarchy parts the first block from all later ones, "
        "which one large vector has moved, and these hardly from each other. Interpolated "
        "positions are like their neighbours over a longer stretch.",
        panel(
            "How alike positions are",
            f"Cosine of position {place + 1} and {place - n + 1}, one block before: "
            f"{', '.join(said)}.",
            lambda width: _lines(
                rows, "position:Q", "who", width, y="cosine", title="cosine", points=False
            ),
        ),
    )


def _lines(
    rows: Sequence[dict[str, Any]],
    x: str,
    series: str,
    width: int,
    *,
    title: str,
    y: str = "accuracy",
    sort: Sequence[str] | None = None,
    points: bool = True,
) -> Any:
    import altair as alt

    names = list(dict.fromkeys(row[series] for row in rows))
    narrow = width == NARROW
    domain = alt.Undefined if y == "cosine" else [0, 1.1 * max(row[y] for row in rows)]
    return (
        alt.Chart(data_of(rows))
        .mark_line(point=points)
        .encode(
            x=alt.X(
                x,
                sort=list(sort) if sort else alt.Undefined,
                title={"alpha:Q": "α", "position:Q": "position"}.get(x),
                axis=alt.Axis(grid=False, labelAngle=0),
                scale=alt.Scale(nice=False) if x.endswith("Q") else alt.Undefined,
            ),
            y=alt.Y(
                f"{y}:Q",
                title=title,
                scale=alt.Scale(domain=domain),
                axis=alt.Axis(tickCount=5, format=".0%" if y == "accuracy" else "~g", domain=False),
            ),
            color=alt.Color(
                f"{series}:N",
                scale=alt.Scale(domain=names, range=[*SERIES, MUTED][: len(names)]),
                legend=alt.Legend(symbolType="stroke", columns=1 if narrow else 0),
            ),
        )
        .properties(width=width - 60 if narrow else WIDE - 70, height=220 if narrow else 260)
    )
