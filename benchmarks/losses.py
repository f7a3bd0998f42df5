"""Every loss on the same frozen encoder: what each does to frequent and rare classes.

    python benchmarks/losses.py [--data licence-categories licence-keys] [--seeds 0 1 2]
    python benchmarks/losses.py --data r52 --tables TRAIN TEST
    python benchmarks/losses.py --show          # the rows so far, as the tables of docs/

MiniLM reads each document once (256 tokens, mean of the tokens, normalised); each loss then trains
a linear head on these vectors with the same budget: 40 passes of AdamW in batches of 128, the best
of three learning rates by macro-F1 on the validation split. A whole fine-tuning for each loss, data
set and seed would take days on two cores. Losses for several labels are given one-hot targets, and
the largest logit decides. After cross-entropy come the second stages of ``longarc train --recipe``,
which start from its head, and hybrids with eight times the margins of the linear baseline.

The seed decides the validation split, the order of the batches and, for the licence texts, the test
split (a quarter). Each row has the mean, the smallest and the largest figure over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longarc.data.examples import read_examples
from longarc.data.labels import LabelSpace
from longarc.data.licenses import read_licenses
from longarc.data.splits import Splits, make_splits
from longarc.models.loading import load_classifier, load_tokenizer
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.registry import LOSSES, build_loss
from longarc.training.baseline import LinearBaseline
from longarc.training.evaluation import macro_f1
from longarc.training.metrics import evaluate_predictions
from longarc.training.prediction import Predictor
from longarc.training.recipes.post_hoc import (
    POST_HOC_TAUS,
    choose_tau,
    log_prior,
    post_hoc_adjust,
)
from longarc.training.recipes.retrain import retrain_classifier
from longarc.training.recipes.tau_norm import TAU_NORM_TAUS, tau_normalize
from rows import RESULTS, append_row

FIGURES = (
    "accuracy", "macro_f1", "balanced_accuracy", "recall_head", "recall_mid", "recall_tail",
    "calibration_error",
)  # fmt: skip
SHOWN = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "balanced_accuracy": "balanced accuracy",
    "recall_head": "recall, head", "recall_mid": "mid", "recall_tail": "tail",
    "calibration_error": "calibration error",
}  # fmt: skip
RATES = (1e-3, 3e-3, 1e-2)
EPOCHS, BATCH = 40, 128


@dataclass(frozen=True)
class Task:
    """One split of one data set, with the frozen encoder's view of it."""

    splits: Splits
    space: LabelSpace
    features: dict[str, Tensor]
    target: dict[str, np.ndarray]


def main() -> None:
    """Train every loss on every seed's split and append a row for each system."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data",
        nargs="+",
        choices=["licence-categories", "licence-keys", "r52"],
        default=["licence-categories", "licence-keys"],
    )
    parser.add_argument("--tables", nargs=2, metavar=("TRAIN", "TEST"), help="for r52")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    parser.add_argument("--show", action="store_true", help="print the tables and train nothing")
    chosen = parser.parse_args()
    if chosen.show:
        print(tables())
        return
    if "r52" in chosen.data and not chosen.tables:
        parser.error("--data r52 needs --tables TRAIN TEST")
    for data in chosen.data:
        figures: dict[str, list[dict[str, Any]]] = {}
        for seed, task in tasks(data, chosen.tables, chosen.seeds):
            for system, found in measure(task, chosen.losses, seed):
                figures.setdefault(system, []).append(found)
                print(data, seed, system, found, flush=True)
        for system, found in figures.items():
            append_row(
                "losses",
                data=data,
                system=system,
                **{name: over_seeds([f[name] for f in found]) for name in found[0]},
                seeds=chosen.seeds,
                head="linear on frozen all-MiniLM-L6-v2, 256 tokens",
                epochs=EPOCHS,
                batch=BATCH,
            )


def tasks(data: str, tables: list[str] | None, seeds: list[int]) -> Iterator[tuple[int, Task]]:
    """Read the data once, let the encoder read it once, and split it for each seed."""
    if data == "r52":
        examples, test = (read_examples(t, text="text", label="label")[0] for t in tables or [])
    else:
        examples = read_licenses("key" if data == "licence-keys" else "category")
        test = None
    encode = encoder()
    vectors = encode(examples.texts)
    of_test = encode(test.texts) if test is not None else None
    place = {row: i for i, row in enumerate(examples.rows)}
    for seed in seeds:
        splits = make_splits(
            examples, test=test, validation_fraction=0.1, test_fraction=0.25, seed=seed
        )
        space = LabelSpace.from_labels(splits.train.labels)
        features = {
            name: of_test if part is test else vectors[[place[row] for row in part.rows]]
            for name, part in splits.items()
        }
        target = {name: space.encode(part.labels or []) for name, part in splits.items()}
        yield seed, Task(splits, space, standardised(features), target)


def encoder() -> Any:
    """Return a function from texts to vectors (N, d)."""
    predictor = Predictor(
        load_classifier("minilm", labels=("none", "none either")),
        load_tokenizer("minilm"),
        max_length=256,
        bf16=True,
    )
    return lambda texts: torch.from_numpy(predictor.features(texts))


def standardised(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scale every coordinate by its mean and deviation on the training split."""
    mean, deviation = features["train"].mean(0), features["train"].std(0)
    return {name: (x - mean) / deviation for name, x in features.items()}


