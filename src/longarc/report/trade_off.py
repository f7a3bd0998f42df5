"""A comparison of candidates under one budget: front, sentence, table, page and chart.

Reads the dict that is ``compare.json`` (schema: docs/compare.md).
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from longarc.files import whole_file, write_text
from longarc.report.drawing import png, shorten
from longarc.report.measures import Figure, figure, signed
from longarc.report.page import render
from longarc.report.quantities import budget, rate
from longarc.report.terminal_table import terminal_table
from longarc.report.trade_off_chart import Point, trade_off_chart

if TYPE_CHECKING:
    from rich.console import Console

WHOSE = "of training"
"""The peak that the circles show: it says whether a candidate can be trained at all."""


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """The names that no other beats: as good in both numbers and better in one. More is better.

    >>> sorted(pareto_front({"a": (1, 0.9), "b": (5, 0.8), "c": (4, 0.7), "d": (5, 0.8)}))
    ['a', 'b', 'd']
    """
    return {
        name
        for name, mine in points.items()
        if not any(
            all(t >= m for t, m in zip(theirs, mine, strict=True)) and theirs != mine
            for theirs in points.values()
        )
    }


def table_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row of plain values for each candidate: what ``table.csv`` holds."""
    rows = []
    for row in found["candidates"]:
        speed = row["prediction_documents_per_second"] or {}
        rows.append(
            {
                "candidate": row["name"],
                "front": row["front"],
                **_three("macro_f1", row["macro_f1"]),
                **_three("accuracy", row["accuracy"]),
                **_three("against_best", row["against_best"]),
                "training_documents_per_second": row["training_documents_per_second"],
                "prediction_documents_per_second": speed.get("median"),
                "prediction_documents_per_second_min": speed.get("min"),
                "prediction_documents_per_second_max": speed.get("max"),
                "training_peak_mib": row["training_peak_mib"],
                "prediction_peak_mib": row["prediction_peak_mib"],
                "parameters": row["parameters"],
                "steps": row["steps"],
                "minutes": row["minutes"],
                "start_kept": row.get("start_kept", 0),
                "failed": row["why"],
            }
        )
    return rows


def _three(name: str, found: dict[str, float] | None) -> dict[str, float | None]:
    found = found or {}
    return {
        name: found.get("value"),
        f"{name}_low": found.get("low"),
        f"{name}_high": found.get("high"),
    }


def sentence_of(found: dict[str, Any]) -> str:
    """What the front says, in one or two sentences."""
    front = [row for row in found["candidates"] if row["front"]]
    if not front:
        return "No candidate was trained and timed."
    best = max(front, key=lambda row: row["macro_f1"]["value"])
    fastest = max(front, key=lambda row: row["prediction_documents_per_second"]["median"])
    # One that is better yet may have failed to be timed: intervals are then against that one.
    of_all = best["against_best"] is None
    among = "" if of_all else "Of those that were timed, "
    if best is fastest:
        near = _level(found) if of_all else ""
        return (
            f"{among}{best['name']} has the best macro-F1 ({best['macro_f1']['value']:.3f}) and "
            f"predicts fastest ({_speed(best)} documents a second).{near}"
        )
    times = (
        fastest["prediction_documents_per_second"]["median"]
        / best["prediction_documents_per_second"]["median"]
    )
    behind = best["macro_f1"]["value"] - fastest["macro_f1"]["value"]
    if not of_all:
        return (
            f"{among}{best['name']} has the best macro-F1, {best['macro_f1']['value']:.3f}. The "
            f"fastest on the front, {fastest['name']}, predicts {times:.1f} times as many "
            f"documents a second, with {behind:.3f} less macro-F1."
        )
    against = fastest["against_best"] or {"low": 0.0, "high": 0.0}
    low, high = against["low"], against["high"]
    settled = low > 0 or high < 0
    open_question = "" if settled else ", which these documents do not settle"
    return (
        f"{best['name']} has the best macro-F1, {best['macro_f1']['value']:.3f}. The fastest on "
        f"the front, {fastest['name']}, predicts {times:.1f} times as many documents a second, "
        f"with {behind:.3f} less macro-F1{open_question} (95 % interval of the difference "
        f"{signed(low, 3)} to {signed(high, 3)})."
    )


def _level(found: dict[str, Any]) -> str:
    """Which candidates the documents do not tell from the best."""
    differences = {row["name"]: row["against_best"] for row in found["candidates"]}
    near = [name for name, against in differences.items() if against and against["high"] >= 0]
    return f" In macro-F1 these documents do not tell it from {', '.join(near)}." if near else ""


def _speed(row: dict[str, Any]) -> str:
    return rate(row["prediction_documents_per_second"]["median"])


START_KEPT = "*"
"""The mark of a candidate whose training was for nothing."""


def start_note(found: dict[str, Any]) -> str | None:
    """What the mark says; None where no candidate has it."""
    kept = {row["name"]: row.get("start_kept", 0) for row in found["candidates"]}
    if not any(kept.values()):
        return None
    seeds = len(found["seeds"])
    some = ", ".join(f"{name} with {n} of {seeds} seeds" for name, n in kept.items() if n)
    return (
        f"{START_KEPT} No epoch of its training beat the start on the validation split, so the "
        "start was kept: quality is the linear probe's, or a random head's where there is none"
        f"{f' ({some})' if seeds > 1 else ''}."
    )


def fitted_baseline(found: dict[str, Any]) -> dict[str, Any] | None:
    """The linear baseline's name and figures; None where there is none or it failed."""
    baseline = found.get("baseline")
    return None if baseline is None or baseline.get("why") is not None else baseline


