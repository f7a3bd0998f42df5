"""``longarc diagnose``: where the gradient of a run or a model goes, and what to change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from longarc.cli.parser import Parser, as_typed
from longarc.data.table import refuse_missing
from longarc.files import check_page, check_place, check_unused
from longarc.options import check_whole
from longarc.training.run_folder import is_run, open_run_folder


def run(words: Sequence[str]) -> int:
    """Parse, follow the gradient back, print or write."""
    parser = Parser(
        "diagnose",
        "Say whether a gradient vanishes or explodes, over the steps of recurrent layers, down the "
        "layers and along the text: at what distance it falls below 1 %, what carries it, and what "
        "to change. Of a run the page goes into its folder.",
        "longarc diagnose runs/tickets tickets.csv",
    )
    parser.add_argument("model", type=str, help="run folder, or a model as train --model takes it")
    parser.add_argument("data", type=str, help="table of texts, with labels or without")
    parser.add_argument(
        "--text", type=as_typed, default=None, help="column of texts; as in training, or guessed"
    )
    parser.add_argument(
        "--label", type=as_typed, default=None,
        help="column of labels, whose loss is followed back; as in training, or none",
    )  # fmt: skip
    parser.add_argument("--documents", type=int, default=16, help="documents, drawn at random")
    parser.add_argument(
        "--max-length", type=int | None, default=None,
        help="tokens that are read of a document; as in training, or up to 512",
    )  # fmt: skip
    parser.add_argument(
        "--exact", action="store_true",
        help="also split recurrent weights' gradient by distance, on 4 documents: seconds each",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draw, and of a new head")
    parser.add_argument(
        "--out", type=as_typed, default=None,
        help="page to write (.html); default: RUN/diagnosis.html for a run, none for a model",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")
    parser.add_argument("--json", action="store_true", help="print the diagnosis as JSON")
    chosen = parser.parse_args(list(words))
    # Before what takes seconds to load.
    refuse_missing(chosen.data)
    check_whole("--documents", chosen.documents, at_least=1)
    if chosen.max_length is not None:
        check_whole("--max-length", chosen.max_length, at_least=2)
    of_run = is_run(chosen.model)
    if of_run:
        open_run_folder(chosen.model)
    out = None if chosen.out is None else check_page(chosen.out)
    if out is not None:
        check_unused(out, overwrite=chosen.overwrite)
    elif of_run:
        check_place(Path(chosen.model).expanduser() / "diagnosis.html", "Name a page with --out.")
    from longarc.cli.terminal import quiet_libraries, terminal
    from longarc.report.diagnosis import print_diagnosis, save_diagnosis
    from longarc.training.diagnosis import diagnose_documents
    from longarc.training.progress import Reporter

    quiet_libraries()
    console = terminal(to_stderr=chosen.json)
    found = diagnose_documents(
        chosen.model,
        chosen.data,
        text=chosen.text,
        label=chosen.label,
        documents=chosen.documents,
        max_length=chosen.max_length,
        exact=chosen.exact,
        seed=chosen.seed,
        reporter=Reporter(console),
    ).to_dict()
    page = save_diagnosis(found, run=chosen.model if of_run else None, out=out)
    if chosen.json:
        print(json.dumps(found | {"path": None if page is None else str(page)}, ensure_ascii=False))
        return 0
    print_diagnosis(found, console)
    if page is not None:
        console.print(f"\npage     {page}", markup=False, soft_wrap=True)
    return 0