def measure(task: Task, losses: list[str], seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each system's figures on the test split."""
    linear = LinearBaseline()
    linear.fit(task.splits.train.texts, task.target["train"], space=task.space, seed=seed)
    test = task.splits.test
    assert test is not None
    yield "tfidf-svm", figures_of(task, linear.predict(test.texts), None)
    for name in losses:
        several = not LOSSES[name].single_label
        loss = build_loss(
            name,
            class_counts=task.space.counts,
            num_examples=len(task.splits.train),
            multi_label=several,
        )
        start = time.perf_counter()
        weight, bias = train_head(task, loss, seed)
        seconds = time.perf_counter() - start
        logits = task.features["test"] @ weight.T + bias
        chances = loss.probabilities(logits)
        if several:
            chances = chances / chances.sum(dim=1, keepdim=True)
        found = figures_of(task, logits.argmax(1).numpy(), chances.double().numpy())
        yield name, found | {"seconds": round(seconds, 1)}
        if name in ("cross-entropy", "logit-adjusted"):
            mixed = (logits + 8 * torch.from_numpy(linear.margins(test.texts))).double()
            found = figures_of(task, mixed.argmax(1).numpy(), mixed.softmax(1).numpy())
            yield f"{name}, hybrid 8", found | {"seconds": None}
        if name == "cross-entropy":
            for recipe, w, b in second_stages(task, weight, bias):
                logits = (task.features["test"] @ w.T + b).double()
                found = figures_of(task, logits.argmax(1).numpy(), logits.softmax(1).numpy())
                yield f"cross-entropy, {recipe}", found | {"seconds": None}


def second_stages(task: Task, weight: Tensor, bias: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield what each recipe makes of a head, chosen by macro-F1 on the validation split."""
    held_out, target = task.features["validation"], task.target["train"]
    prior = torch.from_numpy(log_prior(task.space.counts, len(target))).float()

    def score(weight: Tensor, bias: Tensor) -> float:
        predicted = (held_out @ weight.T + bias).argmax(1).numpy()
        return macro_f1(task.target["validation"], predicted)

    tau = choose_tau(lambda tau: score(weight, post_hoc_adjust(bias, prior, tau)), POST_HOC_TAUS)
    yield "post-hoc", weight, post_hoc_adjust(bias, prior, tau)
    tau = choose_tau(lambda tau: score(*tau_normalize(weight, bias, tau)), TAU_NORM_TAUS)
    yield "tau-norm", *tau_normalize(weight, bias, tau)
    probe = retrain_classifier(
        task.features["train"],
        torch.from_numpy(target),
        classes=len(task.space),
        score=lambda probe: score(probe.weight, probe.bias),
    )
    yield "crt", probe.weight, probe.bias


def train_head(task: Task, loss: Loss, seed: int) -> tuple[Tensor, Tensor]:
    """Train with each learning rate; return weight (C, d) and bias (C,) of the best."""
    best: tuple[float, Tensor, Tensor] | None = None
    for rate in RATES:
        weight, bias = fit(task.features["train"], task.target["train"], loss, rate, seed)
        predicted = (task.features["validation"] @ weight.T + bias).argmax(1).numpy()
        reached = macro_f1(task.target["validation"], predicted)
        if best is None or reached > best[0]:
            best = (reached, weight, bias)
    assert best is not None
    return best[1], best[2]


def fit(x: Tensor, target: np.ndarray, loss: Loss, rate: float, seed: int) -> tuple[Tensor, Tensor]:
    """Minimise the loss over a linear head by AdamW with a falling step size."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.from_numpy(target)
    classes = int(y.max()) + 1
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW([weight, bias], lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    extra = {"class_vectors": weight} if loss.uses_class_vectors else {}
    for step in range(steps):
        at = step % (len(x) // BATCH)
        if at == 0:
            order = torch.randperm(len(x), generator=generator)
            loss.set_progress(step / steps)
        rows = order[at * BATCH : (at + 1) * BATCH]
        value = loss(x[rows] @ weight.T + bias, y[rows], **extra)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return weight.detach(), bias.detach()


def figures_of(task: Task, predicted: np.ndarray, chances: np.ndarray | None) -> dict[str, Any]:
    """The figures of one system on the test split, and the recall of classes of at most 20."""
    found = evaluate_predictions(
        task.target["test"], predicted, space=task.space, probabilities=chances, resamples=1
    )
    rare = [
        row["recall"] for row in found["per_class"] if row["train_count"] <= 20 and row["support"]
    ]
    values = {name: found[name]["value"] if found[name] else None for name in FIGURES}
    return values | {"recall_20": float(np.mean(rare))}


def tables() -> str:
    """Return a Markdown table for each data set, from the last row of each system."""
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    of_data: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["benchmark"] == "losses":
            of_data.setdefault(row["data"], {})[row["system"]] = row
    lines = []
    for data, systems in of_data.items():
        lines += [f"### {data}", "", "| system | " + " | ".join(SHOWN.values()) + " |"]
        lines.append("|---|" + "---|" * len(SHOWN))
        for system, row in systems.items():
            cells = [_cell(row[figure]) for figure in SHOWN]
            lines.append(f"| {system} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(found: dict[str, float] | None) -> str:
    if found is None:
        return "–"
    low, high = (f"{found[end]:.3f}".lstrip("0") for end in ("min", "max"))
    return f"{found['mean']:.3f}".lstrip("0") + f" ({low}–{high})"


def over_seeds(values: list[float | None]) -> dict[str, float] | None:
    """Mean, smallest and largest."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "mean": round(statistics.mean(known), 4),
        "min": round(min(known), 4),
        "max": round(max(known), 4),
    }


if __name__ == "__main__":
    main()
