"""``longarc cite``: BibTeX for exactly what a run used, or the candidates of a comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence

from longarc.cli.parser import Parser, as_typed


def run(words: Sequence[str]) -> int:
    """Parse, read the run, print BibTeX."""
    parser = Parser(
        "cite",
        "Print BibTeX for exactly what a run used: its loss, encoder, attention, recipe and so on, "
        "and longarc itself. What has no paper is named in a comment. Of a comparison: for what all of "
        "its candidates used.",
        "longarc cite runs/tickets",
    )
    parser.add_argument(
        "run",
        type=as_typed,
        help="run folder of longarc train or pretrain, or the folder of longarc compare",
    )
    parser.add_argument("--json", action="store_true", help="print parts, keys and BibTeX as JSON")
    chosen = parser.parse_args(list(words))
    from pathlib import Path

    from longarc.data.terminal import printable
    from longarc.report.citations import bibtex, cited, config_of

    folder = Path(chosen.run).expanduser()
    if (folder / "compare.yaml").is_file():
        from longarc.comparison.compare import open_comparison

        comparison = open_comparison(folder)
        found, text = comparison.cited, comparison.citations
    else:
        found = cited(folder)
        text = bibtex(found, config_of(folder))
    if chosen.json:
        parts = [
            {"part": one.part, "name": one.name, "keys": list(one.keys), "note": one.note}
            for one in found
        ]
        print(json.dumps({"parts": parts, "bibtex": text}, ensure_ascii=False))
        return 0
    for one in found:
        print(printable(f"% {one.part}: {one.name}: {one.note or ', '.join(one.keys)}"))
    print(f"\n{text}", end="")
    return 0
