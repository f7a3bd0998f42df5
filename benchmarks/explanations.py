"""What recording a path and explaining by it cost, and how well the contributions add up.

    python benchmarks/explanations.py [--documents 60] [--queries 1 8 32] [--device cuda]

MiniLM with a new head on licence categories: AdamW with warm-up, linear decay, weight decay and
clipping, dropout 0.1, float32. It is trained without a recorder and with one, then the recorder
verifies its path, then the logits of test texts (the predicted class) are explained, so many
together. A row for each number of queries: seconds on the clock and of the processor, also over the
training's, growth of the resident peak (on a GPU, of the peak of its allocated memory), and the
spread of the relative residual over the queries.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

import longarc
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.data.labels import LabelSpace
from longarc.data.licenses import read_licenses
from longarc.models.loading import load_classifier, load_tokenizer
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.recording.recorded_path import RecordedPath
from rows import append_row, peak_growth, peak_growth_of_gpu, spread


def main() -> None:
    """Train, verify, explain; append a row for each number of queries."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_all(Path(folder), chosen)


def measure_all(folder: Path, chosen: argparse.Namespace) -> None:
    most = max(chosen.queries)
    examples = read_licenses("category", limit=chosen.documents + most)
    space = LabelSpace.from_labels(examples.labels or [])
    tokenizer = load_tokenizer("minilm")
    targets = space.encode(examples.labels or [])
    documents = Documents(
        examples.texts[: chosen.documents], tokenizer, chosen.tokens, targets[: chosen.documents]
    )
    held_out = Documents(examples.texts[chosen.documents :], tokenizer, chosen.tokens)
    collate = PaddedBatches(tokenizer, chosen.tokens)

    def train(callbacks: list[Any], steps: int = chosen.steps) -> longarc.Trainer:
        torch.manual_seed(0)
        model = load_classifier("minilm", labels=space.names)
        trainer = longarc.Trainer(
            model,
            TrainingArguments(
                str(folder), per_device_train_batch_size=chosen.batch, max_steps=steps,
                learning_rate=1e-4, warmup_steps=0.1, weight_decay=0.01, max_grad_norm=1.0,
                use_cpu=chosen.device == "cpu", save_strategy="no", report_to="none",
                disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
                logging_steps=10_000,
            ),
            train_dataset=documents,
            data_collator=collate,
            loss=longarc.CrossEntropyLoss(),
            callbacks=callbacks,
        )  # fmt: skip
        trainer.train()
        return trainer

    train([], steps=1)  # warms up
    plain, _ = timed(lambda: train([]))
    recorder = longarc.PathRecorder(folder / "path")
    recorded, trainer = timed(lambda: train([recorder]))
    size = sum(f.stat().st_size for f in (folder / "path").iterdir())
    drifts = recorder.verify()
    path = RecordedPath(folder / "path")
    model = trainer.model
    model.eval()
    queries = []
    for i in range(most):
        batch = {k: v.to(model.device) for k, v in collate([held_out[i]]).items()}
        with torch.no_grad():
            predicted = int(model(**batch).logits[0].argmax())
        queries.append(Query(batch, measure("logit", predicted)))
    for number in chosen.queries:
        found: list[Any] = []
        took: dict[str, float] = {}

        def run(
            number: int = number,
            found: list[Any] = found,
            took: dict[str, float] = took,
        ) -> None:
            seconds, result = timed(
                lambda: explain(
                    path, model, documents, collate, queries[:number], tolerance=chosen.tolerance
                )
            )
            found.extend(result)
            took.update(seconds)

        growth = (peak_growth if chosen.device == "cpu" else peak_growth_of_gpu)(run)
        append_row(
            "explanations",
            **vars(chosen) | {"queries": number},
            trainable=sum(p.numel() for p in model.parameters()),
            training=plain,
            recording=recorded,
            path_megabytes=round(size / 1e6, 1),
            largest_drift=max(d.difference for d in drifts),
            explaining=took,
            times_training={k: round(took[k] / plain[k], 2) for k in plain},
            peak_growth_mib=growth,
            relative_residual=spread_of([e.relative_residual for e in found]),
            change=spread([abs(e.final - e.initial) for e in found]),
            within_tolerance=sum(e.within for e in found),
        )


def spread_of(values: list[float]) -> dict[str, float]:
    """``rows.spread`` for values too small to be rounded to four places."""
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    return {"median": middle, "min": ordered[0], "max": ordered[-1], "n": len(ordered)}


def timed(call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds on the clock and of the processor, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {
        "wall_seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }, result


if __name__ == "__main__":
    main()
