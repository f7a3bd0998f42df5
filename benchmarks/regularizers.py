"""What each regularizer costs and brings: MiniLM on few documents of long-tailed tasks.

    python benchmarks/regularizers.py cost [--rounds 7]
    python benchmarks/regularizers.py quality --task licence-categories [--seeds 0 1 2]
    python benchmarks/regularizers.py quality --task r52 --tables TRAIN TEST
    python benchmarks/regularizers.py rows --task r52    # of what quality measured
    python benchmarks/regularizers.py --show     # the rows so far, as the tables of docs/

``cost``: seconds of forward and backward passes of one step of 16 documents of 128 tokens, from the
batch to the gradient, interleaved over the regularizers, relative to the plain step of the same
round. With default options, both forms of the gradient penalties, and SAM uphill on a quarter.

``quality``: the training job on ``--documents`` documents, twice as many to test with, once for
each regularizer and seed, which draws the documents. There is no validation split: the last epoch
counts, or a probe that is kept would make all the same. Each training's figures are kept in
``--work`` as they come, and what is there is not trained again, so that an interrupted command goes
on, and several can share the work. ``rows`` appends a row for each regularizer: the mean and the
extremes over the seeds, and of the difference to the plain training of the same seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import longarc
from longarc.data.examples import Examples, read_examples
from longarc.data.licenses import read_licenses
from longarc.data.table_writer import table_writer
from longarc.models.loading import load_classifier
from longarc.objectives.regularizers.registry import REGULARIZERS, build_regularizers
from longarc.objectives.regularizers.step import regularized_backward
from rows import RESULTS, append_row, over_seeds, spread

PLAIN = "none"
COSTS: dict[str, list[Any]] = {
    PLAIN: [],
    **{name: [name] for name in REGULARIZERS},
    "gradient-penalty, double backward": [{"gradient-penalty": {"method": "double-backward"}}],
    "input-gradient-penalty, double backward": [
        {"input-gradient-penalty": {"method": "double-backward"}}
    ],
    "sam, fraction .25": [{"sam": {"fraction": 0.25}}],
}
FIGURES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "recall_tail": "recall, tail",
    "calibration_error": "calibration error",
}  # fmt: skip


def main() -> None:
    """Measure and append a row for each regularizer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=["cost", "quality", "rows"], default="cost")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--task", choices=["licence-categories", "r52"], default="licence-categories"
    )
    parser.add_argument("--tables", nargs=2, metavar=("TRAIN", "TEST"), help="for r52")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--regularizers", nargs="+", default=[PLAIN, *REGULARIZERS])
    parser.add_argument("--work", type=Path, default=Path("runs/regularizers"))
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--options", type=json.loads, default={}, help="{name: its options}")
    parser.add_argument("--show", action="store_true", help="print the tables and train nothing")
    chosen = parser.parse_args()
    if chosen.show:
        print(tables())
    elif chosen.what == "cost":
        cost(chosen.rounds)
    elif chosen.what == "rows":
        rows(chosen)
    elif chosen.task == "r52" and not chosen.tables:
        parser.error("--task r52 needs --tables TRAIN TEST")
    else:
        quality(chosen)


def cost(rounds: int, documents: int = 16, length: int = 128) -> None:
    """Seconds and ratios of one step, the first round to warm up."""
    torch.manual_seed(0)
    model = load_classifier("minilm", labels=tuple("abcdefgh")).train()
    batch = {
        "input_ids": torch.randint(1000, 30000, (documents, length)),
        "attention_mask": torch.ones(documents, length, dtype=torch.long),
        "labels": torch.randint(0, 8, (documents,)),
    }
    loss = longarc.CrossEntropyLoss()
    seconds: dict[str, list[float]] = {name: [] for name in COSTS}
    for turn in range(rounds + 1):
        for name, chosen in COSTS.items():
            regularizers = build_regularizers(chosen)
            start = time.perf_counter()
            if regularizers:
                regularized_backward(model, batch, loss, regularizers, special=[101, 102])
            else:
                _plain_step(model, batch, loss)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    for name in COSTS:
        ratios = [mine / plain for mine, plain in zip(seconds[name], seconds[PLAIN], strict=True)]
        append_row(
            "regularizers-cost",
            regularizer=name,
            ratio=spread(ratios),
            seconds=spread(seconds[name]),
            documents=documents,
            tokens=length,
            threads=torch.get_num_threads(),
        )


def _plain_step(model: Any, batch: dict[str, torch.Tensor], loss: Any) -> None:
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    loss(model(**inputs).logits, batch["labels"]).backward()