def failures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """``name`` and ``why`` of the candidates that failed, and of the baseline if it did."""
    rows = [*found["candidates"], found.get("baseline") or {}]
    return [row for row in rows if row.get("why") is not None]


def chart_of(found: dict[str, Any]) -> Any:
    """The bubble chart as a Panel; None if nothing was trained and timed."""
    points = []
    for row in found["candidates"]:
        speed, quality = row["prediction_documents_per_second"], figure(row, "macro_f1")
        if speed is not None and quality is not None:
            points.append(
                Point(
                    row["name"], quality.value,
                    quality.value if quality.low is None else quality.low,
                    quality.value if quality.high is None else quality.high,
                    speed["median"], speed["min"], speed["max"], row["training_peak_mib"],
                    row["front"],
                )
            )  # fmt: skip
    baseline = fitted_baseline(found)
    line = (baseline["name"], baseline["value"]) if baseline else None
    return trade_off_chart(points, baseline=line, memory=WHOSE)


def write_trade_off(found: dict[str, Any], folder: Path) -> Path:
    """Write ``table.csv``, ``chart.svg``, ``chart.png`` and ``compare.html``; return the page."""
    rows = table_of(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "table.csv", text.getvalue())
    chart = chart_of(found)
    if chart is not None:
        write_text(folder / "chart.svg", str(chart.wide))
        with whole_file(folder / "chart.png") as temporary:
            temporary.write_bytes(png(chart.wide))
    write_text(folder / "compare.html", render("trade_off.html.j2", context_of(found, folder)))
    return folder / "compare.html"


def context_of(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that the page shows."""
    finished = [row for row in found["candidates"] if row["why"] is None]
    order = sorted(finished, key=lambda row: -row["macro_f1"]["value"])
    baseline = fitted_baseline(found)
    return {
        "title": f"{len(found['candidates'])} candidates for {Path(str(found['data'])).name}",
        "found": found,
        "budget": budget(**found["budget"]),
        "chart": chart_of(found),
        "rows": [
            {
                **row,
                "quality": figure(row, "macro_f1"),
                "accuracy": figure(row, "accuracy"),
                "training_peak": _whole(row["training_peak_mib"]),
                "prediction_peak": _whole(row["prediction_peak_mib"]),
                "link": _link(row, folder),
                "options": _written(row["options"]),
                "mark": _mark(row),
            }
            for row in order
        ],
        "failed": failures(found),
        "untimed": [row for row in finished if row["prediction_documents_per_second"] is None],
        "baseline": baseline
        and (baseline["name"], Figure(*(baseline[k] for k in ("value", "low", "high")))),
        "whose": WHOSE,
        "start_note": start_note(found),
        "alone": found["speed"].get("alone", False),
        "machine": _machine(found["machine"]),
        "several": len(found["seeds"]) > 1,
    }


def _mark(row: dict[str, Any]) -> str:
    return f" {START_KEPT}" if row.get("start_kept") else ""


def _link(row: dict[str, Any], folder: Path) -> str | None:
    if not row["runs"] or not (report := folder / row["runs"][0] / "report.html").is_file():
        return None
    return quote(Path(os.path.relpath(report, folder)).as_posix())


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _written(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in options.items()) or "as they are"


def _machine(machine: dict[str, Any]) -> str:
    """One sentence about where it was measured."""
    parts = [
        f"{machine['cores']} cores of {machine['machine']}" if machine.get("cores") else "",
        f"{machine['memory_gib']:g} GiB" if machine.get("memory_gib") else "",
        machine["system"],
        f"device {machine['device']}" if machine.get("device") else "",
        f"threads in a process: {machine['threads']}" if machine.get("threads") else "",
        f"torch {machine['torch']}",
        f"transformers {machine['transformers']}",
        f"longarc {machine['longarc']}",
    ]
    load = ""
    if machine.get("load") is not None and machine.get("load_after") is not None:
        load = (
            f" The system's load was {machine['load']:g} when the timing of predictions began and "
            f"{machine['load_after']:g} when it ended."
        )
    return ", ".join(part for part in parts if part) + "." + load


def print_trade_off(found: dict[str, Any], console: Console) -> None:
    """Print a row for each candidate, the front marked, and the sentence. Fits in 100 columns."""
    from rich.text import Text

    table = terminal_table(f"{budget(**found['budget'])}, {found['split']} split")
    table.add_column("Candidate", max_width=28)
    for name in ("Macro-F1", "Predicted/s", "Trained/s", "Peak MiB", "Minutes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    finished = [row for row in found["candidates"] if row["why"] is None]
    for row in sorted(finished, key=lambda row: -row["macro_f1"]["value"]):
        quality, speed = figure(row, "macro_f1"), row["prediction_documents_per_second"]
        cells = [
            shorten(row["name"], 40) + _mark(row),
            quality.written if quality else "–",
            "–" if speed is None else rate(speed["median"]),
            rate(row["training_documents_per_second"]),
            _or_dash(row["training_peak_mib"], ",.0f"),
            _or_dash(row["minutes"], ".1f"),
            "front" if row["front"] else "",
        ]
        style = "bold" if row["front"] else ""
        table.add_row(*(Text(cell, style=style) for cell in cells))
    console.print(table)
    if note := start_note(found):
        console.print(Text(note))
    for row in failures(found):
        console.print(Text(f"{row['name']} failed: {row['why']}"))
    console.print(Text(found["sentence"]))
    console.print()


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
