"""A diagnosis of a model's gradient as a page, and as a table on the terminal.

It takes plain values (``diagnosis.json``) and knows nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longarc.files import check_page, write_json, write_text
from longarc.report import gradient_charts as charts
from longarc.report.drawing import shorten
from longarc.report.html import write_report
from longarc.report.page import render
from longarc.report.quantities import thousands
from longarc.report.saved import is_number
from longarc.report.terminal_table import terminal_table

if TYPE_CHECKING:
    from rich.console import Console


def write_diagnosis(out: str | Path, found: Mapping[str, Any]) -> Path:
    """Write one self-contained HTML page of the content of a ``diagnosis.json``.

    Raises OptionError for an ``out`` that is no HTML file.
    """
    target = check_page(out)
    page = render("diagnosis.html.j2", diagnosis_context(found))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)
    return target


def save_diagnosis(
    found: Mapping[str, Any], *, run: str | Path | None = None, out: Path | None = None
) -> Path | None:
    """Write the page and return its path; None where there is nowhere to write it.

    Of a ``run`` it is RUN/diagnosis.html unless ``out`` says else. Then RUN/diagnosis.json has the
    figures, and a report that is there is written again, so that it leads to the page.
    """
    if out is not None:
        return write_diagnosis(out, found)
    if run is None:
        return None
    folder = Path(run).expanduser()
    write_json(folder / "diagnosis.json", dict(found))
    page = write_diagnosis(folder / "diagnosis.html", found)
    if (folder / "report.html").is_file():
        write_report(folder)
    return page


def diagnosis_context(found: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the page shows."""
    recurrent, sublayers = found["recurrent"], found["sublayers"]
    exact = any(layer.get("parameters") for layer in recurrent)
    curves = [charts.by_distance(recurrent, "norms", "Gradient by distance, 1 where it enters")]
    if exact:
        title = "Parts of the recurrent weights’ gradient, by the steps they crossed"
        curves.append(charts.by_distance(recurrent, "parameters", title))
    return {
        "title": Path(str(found["model"])).name or str(found["model"]),
        "facts": [
            ("Model", shorten(str(found["model"]), 200)),
            ("Data", shorten(str(found["data"]), 200)),
            ("Followed back", found["followed"]),
            ("Documents", f"{thousands(found['batches'])}, up to {found['max_length']} tokens"),
        ],
        "verdict": found["verdict"],
        "findings": found["findings"],
        "curves": [curve for curve in curves if curve is not None],
        "terms": charts.by_term(recurrent),
        "recurrent": [_row(layer) for layer in recurrent],
        "left_out": max(0, len(recurrent) - charts.LAYERS),
        "exact": exact,
        "depth": charts.by_depth(sublayers),
        "sublayers": sublayers,
        "splits": any(s["through"] is not None for s in sublayers),
        "inputs": charts.along_text(found["inputs"]) if found["inputs"] else [],
    }


def _row(layer: Mapping[str, Any]) -> dict[str, Any]:
    low, high = layer["growth_range"]
    growth = layer["growth"]
    return {
        "name": layer["name"],
        "cell": layer["cell"],
        "length": f"{layer['length']:.0f}",
        "reach": f"{layer['reach']:.0f}",
        "growth": f"{growth:+.3f}" if is_number(growth) else "–",
        "range": f"{low:+.3f} – {high:+.3f}" if is_number(low) and is_number(high) else "",
        "carry": f"{layer['carry']:.3f}" if is_number(layer["carry"]) else "–",
        "parameter_reach": f"{layer['parameter_reach']:.0f}"
        if is_number(layer.get("parameter_reach"))
        else "–",
        "terms": [
            {
                "name": name,
                "share": f"{round(100 * share)} %" if is_number(share) else "–",
                "norm": f"{norm:.3f}" if is_number(norm := layer["term_norms"].get(name)) else "–",
            }
            for name, share in layer["terms"].items()
        ],
    }


def print_diagnosis(found: Mapping[str, Any], console: Console) -> None:
    """Print the verdict, a table of the parts, and what would change them. Fits in 80 columns.

    >>> from rich.console import Console
    >>> print_diagnosis({"verdict": "It is even.", "recurrent": [], "sublayers": [], "findings": [
    ...     {"part": "depth", "verdict": "steady", "said": "It is even.", "advice": []}]},
    ...     Console(width=80))
    It is even.
    """
    from rich.text import Text

    console.print(Text(found["verdict"], style="bold"))
    for table in (_recurrent_table(found["recurrent"]), _depth_table(found["sublayers"])):
        if table is not None:
            console.print()
            console.print(table)
    for finding in found["findings"]:
        if finding["said"] != found["verdict"]:
            console.print()
            console.print(Text(finding["said"]))
        for advice in finding["advice"]:
            console.print(Text(f"→ {advice}"))


def _table(title: str, columns: list[str]) -> Any:
    table = terminal_table(title)
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _recurrent_table(layers: list[Mapping[str, Any]]) -> Any:
    from rich.text import Text

    if not layers:
        return None
    columns = ["recurrent layer", "steps", "99 %\nwithin", "growth\na step", "kept", "carried by"]
    table = _table("Back over the steps", columns)
    for layer in layers:
        row = _row(layer)
        carried = layer["carried_by"]
        share = f"{carried}, {100 * layer['terms'][carried]:.0f} %"
        cells = [row["length"], row["reach"], row["growth"], row["carry"], share]
        table.add_row(Text(shorten(f"{row['name']} ({row['cell']})", 44)), *cells)
    return table


def _depth_table(sublayers: list[Mapping[str, Any]]) -> Any:
    if len(sublayers) < 2:
        return None
    last = next(s["gradient"] for s in reversed(sublayers) if s["part"] != "feed-forward")
    columns = ["layer", "gradient,\nlast = 1", "through\nbranch", "past it", "of weights", "change"]
    table = _table("Down the layers", columns)
    for s in sublayers:
        known = is_number(s["through"])
        relative = [f"{s[key] / last:.3g}" if last and known else "–" for key in _PATHS]
        whole = f"{s['gradient'] / last:.3g}" if last else "–"
        cells = [whole, *relative, f"{s['parameters']:.2e}", f"{s['change']:.2f}"]
        table.add_row(f"{s['layer']} {s['part']}", *cells)
    return table


_PATHS = ("through", "residual")
