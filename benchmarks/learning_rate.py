"""Whether ``longarc lr`` finds a learning rate that a grid would have found, and at what cost.

    python benchmarks/learning_rate.py --task licence-categories
    python benchmarks/learning_rate.py --task licence-keys --documents 4000
    python benchmarks/learning_rate.py --task r52 --tables TRAIN TEST
    python benchmarks/learning_rate.py --show     # the rows so far, as the table of docs/

On each task: nine whole trainings with learning rates from 1e-5 to 1e-2, the search, a training
with the rate it recommends, and one with the rate that torch-lr-finder suggests (its range test of
100 steps to a rate of 10, the steepest descent of the loss), if that package is installed. Figures
are macro-F1 on the test documents; all trainings share seed, split and options. The search's cost
is a share of the grid's, in steps, a forward pass counting a third, and in seconds.

Everything is kept in ``--work`` and printed as it is measured, so the same command goes on where an
interrupted one was. A row a seed is appended at the end. It uses the accelerator if there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import longarc
from longarc.data.examples import Examples, read_examples
from longarc.data.licenses import read_licenses
from longarc.data.table_writer import table_writer
from longarc.models.loading import load_classifier, load_tokenizer
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.config import TrainConfig
from longarc.training.learning_rate.job import find_learning_rate
from longarc.training.prediction import chosen_device
from rows import RESULTS, append_row

TASKS = ("licence-categories", "licence-keys", "r52")
LOWEST, HIGHEST = 1e-5, 1e-2
FINDER = {"start": 1e-7, "end": 10.0, "steps": 100, "skip_start": 10, "skip_end": 5}


def main() -> None:
    """Measure what is not measured yet, and append a row a seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=TASKS, default="licence-categories")
    parser.add_argument("--tables", nargs=2, metavar=("TRAIN", "TEST"), help="for r52")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/learning-rate"), help="what is kept"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--documents", type=int, help="so many training documents")
    parser.add_argument("--test", type=int, default=1500, help="test documents at most")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--head-start", choices=["probe", "scratch"], default="probe")
    parser.add_argument("--loss", default="logit-adjusted")
    parser.add_argument("--points", type=int, default=9, help="of the grid")
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=0.2)
    parser.add_argument("--show", action="store_true", help="print the table and train nothing")
    chosen = parser.parse_args()
    if chosen.show:
        print(table())
        return
    if chosen.task == "r52" and not chosen.tables:
        parser.error("--task r52 needs --tables TRAIN TEST")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for seed in chosen.seeds:
        measure(chosen, seed)


def measure(chosen: argparse.Namespace, seed: int) -> None:
    """Grid, search, finder and their trainings on one seed's documents; then the row."""
    train, test = documents(chosen, seed)
    options = {
        "max_length": chosen.max_length, "epochs": chosen.epochs, "loss": chosen.loss,
        "head_start": chosen.head_start, "seed": seed,
    }  # fmt: skip
    kind = f"{len(train)}-{chosen.max_length}-{chosen.epochs:g}-{chosen.head_start}-{chosen.loss}"
    folder = chosen.work / f"{chosen.task}-{kind}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("test", test)):
        with table_writer(folder / f"{name}.parquet") as write:
            write({"text": part.texts, "label": part.labels or []})
    kept = Kept(folder / "measured.jsonl")
    tables = {"test": str(folder / "test.parquet"), "text": "text", "label": "label"}

    def search() -> dict[str, Any]:
        config = TrainConfig(data=str(folder / "train.parquet"), out="-", **tables, **options)
        return find_learning_rate(config, candidates=chosen.candidates, fraction=chosen.fraction)

    def trained(rate: float) -> dict[str, Any]:
        started = time.perf_counter()
        run = longarc.fit(
            folder / "train.parquet", out=folder / "run", overwrite=True, learning_rate=rate,
            baseline=False, monitors=False, verbose=False, **tables, **options,
        )  # fmt: skip
        figures = {
            split: run.metrics[split]["model"]["macro_f1"]["value"]
            for split in ("validation", "test")
        }
        seconds = run.metrics["seconds"]["training"]
        return figures | {"seconds": seconds, "all": round(time.perf_counter() - started, 1)}

    ratio = (HIGHEST / LOWEST) ** (1 / (chosen.points - 1))
    grid = [float(f"{LOWEST * ratio**i:.1e}") for i in range(chosen.points)]
    how_far = f"search {chosen.candidates} {chosen.fraction:g}"
    found = kept.measured(how_far, search)
    runs = {rate: kept.measured(f"train {rate:g}", lambda r=rate: trained(r)) for rate in grid}
    mine = kept.measured(f"train {found['recommended']:g}", lambda: trained(found["recommended"]))
    finder = kept.measured("torch-lr-finder", lambda: suggested(train, chosen, seed))
    theirs = None
    if finder.get("suggested"):
        theirs = kept.measured(
            f"train {finder['suggested']:g}", lambda: trained(finder["suggested"])
        )
    best = max(grid, key=lambda rate: runs[rate]["test"])
    by_validation = max(grid, key=lambda rate: runs[rate]["validation"])
    append_row(
        "learning-rate",
        task=chosen.task,
        recommended=found["recommended"],
        range=[found["range"]["low"], found["range"]["high"]],
        macro_f1=round(mine["test"], 4),
        best_of_grid=best,
        macro_f1_best=round(runs[best]["test"], 4),
        points_below=round(100 * (runs[best]["test"] - mine["test"]), 2),
        chosen_by_validation=by_validation,
        macro_f1_by_validation=round(runs[by_validation]["test"], 4),
        cost_steps=round(found["cost_steps"] / (len(grid) * found["run_steps"]), 4),
        cost_seconds=round(found["seconds"] / sum(run["seconds"] for run in runs.values()), 4),
        grid={f"{rate:g}": round(run["test"], 4) for rate, run in runs.items()},
        torch_lr_finder=finder.get("suggested"),
        macro_f1_torch_lr_finder=theirs and round(theirs["test"], 4),
        validation={
            "start": _figures_of(found["start"]),
            "short_runs": {
                f"{row['learning_rate']:g}": _figures_of(row) for row in found["candidates"]
            },
            "grid": {f"{rate:g}": round(run["validation"], 4) for rate, run in runs.items()},
        },
        documents=len(train),
        tested=len(test),
        run_steps=found["run_steps"],
        candidates=chosen.candidates,
        fraction=chosen.fraction,
        device=chosen_device().type,
        **options,
    )


