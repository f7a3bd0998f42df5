"""The table of figures that commands print when they have evaluated a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longarc.report import pretraining
from longarc.report.measures import (
    ACCURACY,
    BALANCED,
    CALIBRATION,
    MACRO_F1,
    MICRO_F1,
    PRECISION,
    TAIL,
    Figure,
    best,
    figure,
    system_name,
    verdict,
)
from longarc.report.saved import SPLITS, systems
from longarc.report.terminal_table import terminal_table

if TYPE_CHECKING:
    from rich.console import Console


def print_metrics(metrics: dict[str, Any], console: Console) -> None:
    """Print a table for each split of ``metrics`` (the content of ``metrics.json``).

    A row for the model and for each baseline; below each figure is its 95 % interval, and the best
    of a column is bold. Under the first split's table (test, if there is one) stands the sentence
    that compares the model with the best baseline. Fits in 80 columns.

    >>> from rich.console import Console
    >>> figure = {"value": 0.875, "low": 0.85, "high": 0.9}
    >>> print_metrics({"test": {"model": {"n": 702, "accuracy": figure}}}, Console(width=80))
    test, 702 documents
    ...Accuracy...
    Model...0.875...
    ....850–.900...
    """
    from rich.text import Text

    evaluated = [split for split in SPLITS if split in metrics]
    for split in evaluated:
        found = systems(metrics[split])
        multi_label = "mean_average_precision" in found["model"]
        measures = (
            (MICRO_F1, MACRO_F1, PRECISION, TAIL, CALIBRATION)
            if multi_label
            else (ACCURACY, BALANCED, MACRO_F1, TAIL, CALIBRATION)
        )
        n = found["model"].get("n")
        table = terminal_table(f"{split}, {n:,} documents" if n is not None else split)
        table.add_column("", min_width=12)
        columns = []
        for measure in measures:
            cells = {name: figure(m, measure.key) for name, m in found.items()}
            if any(cells.values()):
                header = measure.name.replace(" ", "\n")  # a column as narrow as its figures
                table.add_column(header, justify="right", no_wrap=True)
                columns.append((cells, best(cells, measure)))
        for name in found:
            table.add_row(
                Text(system_name(name)),
                *(_cell(cells[name], name in winners) for cells, winners in columns),
            )
        console.print(table)
        sentence = verdict(metrics[split]) if split == evaluated[0] else None
        if sentence:
            console.print(Text(sentence), soft_wrap=False)
            console.print()


def print_pretraining(metrics: dict[str, Any], console: Console) -> None:
    """Print the figures of an encoder before and after its pretraining, a row a measure.

    >>> from rich.console import Console
    >>> part = {"n": 40, "uniformity": -1.2}
    >>> print_pretraining({"start": part, "end": part}, Console(width=60))
    held out, 40 documents
    ...before...after...
    Uniformity...-1.200...-1.200...
    """
    from rich.text import Text

    table = terminal_table(f"held out, {metrics['end']['n']:,} documents")
    table.add_column("", min_width=12)
    for name in ("before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in pretraining.rows(metrics):
        cells = []
        for part in ("start", "end"):
            cell = Text(row[part]["text"])
            if row[part]["interval"]:
                cell.append(f"\n{row[part]['interval']}", style="dim")
            cells.append(cell)
        table.add_row(Text(row["measure"].name), *cells)
    console.print(table)
    if sentence := pretraining.verdict(metrics):
        console.print(Text(sentence), soft_wrap=False)
        console.print()


def _cell(found: Figure | None, is_best: bool) -> Any:
    from rich.text import Text

    if found is None:
        return Text("–", style="dim")
    cell = Text(found.text, style="bold" if is_best else "")
    if found.interval:
        narrow = found.interval.replace("0.", ".").replace("1.000", "1")
        cell.append(f"\n{narrow}", style="not bold dim")
    return cell
