"""``longarc study``: run a published claim, draw it, compare it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longarc.cli.parser import Parser, as_typed
from longarc.studies.registry import QUICKLY, STUDIES, run_study


def run(words: Sequence[str]) -> int:
    """Parse, run, print what was found; 0 whether or not the claims hold."""
    parser = Parser(
        "study",
        "Run a study: a published claim is computed, drawn, and compared with what was claimed. "
        "A claim that does not hold is a finding, not an error: the exit status is 0.",
        "longarc study imbalance",
    )
    parser.add_argument("name", type=as_typed, help="name of a study; 'list' lists them")
    parser.add_argument(
        "--out", type=as_typed, default=None, help="folder to write; default: studies/NAME"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier study")
    parser.add_argument(
        "--quick", action="store_true", help="fewer data and sizes, in at most a minute"
    )
    parser.add_argument(
        "--tables", type=as_typed, nargs=2, default=None,
        help="two tables of texts and labels, to train on and to test with (realformer, rnn)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    chosen = parser.parse_args(list(words))
    from longarc.cli.terminal import terminal
    from longarc.training.progress import Reporter

    console = terminal(to_stderr=chosen.json)
    if chosen.name == "list":
        listed = _listed()
        if chosen.json:
            print(json.dumps(listed, ensure_ascii=False))
            return 0
        for name, said in listed.items():
            for line in _lines(name, said):
                console.print(line, markup=False, soft_wrap=True)
        return 0
    out = chosen.out or str(Path("studies", chosen.name))
    result = run_study(
        chosen.name,
        out,
        overwrite=chosen.overwrite,
        quick=chosen.quick,
        tables=None if chosen.tables is None else tuple(chosen.tables),
        reporter=Reporter(console),
    )
    page = str(Path(out).expanduser() / "study.html")
    if chosen.json:
        print(json.dumps(result.to_dict() | {"path": page}, ensure_ascii=False))
        return 0
    from longarc.studies.terminal import print_study

    print_study(result, console)
    if chosen.quick:
        console.print(QUICKLY, markup=False, soft_wrap=True)
    console.print(f"page     {page}", markup=False, soft_wrap=True)
    return 0


def _listed() -> dict[str, dict[str, Any]]:
    """Each study with its claim, its source and what its last full run found."""
    from longarc.studies.full_runs import full_runs

    kept = full_runs()
    listed: dict[str, dict[str, Any]] = {}
    for name, info in STUDIES.items():
        one = {"summary": info.summary, "claim": info.claim, "source": info.source}
        full = kept.get(name)
        found = {"verdict": None}
        if full is not None:
            found = {
                "verdict": full.verdict,
                "holding": full.holding,
                "claims": full.claims,
                "conclusion": list(full.conclusion),
                "run": dict(full.run),
            }
        listed[name] = one | {"seconds": info.seconds} | found
    return listed


def _lines(name: str, said: dict[str, Any]) -> list[str]:
    seconds = said["seconds"]
    lasts = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds} s"
    verdict = "no full run kept"
    if said["verdict"]:
        verdict = f"{said['verdict']}: {said['holding']} of {said['claims']} claims hold"
    return [
        f"{name}  {verdict}",
        f"  claim   {said['claim']}",
        f"  source  {said['source']}",
        f"  shows   {said['summary']} (about {lasts})",
    ]
