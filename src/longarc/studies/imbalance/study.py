"""The study's entry: the gradient weights of every loss, drawn, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longarc.objectives.losses.registry import LOSSES
from longarc.report.drawing import MUTED, NARROW, SERIES, WIDE, Panel, data_of, panel
from longarc.studies.conclusion import Conclusion, conclude
from longarc.studies.imbalance.identities import identities
from longarc.studies.imbalance.rare_class import (
    GRID,
    NUM_EXAMPLES,
    OTHERS,
    RARE,
    build_for_rare_class,
    rare_class_weights,
)
from longarc.studies.shared.charts import chart_title, side_by_side
from longarc.studies.study import Finding, StudyFigure, StudyResult

#: Where in ``GRID`` the table looks: p = 0.1, 0.5 and 0.9.
SHOWN = (9, 49, 89)

_DASHES = [[], [7, 3], [2, 2], [9, 3, 2, 3], [1, 3], [12, 4]]


@dataclass(frozen=True)
class Curve:
    """A loss's weight at every probability of ``GRID``: where the class is there, and where not."""

    loss: str
    multi_label: bool
    present: list[float]
    absent: list[float]


@dataclass(frozen=True)
class Family:
    """Losses that are drawn together, and what to see in the drawing."""

    name: str
    title: str
    losses: tuple[str, ...]
    caption: str


FAMILIES = (
    Family(
        "scores",
        "Losses from a score",
        ("soft-accuracy", "soft-f1", "f1-weighted"),
        "Soft accuracy and soft F1 have no weight at the left end where the class is there, nor at "
        "the right end where it is not: they vanish where the model is most wrong. F1-weighted "
        "cross-entropy is soft F1 without that factor. F is low in this batch, so positives weigh "
        "much more than negatives.",
    ),
    Family(
        "easy",
        "Losses that turn away from the easy",
        ("truncated", "focal", "dice"),
        "Truncation stops at once, focal loss by degrees. Hard examples focal loss pulls harder "
        "than cross-entropy, not less. Dice has least weight where the model is most wrong.",
    ),
    Family(
        "weights",
        "Weights for classes",
        ("class-weighted", "class-balanced"),
        "A class weight is the same at every probability: an example of the rare class that is "
        "already right keeps its weight.",
    ),
    Family(
        "margins",
        "Margins and priors",
        ("logit-adjusted", "ldam", "radius-margin"),
        "A margin leaves the hardest examples of the rare class at 1, as in cross-entropy, and "
        "goes on pulling where cross-entropy has all but stopped, until the class is ahead by its "
        "margin. Where the class is absent, logit adjustment pulls less than cross-entropy, radius "
        "margin and LDAM a little more: their margins are never negative.",
    ),
    Family(
        "multi-label",
        "Losses for several labels only",
        ("binary-cross-entropy", "multilabel-softmax", "asymmetric"),
        "With one label, multi-label softmax is binary cross-entropy; what it does otherwise needs "
        "several. Asymmetric loss takes the weight of what is absent and easily seen to be.",
    ),
)


def imbalance(quick: bool = False) -> StudyResult:
    """Compute every registered loss's gradient weight, draw it, and check the known identities.

    It takes seconds: ``quick`` changes nothing.
    """
    del quick
    curves = all_curves()
    findings = identities()
    return StudyResult(
        title="Every loss re-weights a gradient",
        text=(
            "For a class with logit z and probability p, cross-entropy has the gradient p − y in "
            "z. Any other loss L has w (p − y), with the weight w = (∂L/∂z) / (p − y). That one "
            "number, drawn against p, shows what a loss does: 1 is cross-entropy, 0 is silence, "
            "above 1 is a stronger pull.",
            f"The class is rare: {RARE} of {NUM_EXAMPLES:,} training examples. Losses for one "
            "label have two classes, those for several have one label; a loss for both is drawn "
            "in the form for several, and the table has both. All losses have their default "
            f"options. Those of a whole batch see p = {float(GRID[0])} to {float(GRID[-1])} once "
            f"for examples of the class and {OTHERS} times for others, in one batch. Weights come "
            "from automatic differentiation in float64; the claims compare them with formulas "
            "worked out by hand.",
        ),
        findings=findings,
        table=[_row(curve) for curve in curves],
        figures=figures(curves),
        source=(
            "the papers named in each loss’s documentation; that soft accuracy and soft F1 lead to "
            "cross-entropy and F1-weighted cross-entropy when p gives way to log p is folklore. "
            "The weights, and their comparison, are longarc’s."
        ),
        conclusion=_conclusion(curves, findings),
    )


def all_curves() -> list[Curve]:
    """Return a curve for every registered loss and kind of labels it is for."""
    curves = []
    for name, info in LOSSES.items():
        for multi_label in (False, True):
            if info.multi_label if multi_label else info.single_label:
                loss = build_for_rare_class(name, multi_label=multi_label)
                present, absent = rare_class_weights(loss)
                curves.append(Curve(name, multi_label, present.tolist(), absent.tolist()))
    return curves


