"""What adapting MiniLM to unlabelled documents brings where few have a label.

    python benchmarks/few_labels.py --task licence-categories
    python benchmarks/few_labels.py --task r52 --tables TRAIN TEST

A fifth of the training documents may be asked for their label; MiniLM is adapted to the texts of
the other four fifths, once by each objective. 1, 5 and 10 % of the training documents then have
one, at least one of each class, the smaller parts within the larger ones, drawn anew with each seed
from that fifth. Each encoder is fine-tuned on these alone, with the same options, the same number
of steps and no validation split.

Encoders read ``--tokens`` tokens of a document; ``tfidf-svm``, TF-IDF + LinearSVC on the same
documents, reads all of them. ``probe of`` is the linear probe that a fine-tuning starts from.

Everything is kept in ``--work`` and printed as it is measured, so the same command goes on where an
interrupted one was. Rows are appended at the end: the figures on the test documents, their mean and
extremes over the seeds, and those of the difference to MiniLM as it is with the same seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import longarc
from longarc.data.examples import Examples, read_examples
from longarc.data.labels import LabelSpace
from longarc.data.licenses import read_licenses
from longarc.data.table_writer import table_writer
from longarc.training.baseline import LinearBaseline
from longarc.training.evaluation import macro_f1
from longarc.training.pretraining.folder import PretrainFolder
from rows import append_row, over_seeds

FIGURES = ("macro_f1", "accuracy")
PLAIN, LINEAR = "minilm", "tfidf-svm"
POOL = 0.2
BATCH = 16

LONGEST = 4000
"""Characters of a document that an encoder is adapted to: passages come from some 800 tokens."""


def main() -> None:
    """Adapt, fine-tune, append rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--task", choices=["licence-categories", "r52"], default="licence-categories"
    )
    parser.add_argument("--tables", nargs=2, metavar=("TRAIN", "TEST"), help="for r52")
    parser.add_argument("--work", type=Path, default=Path("runs/few-labels"), help="what is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.1])
    parser.add_argument(
        "--objectives", nargs="*", default=["simcse", "simsiam", "byol", "mlm"],
        help="besides MiniLM as it is",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, default=64, help="of a view, and of a document")
    parser.add_argument("--epochs", type=float, default=2, help="of an adaptation")
    parser.add_argument(
        "--steps", type=int, default=60, help=f"of a fine-tuning, {BATCH} documents"
    )
    parser.add_argument("--test", type=int, default=800, help="test documents at most")
    parser.add_argument("--limit", type=int, help="so many training documents")
    parser.add_argument("--pretrain-options", type=json.loads, default={}, help="as JSON")
    parser.add_argument("--train-options", type=json.loads, default={}, help="as JSON")
    chosen = parser.parse_args()
    if chosen.task == "r52" and not chosen.tables:
        parser.error("--task r52 needs --tables TRAIN TEST")
    if max(chosen.shares) > POOL:
        parser.error(f"--shares: at most {POOL:g} of the documents have a label")
    few_labels(chosen)


def few_labels(chosen: argparse.Namespace) -> None:
    """Measure what is not measured yet, and append rows when all is."""
    folder = chosen.work / chosen.task
    folder.mkdir(parents=True, exist_ok=True)
    what_it_is = {
        name: value for name, value in vars(chosen).items()
        if name not in ("work", "tables", "seeds", "shares", "objectives")
    }  # fmt: skip
    _refuse_other_options(folder / "options.json", what_it_is)
    train, test = _documents(chosen)
    pool = labelled_part(train.labels or [], round(POOL * len(train)), seed=0)
    rest = np.setdiff1d(np.arange(len(train)), pool)
    _write(folder / "rest.parquet", train.select(rest.tolist()), LONGEST)
    # The tokenizer would read all of a document and keep --tokens of it.
    _write(folder / "test.parquet", test, 16 * chosen.tokens)
    starts = {PLAIN: PLAIN, **dict(_adapted(chosen, folder))}
    cells = _Cells(folder / "cells.jsonl")
    for share in sorted(chosen.shares):
        for seed in chosen.seeds:
            asked = train.select(sorted(pool.tolist()))
            part = labelled_part(asked.labels or [], round(share * len(train)), seed=seed)
            labelled = asked.select(part.tolist())
            if not cells.have(share, seed, LINEAR):
                cells.add(share, seed, LINEAR, len(labelled), _linear(labelled, test))
            _write(folder / "labelled.parquet", labelled, 16 * chosen.tokens)
            for start, model in starts.items():
                if not cells.have(share, seed, start):
                    for name, figures in _fine_tuned(chosen, folder, start, model, seed).items():
                        cells.add(share, seed, name, len(labelled), figures)
    for share in sorted(chosen.shares):
        for start in cells.starts(share):
            runs = [cells.figures(share, seed, start) for seed in chosen.seeds]
            plain = [cells.figures(share, seed, PLAIN) for seed in chosen.seeds]
            append_row(
                "few-labels", task=chosen.task, share=share, start=start,
                **{f: over_seeds([run[f] for run in runs]) for f in FIGURES},
                gain={f: over_seeds([r[f] - p[f] for r, p in zip(runs, plain, strict=True)])
                      for f in FIGURES},
                labelled=over_seeds([run["documents"] for run in runs]), unlabelled=len(rest),
                tested=len(test), seeds=chosen.seeds, **{k: v for k, v in what_it_is.items()
                                                         if k not in ("task", "test")},
            )  # fmt: skip


def _adapted(chosen: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str]]:
    """Objectives and the encoders they made of MiniLM; a collapse is printed and left out."""
    for objective in chosen.objectives:
        run = PretrainFolder(folder / objective)
        if not run.metrics_file.is_file():
            began = time.process_time()
            options = {
                "objective": objective, "epochs": chosen.epochs, "max_length": chosen.tokens,
                "batch_size": 32, "held_out": 32, "evaluations": 1, **chosen.pretrain_options,
            }  # fmt: skip
            try:
                longarc.pretrain(
                    folder / "rest.parquet", text="text", out=run.path, verbose=False,
                    resume=run.path.is_dir(), **options,
                )  # fmt: skip
            except longarc.ModelError as error:
                print(chosen.task, objective, error, flush=True)
            minutes = (time.process_time() - began) / 60
            print(f"{chosen.task}: {objective} took {minutes:.1f} CPU minutes", flush=True)
        if run.model.is_dir():
            yield objective, str(run.model)


