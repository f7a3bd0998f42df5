"""``longarc evaluate``: figures of a run's model on another labelled table."""

from __future__ import annotations

import json
from collections.abc import Sequence

from longarc.cli.parser import Parser, as_typed
from longarc.data.table import refuse_missing
from longarc.training.run_folder import open_run_folder


def run(words: Sequence[str]) -> int:
    """Parse, predict, print the figures."""
    parser = Parser(
        "evaluate",
        "Evaluate a run's model on a labelled table it has not seen.",
        "longarc evaluate runs/tickets newer-tickets.csv",
    )
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("data", type=str, help="table of texts and labels")
    parser.add_argument(
        "--text", type=as_typed, default=None, help="column of texts; default: as in training"
    )
    parser.add_argument(
        "--label", type=as_typed, default=None, help="column of labels; default: as in training"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(list(words))
    open_run_folder(chosen.run)  # before what takes seconds to load
    refuse_missing(chosen.data)
    from longarc.api import open_run
    from longarc.cli.terminal import quiet_libraries, terminal
    from longarc.report.terminal import print_metrics

    quiet_libraries()
    console = terminal(to_stderr=chosen.json)
    figures = open_run(chosen.run).evaluate(chosen.data, text=chosen.text, label=chosen.label)
    if chosen.json:
        print(json.dumps(figures, ensure_ascii=False))
        return 0
    print_metrics({"test": {"model": figures, "baselines": {}}}, console)
    absent = sum(not row["support"] for row in figures["per_class"])
    if absent:
        console.print(
            f"{absent} of {len(figures['per_class'])} classes do not occur in it: balanced accuracy "
            "and macro-F1 are means over the others",
            markup=False,
        )
    for label, count in figures["unseen_labels"].items():
        rows = "1 row" if count == 1 else f"{count:,} rows"
        console.print(
            f"label '{label}' ({rows}) was never seen in training; what has it counts as an error",
            markup=False,
        )
    return 0
