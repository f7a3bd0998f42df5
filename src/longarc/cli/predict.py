"""``longarc predict``: labels and probabilities for every row of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence

from longarc.cli.parser import Parser, as_typed
from longarc.data.table import refuse_missing
from longarc.data.table_writer import check_writable
from longarc.files import check_unused
from longarc.training.run_folder import open_run_folder


def run(words: Sequence[str]) -> int:
    """Parse, predict in a stream, say where the file lies."""
    parser = Parser(
        "predict",
        "Predict every row of a table, in order and in bounded memory. The output has the table's "
        "columns and prediction, confidence and p(NAME) for each class.",
        "longarc predict runs/tickets inbox.csv --out predicted.csv",
    )
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("data", type=str, help="table of texts")
    parser.add_argument(
        "--out", type=str, required=True, help="file to write: .csv, .tsv, .jsonl or .parquet"
    )
    parser.add_argument(
        "--text", type=as_typed, default=None, help="column of texts; default: as in training"
    )
    parser.add_argument(
        "--no-probabilities", action="store_true", help="leave out the p(NAME) columns"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print rows and path as JSON")
    chosen = parser.parse_args(list(words))
    # Before what takes seconds to load.
    open_run_folder(chosen.run)
    refuse_missing(chosen.data)
    check_unused(check_writable(chosen.out), overwrite=chosen.overwrite)
    from longarc.api import open_run
    from longarc.cli.terminal import quiet_libraries, terminal
    from longarc.training.progress import Reporter

    quiet_libraries()
    console = terminal(to_stderr=chosen.json)
    opened = open_run(chosen.run)
    reporter = Reporter(console)
    with reporter.task("predicting") as advance:
        path = opened.predict_table(
            chosen.data,
            chosen.out,
            text=chosen.text,
            with_probabilities=not chosen.no_probabilities,
            advance=advance,
            say=reporter.say,
        )
    rows = int(advance.done)
    if chosen.json:
        print(json.dumps({"rows": rows, "path": str(path)}, ensure_ascii=False))
    else:
        console.print(f"{rows:,} {'row' if rows == 1 else 'rows'} predicted: {path}", markup=False)
    return 0