def quality(chosen: argparse.Namespace) -> None:
    """Train with each regularizer on each seed's documents."""
    folder = chosen.work / chosen.task
    folder.mkdir(parents=True, exist_ok=True)
    for seed in chosen.seeds:
        train, test = _documents(chosen, seed)
        with tempfile.TemporaryDirectory() as temporary:
            paths = {name: str(Path(temporary) / f"{name}.parquet") for name in ("train", "test")}
            for name, part in (("train", train), ("test", test)):
                with table_writer(Path(paths[name])) as write:
                    write({"text": part.texts, "label": part.labels or []})
            for name in chosen.regularizers:
                key = _settings(chosen, name) | {"regularizer": name, "seed": seed}
                if any(row.items() >= key.items() for row in _measured(chosen)):
                    continue
                with_options = [{name: chosen.options.get(name, {})}] if name != PLAIN else None
                start = time.perf_counter()
                run = longarc.fit(
                    paths["train"], test=paths["test"], out=Path(temporary) / name,
                    max_length=chosen.max_length, epochs=chosen.epochs, seed=seed,
                    validation_fraction=0.0, regularizers=with_options, baseline=False,
                    verbose=False,
                )  # fmt: skip
                figures = {f: run.metrics["test"]["model"][f]["value"] for f in FIGURES}
                figures["minutes"] = (time.perf_counter() - start) / 60
                line = json.dumps(key | figures)
                with (folder / "cells.jsonl").open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                print(line, flush=True)


def rows(chosen: argparse.Namespace) -> None:
    """Append a row for each regularizer that was trained with on every seed."""
    found = {
        (row["regularizer"], row["seed"]): row
        for name in {PLAIN, *chosen.regularizers}
        for row in _measured(chosen)
        if row.items() >= (_settings(chosen, name) | {"regularizer": name}).items()
    }
    for name in chosen.regularizers:
        pairs = [(found.get((name, s)), found.get((PLAIN, s))) for s in chosen.seeds]
        complete = [(run, plain) for run, plain in pairs if run and plain]
        if len(complete) < len(chosen.seeds):
            print(f"{chosen.task}: {name} was trained with on {len(complete)} of the seeds")
            continue
        append_row(
            "regularizers-quality", task=chosen.task, regularizer=name,
            **{f: over_seeds([run[f] for run, _ in complete]) for f in (*FIGURES, "minutes")},
            gain={f: over_seeds([run[f] - plain[f] for run, plain in complete])
                  for f in FIGURES},
            **_settings(chosen, name), seeds=chosen.seeds,
        )  # fmt: skip


def _settings(chosen: argparse.Namespace, name: str) -> dict[str, Any]:
    sizes = {k: getattr(chosen, k) for k in ("documents", "max_length", "epochs")}
    return sizes | {"options": chosen.options.get(name, {})}


def _measured(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    path = chosen.work / chosen.task / "cells.jsonl"
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def _documents(chosen: argparse.Namespace, seed: int) -> tuple[Examples, Examples]:
    """Documents to train on, and twice as many of the same classes to test with."""
    if chosen.task == "r52":
        train, test = (read_examples(table)[0] for table in chosen.tables)
    else:
        train = test = read_licenses("category", include_rules=False)
    random = np.random.default_rng(seed)
    order = random.permutation(len(train))
    kept, rest = order[: chosen.documents], order[chosen.documents :]
    if chosen.task == "r52":
        rest = random.permutation(len(test))
    known = {(train.labels or [])[i] for i in kept}
    tested = [i for i in rest if (test.labels or [])[i] in known][: 2 * chosen.documents]
    return train.select([int(i) for i in kept]), test.select([int(i) for i in tested])


def tables() -> str:
    """The latest rows as Markdown, a table for each task and size."""
    costs: dict[str, dict[str, Any]] = {}
    qualities: dict[str, dict[str, dict[str, Any]]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["benchmark"] == "regularizers-cost":
            costs[row["regularizer"]] = row
        elif row["benchmark"] == "regularizers-quality":
            of = (
                f"{row['task']}, {row['documents']:,} documents of {row['max_length']} tokens, "
                f"{row['epochs']} epochs, {len(row['seeds'])} draws"
            )
            options = "".join(f", {k} {v:g}" for k, v in row["options"].items())
            qualities.setdefault(of, {})[row["regularizer"] + options] = row
    lines = ["| regularizer | time of a step, plain = 1 |", "|---|---|"]
    for name, row in costs.items():
        r = row["ratio"]
        lines.append(f"| {name} | {r['median']:.2f} ({r['min']:.2f}–{r['max']:.2f}) |")
    for of, rows in qualities.items():
        lines += ["", of, "", "| regularizer | " + " | ".join(FIGURES.values()) + " | minutes |"]
        lines.append("|---" * (len(FIGURES) + 2) + "|")
        for name, row in rows.items():
            cells = [_cell(row, figure) for figure in FIGURES]
            lines.append(f"| {name} | {' | '.join(cells)} | {row['minutes']['mean']:.1f} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], figure: str) -> str:
    value = f"{row[figure]['mean']:.3f}"
    gain = row["gain"][figure]
    if row["regularizer"] == PLAIN:
        return value
    return f"{value} ({gain['mean']:+.3f}, {gain['min']:+.3f} … {gain['max']:+.3f})"


if __name__ == "__main__":
    main()
