"""Recurrent encoders: how fast the output-gated GRU trains, and how good each cell is.

    python benchmarks/recurrent.py speed
    python benchmarks/recurrent.py quality --cells lstm gru
    python benchmarks/recurrent.py quality --tables TRAIN TEST --seeds 0 1 2

``speed``: training throughput (forward, backward) of one layer of the output-gated GRU beside
``nn.GRU`` and ``nn.LSTM``, on the device that torch has; repeats of the three take turns.

``quality``: each cell trained from scratch on R52's canonical split or on the categories of licence
texts (three quarters to train on, a quarter to test), beside TF-IDF + LinearSVC on the same
documents. Nothing is chosen by the test documents: ``--validation-fraction`` leaves a part of the
training documents to choose the epoch and to compare options by; at 0, the default, all of them are
trained on for ``--epochs``. Each finished training is a line of ``--work``/TASK/cells.jsonl and of
the output; the same command goes on where an interrupted one was, in the middle of a training too.
Other options are further lines there. Rows are appended at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import longarc
from longarc.data.examples import Examples, read_examples
from longarc.data.licenses import read_licenses
from longarc.data.table_writer import table_writer
from longarc.models.recurrent.options import CELLS
from longarc.models.recurrent.output_gated_gru import OutputGatedGRU
from longarc.training.model_defaults import RECURRENT
from longarc.training.prediction import chosen_device
from rows import append_row, spread

FIGURES = ("accuracy", "macro_f1", "balanced_accuracy")
LINEAR = "tfidf-svm"
BATCH, INPUTS = 32, 300


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=["speed", "quality"], default="speed")
    fast = parser.add_argument_group("speed")
    fast.add_argument("--hidden", type=int, nargs="+", default=[128, 256])
    fast.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="tokens, n")
    fast.add_argument("--repeats", type=int, default=7)
    good = parser.add_argument_group("quality")
    good.add_argument("--tables", nargs=2, metavar=("TRAIN", "TEST"), help="R52's, else licences")
    good.add_argument("--work", type=Path, default=Path("runs/recurrent"), help="what is kept")
    good.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    good.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    good.add_argument("--loss", default="logit-adjusted")
    good.add_argument("--epochs", type=float, default=RECURRENT["epochs"])
    good.add_argument("--learning-rate", type=float, default=RECURRENT["learning_rate"])
    good.add_argument("--batch-size", type=int, default=RECURRENT["batch_size"])
    good.add_argument("--max-length", type=int, default=256)
    good.add_argument("--pooling", default=RECURRENT["pooling"])
    good.add_argument("--embeddings", help="minilm, or another encoder; default: random ones")
    good.add_argument("--model-options", type=json.loads, default={}, help="as JSON")
    good.add_argument("--validation-fraction", type=float, default=0.0)
    good.add_argument("--options", type=json.loads, default={}, help="more of train, as JSON")
    good.add_argument("--limit", type=int, help="so many training documents, for a first look")
    good.add_argument("--keep", action="store_true", help="keep the run folders")
    chosen = parser.parse_args()
    if chosen.what == "speed":
        speed(chosen)
    else:
        quality(chosen)


def speed(chosen: argparse.Namespace) -> None:
    """A row for each size: milliseconds of a training step and the ratio of throughputs."""
    device = chosen_device()
    for hidden in chosen.hidden:
        for steps in chosen.lengths:
            inputs = torch.randn(BATCH, steps, INPUTS, device=device)
            calls = {
                name: _step(kind(INPUTS, hidden, batch_first=True).to(device), inputs)
                for name, kind in (
                    ("gru", nn.GRU), ("lstm", nn.LSTM), ("output-gated-gru", OutputGatedGRU),
                )
            }  # fmt: skip
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for repeat in range(chosen.repeats + 1):
                for name, call in calls.items():
                    started = time.perf_counter()
                    call()
                    if repeat:  # the first one warms up
                        seconds[name].append(time.perf_counter() - started)
            ratios = {
                name: spread([g / s for g, s in zip(seconds["gru"], found, strict=True)])
                for name, found in seconds.items()
                if name != "gru"
            }
            append_row(
                "recurrent-speed", hidden=hidden, tokens=steps, batch=BATCH,
                inputs=INPUTS, direction="one", device=_device_name(device),
                threads=torch.get_num_threads(),
                milliseconds={n: spread([1000 * s for s in v]) for n, v in seconds.items()},
                throughput_over_gru=ratios,
            )  # fmt: skip


def _step(layer: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of a layer, ended when the device has done it."""
    x = inputs.clone().requires_grad_()

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x)[0].square().mean().backward()
        if x.device.type != "cpu":
            torch.accelerator.synchronize()

    return step