def _fine_tuned(
    chosen: argparse.Namespace, folder: Path, start: str, model: str, seed: int
) -> dict[str, dict[str, float]]:
    """Figures on the test documents, and those of the probe that the fine-tuning started from."""
    began = time.process_time()
    documents = len(read_examples(folder / "labelled.parquet")[0])
    options = {
        "loss": "logit-adjusted", "epochs": chosen.steps * BATCH / documents, "batch_size": BATCH,
        "max_length": chosen.tokens, "learning_rate": 1e-4, **chosen.train_options,
    }  # fmt: skip
    run = longarc.fit(
        folder / "labelled.parquet", test=str(folder / "test.parquet"), text="text", label="label",
        model=model, validation_fraction=0.0, baseline=False, monitors=False, seed=seed,
        out=folder / "run", overwrite=True, verbose=False, **options,
    )  # fmt: skip
    measured = run.metrics["test"]
    found = {start: measured["model"], f"probe of {start}": measured["baselines"]["frozen-probe"]}
    cpu = round(time.process_time() - began, 1)
    return {
        name: {f: figures[f]["value"] for f in FIGURES} | {"cpu_seconds": cpu}
        for name, figures in found.items()
    }


def _linear(labelled: Examples, test: Examples) -> dict[str, float]:
    space = LabelSpace.from_labels(labelled.labels)
    codes = space.encode(labelled.labels or [])
    fitted = LinearBaseline().fit(labelled.texts, codes, space=space)
    truth = space.encode(test.labels or [])
    predicted = fitted.predict(test.texts)
    return {
        "macro_f1": macro_f1(truth, predicted),
        "accuracy": float((truth == predicted).mean()),
    }


class _Cells:
    """What was measured for each share, seed and start, a line each."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[tuple[float, int, str], dict[str, float]] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                key = row.pop("share"), row.pop("seed"), row.pop("start")
                self.found[key] = row

    def have(self, share: float, seed: int, start: str) -> bool:
        return (share, seed, start) in self.found

    def figures(self, share: float, seed: int, start: str) -> dict[str, float]:
        return self.found[share, seed, start]

    def starts(self, share: float) -> list[str]:
        return list(dict.fromkeys(start for of, _, start in self.found if of == share))

    def add(
        self, share: float, seed: int, start: str, documents: int, figures: dict[str, float]
    ) -> None:
        row = {name: round(value, 4) for name, value in figures.items()} | {"documents": documents}
        self.found[share, seed, start] = row
        line = json.dumps({"share": share, "seed": seed, "start": start, **row})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def _refuse_other_options(path: Path, options: dict[str, Any]) -> None:
    """What is kept was measured with one set of options."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else options
    if kept != options:
        raise SystemExit(f"{path.parent} was measured with {kept}. Name another --work.")
    path.write_text(json.dumps(options), encoding="utf-8")


def _documents(chosen: argparse.Namespace) -> tuple[Examples, Examples]:
    """Training and test documents: R52's split, or three quarters and one of the licence texts."""
    random = np.random.default_rng(0)
    if chosen.task == "r52":
        train, test = (read_examples(table)[0] for table in chosen.tables)
        orders = [random.permutation(len(part)) for part in (train, test)]
    else:
        train = test = read_licenses("category")
        order = random.permutation(len(train))
        orders = [order[len(order) // 4 :], order[: len(order) // 4]]
    train = train.select(np.sort(orders[0][: chosen.limit]).tolist())
    test = test.select(np.sort(orders[1][: chosen.test]).tolist())
    known = set(train.labels or [])  # with --limit rare classes may be missing
    return train, test.select([i for i, label in enumerate(test.labels or []) if label in known])


def labelled_part(labels: Sequence[Any], size: int, seed: int) -> np.ndarray:
    """Indices of ``size`` documents, at least one of each class; smaller parts lie in larger ones.

    >>> labelled_part(["a", "a", "a", "b"], 2, seed=0).tolist()
    [2, 3]
    """
    order = np.random.default_rng([seed, 1]).permutation(len(labels))
    first: dict[Any, int] = {}
    for i in order:
        first.setdefault(labels[i], int(i))
    one_each = list(first.values())
    queue = [*one_each, *(int(i) for i in order if int(i) not in set(one_each))]
    return np.array(queue[: max(len(one_each), size)])


def _write(path: Path, part: Examples, characters: int) -> None:
    with table_writer(path) as write:
        texts = [text[:characters] for text in part.texts]
        write({"text": texts, "label": part.labels or []})


if __name__ == "__main__":
    main()
