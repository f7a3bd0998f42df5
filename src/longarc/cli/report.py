"""``longarc report``: one offline HTML page for a run, or for several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from longarc.cli.parser import Parser, as_typed


def run(words: Sequence[str]) -> int:
    """Parse, write, say where the page lies."""
    parser = Parser(
        "report",
        "Write one self-contained HTML page from saved runs.",
        "longarc report runs/plain runs/adjusted --out comparison.html",
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folder, or several to compare")
    parser.add_argument(
        "--out",
        type=as_typed,
        default=None,
        help="file to write; default: RUN/report.html for one run, comparison.html for several",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an existing page; a run's own report.html always is",
    )
    parser.add_argument("--json", action="store_true", help="print the path as JSON")
    chosen = parser.parse_args(list(words))
    from longarc.files import check_page, check_unused
    from longarc.report.html import write_report

    runs = [Path(run).expanduser() for run in chosen.runs]
    own = runs[0] / "report.html" if len(runs) == 1 else None
    out = check_page(chosen.out or own or "comparison.html")
    if own is None or out.resolve() != own.resolve():
        check_unused(out, overwrite=chosen.overwrite)
    path = write_report(runs, out)
    print(json.dumps({"path": str(path)}) if chosen.json else path)
    return 0
