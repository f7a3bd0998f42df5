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
    parser.add_argument("--json", action="store_true", help="print the path as JSON")
    chosen = parser.parse_args(list(words))
    from longarc.options import check_page
    from longarc.report.html import write_report

    name = chosen.out or (None if len(chosen.runs) == 1 else "comparison.html")
    out = check_page(name) if name else None
    path = write_report([Path(run).expanduser() for run in chosen.runs], out)
    print(json.dumps({"path": str(path)}) if chosen.json else path)
    return 0
