"""The search for a learning rate, drawn: which steps were stable, what the short runs came to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from longarc.files import check_place, refuse_taken, whole_folder, write_json, write_text
from longarc.report.drawing import BLUE, MUTED, NARROW, ORANGE, Panel, data_of, panel
from longarc.report.page import render
from longarc.report.quantities import duration, percent, thousands
from longarc.report.saved import as_dict, is_number
from longarc.report.terminal_table import terminal_table
from longarc.report.training_charts import curve

if TYPE_CHECKING:
    from rich.console import Console

FIGURES = "learning_rate.json"


def refuse_existing(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise RunError unless the evidence can be written to ``folder``."""
    folder = Path(folder).expanduser()
    # A run folder has the figures of its own search, too.
    ours = (folder / FIGURES).is_file() and not (folder / "config.yaml").exists()
    refuse_taken(folder, "search", ours=ours, overwrite=overwrite)
    check_place(folder)


def write_search(found: dict[str, Any], folder: str | Path, data: str) -> Path:
    """Write ``lr.html`` and ``learning_rate.json`` to a folder; return the page's path.

    ``found`` is the record of a search and ``data`` the table's name. The folder appears whole or
    not at all.
    """
    folder = Path(folder).expanduser()
    folder.parent.mkdir(parents=True, exist_ok=True)
    context = {"title": f"Learning rate for {Path(data).name}", "search": search_context(found)}
    with whole_folder(folder) as temporary:
        write_json(temporary / FIGURES, found)
        write_text(temporary / "lr.html", render("lr.html.j2", context))
    return folder / "lr.html"


def search_context(found: dict[str, Any]) -> dict[str, Any]:
    """What a page shows of the record of a search: sentences, a table and two drawings."""
    return {
        "recommended": _rate(found["recommended"]),
        "sentences": sentences(found),
        "rows": [
            {
                **row,
                "rate": _rate(row["learning_rate"]),
                "chosen": row["learning_rate"] == found["recommended"],
                "duration": duration(row["seconds"]),
            }
            for row in found["candidates"]
        ],
        "stability": stability_chart(found),
        "loss": loss_chart(found),
        "candidates": candidates_chart(found),
        "validation": found["validation"],
    }


def sentences(found: dict[str, Any]) -> list[str]:
    """The range, its ends, what was tried and what it cost, for people.

    >>> row = {"learning_rate": 1e-5, "macro_f1": 0.7, "steps": 20}
    >>> rows = [row, row | {"learning_rate": 1e-4, "macro_f1": 0.71}]
    >>> found = {"recommended": 1e-5, "candidates": rows, "validation": 90, "run_steps": 100,
    ...     "cost": 0.6, "range": {"low": 1e-5, "high": 1e-4, "low_why": "a", "high_why": "b"},
    ...     "stability": {"steps": 24, "passes": 40, "documents": 16}, "cost_steps": 60}
    >>> sentences(found)[1].partition("documents. ")[2][:42]
    '1e-5 is recommended for its smaller loss: '
    >>> "None had a better macro-F1" in sentences(found | {"start": {"macro_f1": 0.72}})[1]
    True
    """
    bounds, steps = found["range"], found["stability"]["steps"]
    short = found["candidates"][0]["steps"]
    times = found["cost"]
    rows = [row for row in found["candidates"] if row["macro_f1"] is not None]
    best = max(rows, key=lambda row: row["macro_f1"], default=None)
    why = ""
    if best is not None and best["learning_rate"] != found["recommended"]:
        why = (
            f" {_rate(found['recommended'])} is recommended for its smaller loss: its macro-F1 is "
            f"within two standard errors of the best, that of {_rate(best['learning_rate'])}."
        )
    start = as_dict(found.get("start")).get("macro_f1")
    if best is not None and is_number(start) and start >= best["macro_f1"]:
        why += (
            f" None had a better macro-F1 than what they start from, {start:.3f}, so the training "
            "may end where it starts: try more --epochs, or a larger --max-length if texts are cut."
        )
    return [
        f"Range: {_rate(bounds['low'])} to {_rate(bounds['high'])}. Upper end: "
        f"{bounds['high_why']}. Lower end: {bounds['low_why']}.",
        f"Tried: {len(found['candidates'])} rates in runs of {thousands(short)} steps of the "
        f"training's {thousands(found['run_steps'])}, with its own schedule; compared on "
        f"{thousands(found['validation'])} validation documents.{why}",
        f"Cost: {thousands(round(found['cost_steps']))} steps, {percent(times)} of the training's: "
        f"{thousands(steps)} of a rising warm-up, with "
        f"{thousands(found['stability']['passes'])} forward passes over "
        f"{thousands(found['stability']['documents'])} documents, and the short runs.",
    ]


