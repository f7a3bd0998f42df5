r"""How good the demo's model is on the licence texts that it left out, several thousand.

    python benchmarks/demo.py [runs/demo]

Without the run, ``longarc demo`` makes it first. The demo reads a part of its table, so that it
lasts minutes, and its test split alone does not tell two systems apart that are as near as
these. A row each for the model, which is a hybrid, for its encoder alone and for its linear
part alone, with 95 % intervals; and how far the model is above the others on the same
documents.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import longarc
from longarc.cli import demo
from longarc.data.examples import read_examples
from longarc.training.baseline import LinearBaseline
from longarc.training.evaluation import score_decisions
from longarc.training.metrics import paired_differences
from rows import append_row

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "recall_tail")


def main() -> None:
    """Predict what was left out and append a row for each system."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="?", default="runs/demo")
    path = Path(parser.parse_args().run)
    if not path.exists():
        demo.run(["--out", str(path)])
    run = longarc.open_run(path)
    config = run.config
    if {name: getattr(config, name) for name in demo.FULL} != demo.FULL:
        raise SystemExit(f"{path} is no run of longarc demo as it is. Name another, or remove it.")
    columns: Any = {"text": config.text, "label": config.label}
    read, _ = read_examples(config.data, limit=config.limit, seed=config.seed, **columns)
    known = {text.strip() for text in read.texts}
    every, _ = read_examples(config.data, **columns)
    rest = every.select([i for i, text in enumerate(every.texts) if text.strip() not in known])

    linear = LinearBaseline.load(run.folder.linear)  # its margins, times the factor
    margins = linear.margins(rest.texts)
    logits = run.predictor.logits(rest.texts)
    decided = {
        "hybrid": logits.argmax(axis=1),
        "encoder": (logits - margins).argmax(axis=1),
        "tfidf-svm": margins.argmax(axis=1),
    }
    others = {name: codes for name, codes in decided.items() if name != "hybrid"}
    truth = run.labels.encode(rest.labels or [])
    gaps = paired_differences(truth, decided["hybrid"], others, space=run.labels)
    for name, codes in decided.items():
        found = score_decisions(rest, run.labels, codes)
        append_row(
            "demo",
            system=name,
            documents=len(rest),
            **{figure: found[figure] for figure in FIGURES},
            hybrid_is_above={f: gaps[name][f] for f in FIGURES} if name in gaps else None,
            options={
                "limit": config.limit, "max_length": config.max_length, "epochs": config.epochs,
                "learning_rate": config.learning_rate, "loss": config.loss,
                "head_start": config.head_start, "hybrid": config.hybrid, "seed": config.seed,
            },
            seconds=run.metrics["seconds"],
        )  # fmt: skip


if __name__ == "__main__":
    main()
