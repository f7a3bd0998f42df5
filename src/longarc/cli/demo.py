"""``longarc demo``: the main job on packaged real data and a packaged model, offline."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longarc.cli.parser import Parser, shown_command
from longarc.training.config import TrainConfig

# A licence's category shows in its wording more than in its topic, which is what the frozen encoder
# knows: here a new head learns more than one that starts from the probe (docs/training.md), and the
# linear baseline's margins add what is worded the same.
FULL: dict[str, Any] = {
    "limit": 3200,
    "validation_fraction": 0.12,
    "test_fraction": 0.31,  # two systems as near as these are hard to tell apart
    "max_length": 128,
    "epochs": 3,
    "head_start": "scratch",
    "learning_rate": 3e-4,
    "hybrid": 8.0,
}
# Replaying a training takes several times as long as the training, so a small one is recorded.
RECORDED: dict[str, Any] = {
    "limit": 230,
    "validation_fraction": 0.15,
    "test_fraction": 0.15,
    "max_length": 64,
    "epochs": 2,
    "head_start": "scratch",
    "learning_rate": 5e-4,
    "head_learning_rate": 3e-3,
    "layer_decay": 1.0,
    "hybrid": 0.0,
    "baseline": False,
    "patience": 0,
    "monitors": False,
    "record_path": True,
    "path_budget": 1.5,
}
ERRORS = 3
QUICK: dict[str, Any] = {
    "limit": 1300,
    "validation_fraction": 0.12,
    "test_fraction": 0.31,
    "max_length": 64,
    "epochs": 1,
    "hybrid": 8.0,
}


def run(words: Sequence[str]) -> int:
    """Write the table, train on it, print the figures and what to try next."""
    parser = Parser(
        "demo",
        "Which category does a licence text belong to? Fine-tunes MiniLM on licence texts with "
        "logit adjustment for the long tail, adds the linear baseline's margins, and explains three "
        "errors of a small training by the documents that made them. Nothing is downloaded.",
        "longarc demo --quick",
    )
    parser.add_argument("--out", type=str, default="runs/demo", help="run folder to write")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer and shorter texts, and nothing explained: some two minutes on 2 cores",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier demo and its table"
    )
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    chosen = parser.parse_args(list(words))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from longarc.api import run_training
    from longarc.cli.terminal import quiet_libraries, terminal
    from longarc.data.licenses import read_licenses
    from longarc.report.terminal import print_metrics
    from longarc.training.job import refuse_existing

    quiet_libraries()
    console = terminal(to_stderr=chosen.json)
    table = Path(chosen.out).parent / "licences.parquet"
    config = TrainConfig(
        data=str(table),
        out=chosen.out,
        text="text",
        label="category",
        model="minilm",
        loss="logit-adjusted",
        overwrite=chosen.overwrite,
        **(QUICK if chosen.quick else FULL),
    )
    refuse_existing(config)
    if not chosen.quick:
        refuse_existing(dataclasses.replace(config, out=recorded_out(config.out)))
    console.print("reading licence texts from licensedcode-data …")
    examples = read_licenses("category")
    columns = {"text": examples.texts, "category": examples.labels or []}
    write_demo_table(table, columns, overwrite=chosen.overwrite)
    finished = run_training(config, console=console)
    recorded = None if chosen.quick else _record_and_explain(config, console)
    if chosen.json:
        print(json.dumps(finished.metrics, ensure_ascii=False))
        return 0
    print_metrics(finished.metrics, console)
    out = finished.path
    explained = (
        []
        if recorded is None
        else [
            f"A small training with its path recorded, and {ERRORS} of its errors explained by the "
            f"documents that made them: {recorded.path / 'report.html'}."
        ]
    )
    console.print(
        "\n".join(
            [
                "",
                f"The report: {out / 'report.html'}. The table: {table} ({len(examples):,} texts).",
                *explained,
                "Try next:",
                "  " + shown_command("longarc", "check", table),
                "  " + shown_command("longarc", "predict", out, table, "--out", "predicted.csv"),
                "  " + shown_command("longarc", "train", table, "--freeze", "--out", "runs/probe"),
                "  " + shown_command("longarc", "report", out, "runs/probe", "--out", "both.html"),
                "  longarc train YOUR.csv --text COLUMN --label COLUMN --out runs/yours",
            ]
        ),
        markup=False,
        soft_wrap=True,
    )
    return 0


def _record_and_explain(config: TrainConfig, console: Any) -> Any:
    """A small training on the same table that keeps its path, and its surest errors explained."""
    from longarc.api import run_training
    from longarc.training.progress import Reporter
    from longarc.training.recording.recorded_path import RecordedPath

    console.print("\nA small training whose path is kept, to explain its errors …")
    small = dataclasses.replace(config, out=recorded_out(config.out), **RECORDED)
    run = run_training(small, console=console)
    steps = RecordedPath(run.folder.recorded).kept
    with Reporter(console).task("replaying the training", steps) as advance:
        run.explain_errors(ERRORS, advance=advance)
    return run


def write_demo_table(path: Path, columns: dict[str, list[Any]], *, overwrite: bool) -> None:
    """Write the table that demos in a folder share; OptionError where another stands there."""
    from longarc.data.table import open_table
    from longarc.data.table_writer import table_writer
    from longarc.errors import DataError, OptionError

    if path.exists() and not overwrite:
        try:
            found = next(open_table(path).batches(len(columns["text"]) + 1), None)
        except DataError:
            found = None
        if found == columns:
            return
        raise OptionError(
            f"{path} exists and is not the demo's table, which goes there. Name an --out in another "
            "folder, or replace the table with --overwrite."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with table_writer(path) as write:
        write(columns)


def recorded_out(out: str) -> str:
    """Where the small run is written, beside the demo's own."""
    return f"{out.rstrip('/')}-recorded"