def stability_chart(found: dict[str, Any]) -> Panel | None:
    """The warm-up's learning rate and the critical one, by step."""
    measured = [step for step in found["stability"]["measured"] if is_number(step.get("step"))]
    if not measured:
        return None
    return curve(
        "Learning rate and critical learning rate",
        [
            ("learning rate", measured, "learning_rate"),
            ("critical learning rate", measured, "critical_learning_rate"),
        ],
        (0, max(step["step"] for step in measured)),
        None,
        log_scale=True,
    )  # fmt: skip


def loss_chart(found: dict[str, Any]) -> Panel | None:
    """The loss of the sample by the steps of the warm-up."""
    measured = found["stability"]["measured"]
    span = (0, max((step["step"] for step in measured), default=1))
    return curve("Loss of the sample", [("loss", measured, "loss")], span, None, zero=True)


def candidates_chart(found: dict[str, Any]) -> Panel | None:
    """Macro-F1 and loss of the short runs by learning rate, the recommended one marked."""
    import altair as alt

    rows = [row for row in found["candidates"] if row["macro_f1"] is not None]
    if not rows:
        return None
    low, high = found["range"]["low"], found["range"]["high"]
    rates = [row["learning_rate"] for row in rows]
    domain = [min(low, *rates) / 1.2, max(high, *rates) * 1.2]
    ticks = _ticks(*domain)

    def make(width: int) -> Any:
        few = ticks if width != NARROW else ticks[:: max(1, len(ticks) // 4)]
        x = alt.X(
            "learning_rate:Q",
            title="learning rate",
            scale=alt.Scale(type="log", domain=domain, nice=False),
            axis=alt.Axis(values=few, format="~e", grid=False),
        )
        y = alt.Y(
            "macro_f1:Q",
            title="macro-F1",
            scale=alt.Scale(zero=False, nice=True),
            axis=alt.Axis(tickCount=4, format=".3~f", domain=False, ticks=False),
        )
        points = [{**row, "chosen": row["learning_rate"] == found["recommended"]} for row in rows]
        base = alt.Chart(data_of(points))
        line = base.mark_line(color=MUTED, strokeWidth=1.5).encode(x=x, y=y)
        colour = alt.condition("datum.chosen", alt.value(ORANGE), alt.value(BLUE))
        dots = base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, color=colour)
        ends = alt.Chart(data_of([{"learning_rate": low}, {"learning_rate": high}]))
        rule = ends.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(x=x)
        return alt.layer(rule, line, dots).properties(
            width=width,
            height=190,
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
        )

    told = "; ".join(f"{_rate(row['learning_rate'])}: {row['macro_f1']:.3f}" for row in rows)
    return panel("Validation macro-F1 of the short runs", f"By learning rate: {told}.", make)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in a range, fewer where it is wide.

    >>> _ticks(8e-6, 3e-4)
    [1e-05, 3e-05, 0.0001, 0.0003]
    """
    found = [float(f"{factor}e{power}") for power in range(-9, 2) for factor in (1, 3)]
    return [tick for tick in found if low <= tick <= high]


def _rate(value: float) -> str:
    """A learning rate with two digits.

    >>> _rate(0.00012), _rate(0.003)
    ('1.2e-4', '3e-3')
    """
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def print_search(found: dict[str, Any], console: Console) -> None:
    """Print a row for each rate that was tried, the recommended one bold, and what it rests on.

    >>> from rich.console import Console
    >>> row = {"learning_rate": 1e-4, "macro_f1": 0.8, "accuracy": 0.9, "loss": 0.5, "steps": 20,
    ...        "seconds": 3.0}
    >>> print_search({"recommended": 1e-4, "validation": 90, "run_steps": 100, "cost": 0.6,
    ...     "cost_steps": 60, "range": {"low": 1e-5, "high": 1e-3, "low_why": "a", "high_why": "b"},
    ...     "stability": {"steps": 24, "passes": 40, "documents": 16}, "candidates": [row]},
    ...     Console(width=72))
    learning rate, 90 validation documents
    ...Macro-F1...
    1e-4...0.800...recommended...
    """
    from rich.text import Text

    table = terminal_table(f"learning rate, {found['validation']:,} validation documents")
    table.add_column("Rate", min_width=8)
    for name in ("Macro-F1", "Accuracy", "Loss", "Seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in found["candidates"]:
        best = row["learning_rate"] == found["recommended"]
        cells = [
            "–" if row[name] is None else f"{row[name]:.3f}"
            for name in ("macro_f1", "accuracy", "loss")
        ]
        note = "recommended" if best else "diverged" if row["macro_f1"] is None else ""
        shown = [_rate(row["learning_rate"]), *cells, f"{row['seconds']:.0f}", note]
        table.add_row(*(Text(cell, style="bold" if best else "") for cell in shown))
    console.print(table)
    for sentence in sentences(found):
        console.print(Text(sentence))
    console.print()