def quality(chosen: argparse.Namespace) -> None:
    """Measure what is not measured yet, print a table, append rows."""
    task = "r52" if chosen.tables else "licence-categories"
    folder = chosen.work / task
    folder.mkdir(parents=True, exist_ok=True)
    tables = _tables(chosen, folder)
    cells = _Cells(folder / "cells.jsonl")
    options = {
        "loss": chosen.loss, "epochs": chosen.epochs, "learning_rate": chosen.learning_rate,
        "batch_size": chosen.batch_size, "max_length": chosen.max_length,
        "pooling": chosen.pooling, "embeddings": chosen.embeddings,
        "model_options": chosen.model_options, "validation_fraction": chosen.validation_fraction,
        "limit": chosen.limit, **chosen.options,
    }  # fmt: skip
    documents = {name: options[name] for name in ("validation_fraction", "limit")}
    for seed in chosen.seeds:
        for cell in chosen.cells:
            if not cells.have(cell, seed, options):
                baseline = not cells.have(LINEAR, 0, documents)
                found, linear = _trained(chosen, folder, tables, cell, seed, options, baseline)
                if linear:
                    cells.add(LINEAR, 0, documents, linear)
                cells.add(cell, seed, options, found)
    for cell in (LINEAR, *chosen.cells):
        of_cell = documents if cell == LINEAR else options
        seeds = [0] if cell == LINEAR else chosen.seeds
        if not all(cells.have(cell, seed, of_cell) for seed in seeds):
            continue  # the first training was kept from an earlier call, without a baseline
        runs = [cells.figures(cell, seed, of_cell) for seed in seeds]
        append_row(
            "recurrent", task=task, system=cell, seeds=seeds,
            **{name: _over_seeds([run[name] for run in runs]) for name in FIGURES},
            validation={
                name: _over_seeds([run["validation"][name] for run in runs])
                for name in FIGURES
            } if all("validation" in run for run in runs) else None,
            seconds=[run["seconds"] for run in runs], device=runs[0]["device"], options=of_cell,
        )  # fmt: skip


def _trained(
    chosen: argparse.Namespace,
    folder: Path,
    tables: tuple[Path, Path],
    cell: str,
    seed: int,
    options: dict[str, Any],
    baseline: bool,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Figures of one training and, where asked for, of the linear baseline."""
    told = json.dumps(options, sort_keys=True)
    out = folder / f"{cell}-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    if (out / "metrics.json").is_file():  # it ended, and its line was not written
        run = longarc.open_run(out)
    else:
        print(f"{cell}, seed {seed}: {told}", flush=True)
        run = longarc.fit(
            tables[0], test=str(tables[1]), text="text", label="label", model=cell, seed=seed,
            out=out, resume=(out / "config.yaml").is_file(), baseline=baseline, monitors=False,
            **options,
        )  # fmt: skip
    metrics = run.metrics
    device = _device_name(chosen_device(run.config.device))
    found: dict[str, Any] = _figures(metrics["test"]["model"])
    if "validation" in metrics:
        found["validation"] = _figures(metrics["validation"]["model"])
    found |= {"seconds": metrics["seconds"].get("training"), "device": device}
    linear = metrics["test"]["baselines"].get(LINEAR)
    if not chosen.keep:
        shutil.rmtree(out)
    if linear is None:
        return found, None
    more = {"seconds": metrics["seconds"].get("baseline"), "device": "cpu"}
    return found, _figures(linear) | more


def _figures(measured: dict[str, Any]) -> dict[str, Any]:
    """Value and the ends of its 95 % interval from resampled documents."""
    return {
        name: {k: round(v, 4) for k, v in measured[name].items() if isinstance(v, float)}
        for name in FIGURES
    }


class _Cells:
    """What was measured for each system, seed and set of options, a line each."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                key = self._key(row.pop("system"), row.pop("seed"), row.pop("options"))
                self.found[key] = row

    def have(self, system: str, seed: int, options: dict[str, Any]) -> bool:
        return self._key(system, seed, options) in self.found

    def figures(self, system: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
        return self.found[self._key(system, seed, options)]

    def add(self, system: str, seed: int, options: dict[str, Any], figures: dict[str, Any]) -> None:
        self.found[self._key(system, seed, options)] = figures
        line = json.dumps({"system": system, "seed": seed, **figures, "options": options})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    @staticmethod
    def _key(system: str, seed: int, options: dict[str, Any]) -> str:
        return json.dumps([system, seed, options], sort_keys=True)


def _tables(chosen: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Training and test documents as files; R52's own, or a split of the licence texts."""
    if chosen.tables:
        train, test = (Path(table) for table in chosen.tables)
        return train, test
    paths = folder / "train.parquet", folder / "test.parquet"
    if not all(path.is_file() for path in paths):
        texts = read_licenses("category")
        order = np.random.default_rng(0).permutation(len(texts))
        quarter = len(order) // 4
        for path, part in zip(paths, (order[quarter:], order[:quarter]), strict=True):
            _write(path, texts.select(np.sort(part).tolist()))
    read_examples(paths[1])  # refuses a damaged file before any training
    return paths


def _write(path: Path, part: Examples) -> None:
    with table_writer(path) as write:
        write({"text": part.texts, "label": part.labels or []})


def _over_seeds(values: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and extremes over the seeds, and each seed's interval."""
    each = [value["value"] for value in values]
    return {
        "mean": round(statistics.mean(each), 4),
        "min": round(min(each), 4),
        "max": round(max(each), 4),
        "intervals": [[value.get("low"), value.get("high")] for value in values],
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