def _figures_of(row: dict[str, Any]) -> list[float | None]:
    """Macro-F1 on the validation documents, its standard error, and the loss."""
    found = (row[name] for name in ("macro_f1", "macro_f1_error", "loss"))
    return [None if value is None else round(value, 4) for value in found]


def suggested(train: Examples, chosen: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What torch-lr-finder says of MiniLM with a new head, AdamW and batches of 16."""
    try:
        from torch_lr_finder import LRFinder, TrainDataLoaderIter
    except ImportError as error:
        return {"suggested": None, "why": str(error)}
    torch.manual_seed(seed)
    names = tuple(sorted({str(label) for label in train.labels or []}))
    tokenizer, device = load_tokenizer("minilm"), chosen_device()
    codes = np.array([names.index(str(label)) for label in train.labels or []])
    model = load_classifier("minilm", labels=names)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.model(**inputs).logits

    class Batches(TrainDataLoaderIter):
        def inputs_labels_from_batch(self, batch_data: dict[str, torch.Tensor]) -> Any:
            inputs = dict(batch_data)
            return inputs, inputs.pop("labels")

    loader = torch.utils.data.DataLoader(
        Documents(train.texts, tokenizer, chosen.max_length, codes),  # pyright: ignore[reportArgumentType]
        batch_size=16, shuffle=True, collate_fn=PaddedBatches(tokenizer, chosen.max_length),
    )  # fmt: skip
    whole = Logits().to(device)
    optimizer = torch.optim.AdamW(whole.parameters(), lr=FINDER["start"], weight_decay=0.01)
    finder = LRFinder(whole, optimizer, torch.nn.CrossEntropyLoss(), device=device)
    finder.range_test(Batches(loader), end_lr=FINDER["end"], num_iter=FINDER["steps"])
    # As its plot() suggests; that draws too.
    part = slice(FINDER["skip_start"], -FINDER["skip_end"])
    rates, losses = finder.history["lr"][part], finder.history["loss"][part]
    return {"suggested": float(f"{rates[int(np.gradient(losses).argmin())]:.1e}")}


def documents(chosen: argparse.Namespace, seed: int) -> tuple[Examples, Examples]:
    """Training and test documents: R52's split, or three quarters and one of the licence texts."""
    random = np.random.default_rng(seed)
    if chosen.task == "r52":
        train, test = (read_examples(name)[0] for name in chosen.tables)
        orders = [random.permutation(len(part)) for part in (train, test)]
    else:
        train = test = read_licenses("key" if chosen.task == "licence-keys" else "category")
        order = random.permutation(len(train))
        orders = [order[len(order) // 4 :], order[: len(order) // 4]]
    train = train.select(np.sort(orders[0][: chosen.documents]).tolist())
    known = set(train.labels or [])  # with --documents rare classes may be missing
    kept = [i for i in orders[1].tolist() if (test.labels or [])[i] in known][: chosen.test]
    return train, test.select(sorted(kept))


class Kept:
    """What was measured under each name, a line each."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.found: dict[str, Any] = dict(json.loads(line) for line in lines)

    def measured(self, name: str, measure: Any) -> dict[str, Any]:
        """The figures of that name, measured now if they never were."""
        if name not in self.found:
            self.found[name] = measure()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, self.found[name]]) + "\n")
            shown = {
                k: v for k, v in self.found[name].items() if k not in ("stability", "candidates")
            }
            print(self.path.parent.name, name, shown, flush=True)
        return self.found[name]


def table() -> str:
    """The latest row of each task as Markdown."""
    latest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["benchmark"] == "learning-rate":
            latest[row["task"], row["head_start"], row["seed"]] = row
    lines = [
        "| task, head | recommended | macro-F1 | best of nine | macro-F1 | below it | cost | "
        "torch-lr-finder | macro-F1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, head, _), row in sorted(latest.items()):
        theirs = row["torch_lr_finder"], row["macro_f1_torch_lr_finder"]
        cells = [
            f"{task}, {head}", f"{row['recommended']:g}", f"{row['macro_f1']:.3f}",
            f"{row['best_of_grid']:g}", f"{row['macro_f1_best']:.3f}",
            f"{row['points_below']:.2f}", f"{row['cost_steps']:.1%}",
            *("–" if value is None else f"{value:g}" for value in theirs),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
