"""Explanations as a page: for each prediction a waterfall that closes, and the documents in it.

It takes plain values (``Explanation.to_dict``) and knows nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from longarc.files import check_page, write_text
from longarc.report.drawing import (
    BLUE,
    INK,
    MUTED,
    NARROW,
    RED,
    Panel,
    data_of,
    panel,
    shorten,
)
from longarc.report.page import render

CLASSES = 6
"""Classes with a bar of their own; the rest share one, so that the bars still add up."""

EXCERPT = 400


def write_explanations(
    out: str | Path, explained: Sequence[Mapping[str, Any]], *, title: str
) -> Path:
    """Write one self-contained HTML page.

    An entry is ``Explanation.to_dict()`` and a ``text``; or each is ``Effects.to_dict()`` and one.

    Raises OptionError for an ``out`` that is no HTML file.
    """
    target = check_page(out)
    context = {"title": title, "entries": drawn(explained), "excerpt": EXCERPT}
    page = render("explanations.html.j2", context)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)
    return target


def drawn(explained: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries as a page shows them: each with its waterfall if it adds up, its text cut."""
    return [
        {
            **entry,
            "text": shorten(str(entry["text"]), EXCERPT),
            "waterfall": waterfall(entry) if "initial" in entry else None,
        }
        for entry in explained
    ]


def bars(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of a waterfall: each has a name, where it starts and where it ends.

    The first stands on 0 and ends at the initial value; each next one starts where the one before
    ended; the last runs from the final value back to 0.

    >>> entry = {"initial": 1.0, "final": 4.0, "contributions": 2.5, "decay": 0.25,
    ...          "elsewhere": 0.0, "afterwards": 0.0, "residual": 0.25,
    ...          "by_class": {"a": 3.0, "b": -0.5}}
    >>> [(b["name"], b["from"], b["to"]) for b in bars(entry)]
    [('before training', 0.0, 1.0), ('documents of a', 1.0, 4.0), ('documents of b', 4.0, 3.5),
     ('weight decay', 3.5, 3.75), ('residual', 3.75, 4.0), ('the score', 0.0, 4.0)]
    """
    by_class = dict(entry.get("by_class") or {"all classes": entry["contributions"]})
    ranked = sorted(by_class, key=lambda name: -abs(by_class[name]))
    parts = [(f"documents of {name}", by_class[name]) for name in ranked[:CLASSES]]
    if rest := ranked[CLASSES:]:
        parts.append((f"{len(rest)} other classes", sum(by_class[name] for name in rest)))
    parts.append(("weight decay", entry["decay"]))
    for key, name in (
        ("elsewhere", "other parameters"),
        ("afterwards", "after the training"),
    ):
        if entry[key]:
            parts.append((name, entry[key]))
    parts.append(("residual", entry["residual"]))
    at = entry["initial"]
    found = [{"name": "before training", "from": 0.0, "to": at, "total": True}]
    for name, value in parts:
        found.append({"name": name, "from": at, "to": at + value, "total": False})
        at += value
    found.append({"name": "the score", "from": 0.0, "to": entry["final"], "total": True})
    return found


def waterfall(entry: Mapping[str, Any]) -> Panel:
    """The bars, one below the other, with the level carried from each to the next."""
    import altair as alt

    rows = bars(entry)
    for row in rows:
        row["label"] = shorten(row["name"], 34)
        row["kind"] = "total" if row["total"] else "up" if row["to"] >= row["from"] else "down"
        change = row["to"] - row["from"]
        row["amount"] = f"{change:.3f}" if row["total"] else f"{change:+.3g}"
        row["right"] = max(row["from"], row["to"])
    names = [row["label"] for row in rows]
    for i, row in enumerate(rows):
        # Rows of one name would be one row: invisible spaces tell them apart.
        row["row"] = names[i] + "\u200b" * names[:i].count(names[i])
    # Where a bar ends the next one begins; the last, a total, ends there too.
    levels = [
        {"at": before["to"], "row": row["row"]}
        for before, after in pairwise(rows)
        for row in (before, after)
    ]

    def make(width: int) -> Any:
        axis = alt.Axis(
            labelLimit=130 if width == NARROW else 240,
            domain=False,
            ticks=False,
            grid=False,
        )
        y = alt.Y("row:N", sort=None, title=None, axis=axis, scale=alt.Scale(paddingInner=0.3))
        color = alt.Color(
            "kind:N",
            scale=alt.Scale(domain=["total", "up", "down"], range=[MUTED, BLUE, RED]),
            legend=None,
        )
        x = alt.X("from:Q", title=entry["name"], axis=alt.Axis(tickCount=5))
        drawn = alt.Chart(data_of(rows)).mark_bar().encode(y=y, x=x, x2="to:Q", color=color)
        ticks = (
            alt.Chart(data_of(levels))
            .mark_tick(color=INK, thickness=1, opacity=0.6)
            .encode(y=y, x="at:Q")
        )
        amounts = (
            alt.Chart(data_of(rows))
            .mark_text(align="left", dx=5, color=INK, fontSize=12)
            .encode(y=y, x="right:Q", text="amount:N")
        )
        left = 140 if width == NARROW else 250
        return alt.layer(drawn, ticks, amounts).properties(
            width=width - left - 60, height=26 * len(rows)
        )

    told = "; ".join(f"{row['name']} {row['amount']}" for row in rows)
    return panel(shorten(entry["name"], 80), told, make)