def figures(curves: Sequence[Curve]) -> list[StudyFigure]:
    """Return a figure for each family; losses that are in none have one of their own.

    Cross-entropy is in every figure, as the line at 1.
    """
    drawn = {curve.loss: curve for curve in curves}  # of two kinds the later: several labels
    named = {"cross-entropy", *(name for family in FAMILIES for name in family.losses)}
    others = tuple(name for name in drawn if name not in named)
    rest = [
        Family(f"others-{i // 6 + 1}", "Other losses", others[i : i + 6], "In no family yet.")
        for i in range(0, len(others), 6)
    ]
    return [
        StudyFigure(family.name, family.caption, _panel(family, drawn))
        for family in (*FAMILIES, *rest)
    ]


def _conclusion(curves: Sequence[Curve], findings: Sequence[Finding]) -> Conclusion:
    wrong = {curve.loss: curve.present[SHOWN[0]] for curve in curves}
    easy = {curve.loss: curve.present[SHOWN[-1]] for curve in curves}
    return conclude(
        "A loss for rare classes is said to be cross-entropy with its gradient re-weighted",
        findings,
        "the weights of automatic differentiation and those worked out by hand are compared at "
        "99 probabilities each with and without the class",
        "What a loss does depends on where the weight lies: at p = 0.1 of a class that is there "
        f"soft accuracy has {wrong['soft-accuracy']:.2f}, focal loss {wrong['focal']:.2f} and "
        f"logit adjustment {wrong['logit-adjusted']:.2f}, at p = 0.9 {easy['soft-accuracy']:.2f}, "
        f"{easy['focal']:.2f} and {easy['logit-adjusted']:.2f}",
    )


def _row(curve: Curve) -> dict[str, str | float]:
    return {
        "loss": curve.loss,
        "labels": "several" if curve.multi_label else "one",
        **{f"y=1, p={float(GRID[i])}": curve.present[i] for i in SHOWN},
        **{f"y=0, p={float(GRID[i])}": curve.absent[i] for i in SHOWN},
    }


def _panel(family: Family, drawn: dict[str, Curve]) -> Panel:
    curves = [drawn[name] for name in family.losses]
    described = "; ".join(
        f"{c.loss}: {_at_shown(c.present)} with the class, {_at_shown(c.absent)} without"
        for c in curves
    )
    return panel(
        family.title,
        f"Gradient weight against probability; at p = 0.1, 0.5 and 0.9 {described}.",
        lambda width: _chart(curves, width),
    )


def _at_shown(side: Sequence[float]) -> str:
    return ", ".join(f"{side[i]:.2f}" for i in SHOWN)


def _chart(curves: Sequence[Curve], width: int) -> Any:
    """Weight against probability: with the class, and beside or below it without."""
    import altair as alt

    names = [*(curve.loss for curve in curves), "cross-entropy"]
    top = 1.06 * max(1.0, *(max(*curve.present, *curve.absent) for curve in curves))
    bottom = min(0.0, *(min(*curve.present, *curve.absent) for curve in curves))
    narrow = width == NARROW
    x = alt.X(
        "p:Q",
        scale=alt.Scale(domain=[0, 1], nice=False),
        title="probability p of the class",
        axis=alt.Axis(tickCount=5, format=".1~f", grid=False),
    )
    y = alt.Y(
        "weight:Q",
        scale=alt.Scale(domain=[bottom, top], nice=False),
        title=None,
        axis=alt.Axis(tickCount=5, format="~g", domain=False, ticks=False, minExtent=30),
    )
    colour = alt.Color(
        "loss:N",
        scale=alt.Scale(domain=names, range=[*SERIES[: len(curves)], MUTED]),
        legend=alt.Legend(
            symbolType="stroke", symbolSize=400, columns=1 if narrow else 0, columnPadding=30
        ),
    )
    dashes = alt.Scale(domain=names, range=[*_DASHES[: len(curves)], [3, 3]])

    def half(title: str, sides: Sequence[Sequence[float]]) -> Any:
        points = [
            {"loss": name, "p": float(p), "weight": weight}
            for name, side in zip(names, [*sides, [1.0] * len(GRID)], strict=True)
            for p, weight in zip(GRID, side, strict=True)
        ]
        lines = alt.Chart(data_of(points)).mark_line()
        return lines.encode(
            x=x,
            y=y,
            color=colour,
            strokeDash=alt.StrokeDash("loss:N", scale=dashes),
            strokeWidth=alt.condition(
                "datum.loss == 'cross-entropy'", alt.value(1), alt.value(2.5)
            ),
        ).properties(
            width=width - 45 if narrow else (WIDE - 110) // 2,
            height=190 if narrow else 250,
            title=chart_title(title),
        )

    halves = [
        half("weight where the class is there, y = 1", [c.present for c in curves]),
        half("weight where it is not, y = 0", [c.absent for c in curves]),
    ]
    return side_by_side(halves, width, spacing=30)
