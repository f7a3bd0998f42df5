"""``longarc explain``: the training documents behind predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longarc.attribution.explanation import MEASURES, METHODS
from longarc.cli.parser import Parser, as_typed
from longarc.data.table import refuse_missing
from longarc.data.table_writer import check_writable
from longarc.errors import DataError, OptionError
from longarc.files import check_page, check_place, check_unused
from longarc.options import check_choice, check_whole
from longarc.training.run_folder import open_run_folder

EFFECTS = "effects"
PAGES = (".html", ".htm")


def run(words: Sequence[str]) -> int:
    """Parse, explain, print or write."""
    parser = Parser(
        "explain",
        "Say which training documents made a run's predictions: a signed contribution for each, "
        "which add up to the score; or how far it would fall without each. The run must have been "
        "trained with --record-path.",
        'longarc explain runs/tickets --text "the pump leaks" --out pump.html',
    )
    parser.add_argument("run", type=str, help="run folder")
    parser.add_argument("data", type=as_typed, nargs="?", default=None, help="table of texts")
    parser.add_argument("--text", type=as_typed, default=None, help="a text, instead of a table")
    parser.add_argument(
        "--errors", type=int, default=None,
        help="instead: so many of the run's surest errors, the class it took over the true one; "
        "they go into its report",
    )  # fmt: skip
    parser.add_argument(
        "--column", type=as_typed, default=None, help="column of texts; default: as in training"
    )
    parser.add_argument(
        "--rows", type=int, default=None,
        help="explain so many rows of the table, from its first; all share one replay; default: 16",
    )  # fmt: skip
    parser.add_argument(
        "--label", type=as_typed, default=None, help="class to explain; default: the prediction"
    )
    parser.add_argument(
        "--of", type=str, default="logit", help="logit, margin over the next class, or loss"
    )
    parser.add_argument(
        "--method", type=str, default="exact",
        help="exact: a replay of the whole training; indexed: an estimate from projected gradients "
        "at a few snapshots, whose index the first use builds; effects: how far the score would fall "
        "without each document, to first order",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=10, help="documents to show on either side")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=None,
        help="of exact: part of the score that may be left unexplained; default: 0.001",
    )
    parser.add_argument(
        "--out", type=as_typed, default=None,
        help="file to write: .html, a page; .parquet, .csv, .tsv or .jsonl, every contribution",
    )  # fmt: skip
    parser.add_argument(
        "--build-index", action="store_true",
        help="build the index, or go on with it; under torchrun each process builds its share",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoints", type=int, default=None, help="of the index: snapshots; default: 5"
    )
    parser.add_argument(
        "--dimensions", type=int, default=None,
        help="of the index: numbers for each document and snapshot; default: 1024",
    )  # fmt: skip
    parser.add_argument("--overwrite-index", action="store_true", help="build the index anew")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--json", action="store_true", help="print the explanations as JSON")
    chosen = parser.parse_args(list(words))
    given = [each is not None for each in (chosen.data, chosen.text, chosen.errors)]
    asked = any(given)
    one = "name a table of texts, or give one text with --text, or ask for --errors 3"
    if sum(given) > 1:
        parser.error(f"{one}: one of these at a time")
    if not asked and not chosen.build_index:
        parser.error(one)
    if chosen.errors is not None and (chosen.label is not None or chosen.of != "logit"):
        parser.error("--errors explains margins of the class that was taken: drop --label and --of")
    if chosen.errors is not None and chosen.method == EFFECTS:
        parser.error("the report shows errors by contributions that add up: drop --method effects")
    # Before what takes seconds to load.
    folder = open_run_folder(chosen.run)
    _check(chosen)
    if chosen.errors is not None:
        check_place(folder.explanations_file, "Copy the run to where it can be written.")
    refuse_missing(chosen.data)
    out = None if chosen.out is None else _check_out(chosen.out, overwrite=chosen.overwrite)
    from longarc.api import open_run
    from longarc.cli.terminal import quiet_libraries, terminal

    quiet_libraries()
    opened = open_run(chosen.run)
    console = terminal(to_stderr=chosen.json)
    texts = _texts(opened, chosen, console)
    if _wants_index(chosen):
        index = _index(opened, chosen, console)
        if not asked:
            return _tell_index(index, chosen, console)
    if chosen.errors is None:
        found = _explain(opened, texts, chosen, console)
    else:
        texts, found = _explain_errors(opened, chosen, console)
    rows = [{"text": text, **e.to_dict(chosen.top)} for text, e in zip(texts, found, strict=True)]
    if out is not None:
        _write(out, opened, rows, found)
    if chosen.json:
        print(json.dumps(rows, ensure_ascii=False))
        return 0
    for row in rows:
        _show(row, console)
    if out is not None:
        console.print(f"written  {out}", markup=False, soft_wrap=True)
    if chosen.errors is not None:
        report = opened.path / "report.html"
        console.print(f"report   {report}", markup=False, soft_wrap=True)
    return 0


def _check(chosen: Any) -> None:
    """Complete the options that have no value yet; OptionError for what does not go together."""
    check_choice("method", chosen.method, (*METHODS, EFFECTS))
    check_choice("measure", chosen.of, MEASURES)
    check_whole("--top", chosen.top, at_least=1)
    for name in ("errors", "rows"):
        if getattr(chosen, name) is not None:
            check_whole(f"--{name}", getattr(chosen, name), at_least=1)
    if chosen.rows is not None and chosen.data is None:
        raise OptionError("--rows is for the rows of a table, and none is named. Drop it.")
    if chosen.tolerance is None:
        chosen.tolerance = 1e-3
    elif chosen.method != "exact":
        raise OptionError(f"--tolerance is for --method exact, not {chosen.method}. Drop it.")
    for name in ("checkpoints", "dimensions", "overwrite_index"):
        if getattr(chosen, name) and not _wants_index(chosen):
            word = name.replace("_", "-")
            raise OptionError(f"--{word} is for an index: add --build-index or --method indexed.")


def _wants_index(chosen: Any) -> bool:
    return chosen.build_index or chosen.method == "indexed"


def _check_out(named: str, *, overwrite: bool) -> Path:
    """The file to write; OptionError where it is there already or its ending says nothing."""
    out = Path(named).expanduser()
    if out.suffix.lower() in PAGES:
        check_page(out)
    else:
        check_writable(out, *PAGES)
    return check_unused(out, overwrite=overwrite)


def _index(opened: Any, chosen: Any, console: Any) -> Any:
    import os

    import torch

    from longarc.training.progress import Reporter
    from longarc.training.trainer import is_main_process

    if "LOCAL_RANK" in os.environ and torch.accelerator.is_available():
        mine = int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count()
        torch.accelerator.set_device_index(mine)
    reporter = Reporter(console if is_main_process() else None)
    return opened.build_index(
        checkpoints=chosen.checkpoints,
        dimensions=chosen.dimensions,
        overwrite=chosen.overwrite_index,
        say=reporter.say,
        progress=lambda rows: reporter.task("indexing the documents", rows),
    )


def _tell_index(index: Any, chosen: Any, console: Any) -> int:
    from longarc.training.trainer import is_main_process

    if not is_main_process():
        return 0
    told = {
        "index": str(index.folder),
        "rows": index.rows,
        "checkpoints": [checkpoint.step for checkpoint in index.checkpoints],
        "parts": len(index.parts),
        "missing": len(index.missing),
    }
    if chosen.json:
        print(json.dumps(told, ensure_ascii=False))
        return 0
    elsewhere = f"; the other processes still build {told['missing']} of {told['parts']} parts"
    console.print(
        f"index  {told['index']}: {told['rows']} rows of {len(told['checkpoints'])} checkpoints"
        + (elsewhere if told["missing"] else ""),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _explain(opened: Any, texts: list[str], chosen: Any, console: Any) -> list[Any]:
    options = {"label": chosen.label, "of": chosen.of}
    if chosen.method == EFFECTS:
        weights = sum(p.numel() for p in opened.predictor.model.parameters())
        memory = 20 * weights * len(texts) / 1e9  # five times the weights for each text
        if memory > 1:
            console.print(f"memory   about {memory:.1f} GB; less with fewer --rows", markup=False)
    with _replay(opened, chosen, console) as advance:
        if chosen.method == EFFECTS:
            return opened.effects(texts, advance=advance, **options)
        options |= {"method": chosen.method, "tolerance": chosen.tolerance}
        return opened.explain(texts, advance=advance, **options)


def _replay(opened: Any, chosen: Any, console: Any) -> Any:
    """Progress over the steps of the path; none where an index answers."""
    from contextlib import nullcontext

    from longarc.training.progress import Reporter
    from longarc.training.recording.recorded_path import RecordedPath

    if chosen.method == "indexed":
        return nullcontext()
    recorded = opened.folder.recorded
    steps = RecordedPath(recorded).kept if recorded.is_dir() else None
    return Reporter(console).task("replaying the training", steps)


def _explain_errors(opened: Any, chosen: Any, console: Any) -> tuple[list[str], list[Any]]:
    from longarc.report.saved import read_explained

    options = {"top": chosen.top, "method": chosen.method, "tolerance": chosen.tolerance}
    with _replay(opened, chosen, console) as advance:
        found = opened.explain_errors(chosen.errors, advance=advance, **options)
    entries = read_explained(opened.folder.explanations_file)
    return [entry["text"] for entry in entries], found


def _texts(opened: Any, chosen: Any, console: Any) -> list[str]:
    if chosen.data is None:
        from longarc.attribution.explained_run import asked_texts

        return [] if chosen.text is None else asked_texts(chosen.text)
    from longarc.data.cells import as_texts
    from longarc.data.columns import choose_columns
    from longarc.data.table import open_table

    most = 16 if chosen.rows is None else chosen.rows
    table = open_table(chosen.data)
    named = chosen.column or opened.config.text
    column = choose_columns(table, named, need_label=False, text_option="--column").text
    first = next(table.batches(most, [column]), {column: []})
    rows = as_texts(first[column], f"{table.name}, column {column!r}")
    texts = [text for text in rows if text.strip()]
    if not texts:
        raise DataError(f"{chosen.data} has no text to explain; expected one or more.")
    if empty := len(rows) - len(texts):
        many = "are" if empty > 1 else "is"
        told = f"{empty} of the {len(rows)} texts {many} empty and left out"
        console.print(told, markup=False)
    return texts


def _write(out: Any, opened: Any, rows: list[dict[str, Any]], found: list[Any]) -> None:
    if out.suffix.lower() in PAGES:
        from longarc.report.explanations import write_explanations

        write_explanations(out, rows, title=f"What made {opened.path.name} say so")
        return
    from longarc.data.table_writer import table_writer

    with table_writer(out) as write:
        for number, (row, e) in enumerate(zip(rows, found, strict=True)):
            columns = e.to_pandas().to_dict(orient="list")
            n = len(columns["document"])
            write(
                {
                    "explained": [number] * n,
                    "explained_text": [row["text"]] * n,
                    "score": [e.name] * n,
                    **columns,
                    "text": list(e.texts),
                }
            )


def _show(row: dict[str, Any], console: Any) -> None:
    from longarc.data.terminal import printable

    def say(line: str) -> None:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    say(f"\n{row['name']}: {_cut(row['text'], 70)}")
    if row["method"] == EFFECTS:
        say("  how far it would fall without a document, to first order; effects do not add up")
        if row["afterwards"]:
            say("  of the score as the training left it, before the second stage or the hybrid")
    else:
        _show_sum(row, say)
    if not row["supporting"] and not row["opposing"]:
        moved = "the encoder" if row["afterwards"] else "it"
        say(
            f"  no document moved {moved}: the model that was kept is the one before the first step"
        )
    for title, side in (("raised it", "supporting"), ("lowered it", "opposing")):
        if row[side]:
            say(f"  {title}")
        for each in row[side]:
            error = "" if each["error"] is None else f" ± {each['error']:.4f}"
            say(f"  {each['value']:+9.4f}{error}  {each['label']}: {_cut(each['text'], 60)}")


def _show_sum(row: dict[str, Any], say: Any) -> None:
    say(
        f"  {row['initial']:.3f} before training, {row['contributions']:+.3f} by the training "
        f"documents, {row['decay']:+.2g} by weight decay"
        + (f", {row['afterwards']:+.3f} after the training" if row["afterwards"] else "")
        + f", {row['residual']:+.1e} residual: {row['final']:.3f}"
    )
    if row["afterwards"]:
        say(
            "  after the training: a second stage, a temperature or a hybrid's linear classifier, "
            "which is not divided among documents"
        )
    if row["method"] == "indexed":
        say(
            f"  estimated at few checkpoints; sampling error of the sum {row['sampling_error']:.1e}"
        )


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
