"""What longarc's Trainer costs over transformers', and what grouping by length and bfloat16 gain.

    python benchmarks/overhead.py [--steps 12] [--repeats 5]
    python benchmarks/overhead.py --monitors [--steps 120]     # what the monitors cost, alone

Both trainers see the same MiniLM with the same head, the same licence texts in the same order and
batches; runs are interleaved and the ratio is taken within each pair. The gains are measured with
longarc's trainer on licence texts of natural lengths. The monitors' cost is the ratio of a training
with both to one without, and what they say themselves that they took; they spread their
measurements over a training, so it needs more steps than the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import torch
import transformers
from transformers import DataCollatorWithPadding, TrainingArguments

import longarc
from longarc.data.licenses import read_licenses
from longarc.models.loading import load_classifier, load_tokenizer
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.monitors import SharpnessMonitor, UpdateMonitor
from rows import append_row, spread

BATCH = 16


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--monitors", action="store_true", help="measure what they cost, alone")
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    examples = read_licenses("category", limit=BATCH * chosen.steps)
    names = tuple(sorted(set(examples.labels or [])))
    tokenizer = load_tokenizer("minilm")
    target = torch.tensor([names.index(label) for label in examples.labels or []]).numpy()
    documents = Documents(examples.texts, tokenizer, chosen.max_length, target)

    def seconds(kind: str, **arguments: Any) -> float:
        model = load_classifier("minilm", labels=names, pooling="cls")
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder,
                **{
                    "per_device_train_batch_size": BATCH,
                    "max_steps": chosen.steps,
                    "train_sampling_strategy": "sequential",
                    "use_cpu": True,
                    "save_strategy": "no",
                    "logging_steps": 5,
                    "report_to": "none",
                    "disable_tqdm": True,
                    "remove_unused_columns": False,
                    **arguments,
                },
            )
            shared: dict[str, Any] = {"model": model, "args": args, "train_dataset": documents}
            if kind == "transformers":
                collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
                trainer = transformers.Trainer(**shared, data_collator=collate)
            else:
                trainer = longarc.Trainer(
                    **shared,
                    data_collator=PaddedBatches(tokenizer),
                    loss=longarc.CrossEntropyLoss(),
                )
            trainer.remove_callback(transformers.PrinterCallback)
            if kind == "monitored":
                trainer.add_callback(UpdateMonitor(note))
                trainer.add_callback(SharpnessMonitor(note, trainer.update_loss))
            start = time.perf_counter()
            trainer.train()
            return time.perf_counter() - start

    said: dict[str, list[float]] = {}

    def note(event: str, **record: Any) -> None:
        if event == "monitor":
            said.setdefault(record["name"], []).append(record["share"])

    seconds("longarc", max_steps=2)  # warm-up
    if chosen.monitors:
        pairs = [(seconds("longarc"), seconds("monitored")) for _ in range(chosen.repeats)]
        append_row(
            "overhead-monitors",
            steps=chosen.steps,
            batch=BATCH,
            max_length=chosen.max_length,
            seconds_without=spread([a for a, _ in pairs]),
            seconds_with=spread([b for _, b in pairs]),
            ratio=spread([b / a for a, b in pairs]),
            said={name: spread(shares) for name, shares in said.items()},
        )
        return
    pairs = [(seconds("transformers"), seconds("longarc")) for _ in range(chosen.repeats)]
    append_row(
        "overhead",
        steps=chosen.steps,
        batch=BATCH,
        max_length=chosen.max_length,
        seconds_transformers=spread([a for a, _ in pairs]),
        seconds_longarc=spread([b for _, b in pairs]),
        ratio=spread([b / a for a, b in pairs]),
    )
    order = {"train_sampling_strategy": "group_by_length"}
    runs = [
        (
            seconds("longarc", train_sampling_strategy="random"),
            seconds("longarc", **order),
            seconds("longarc", **order, bf16=True),
        )
        for _ in range(max(3, chosen.repeats - 2))
    ]
    append_row(
        "grouping-and-bf16",
        documents=len(documents),
        batch=BATCH,
        max_length=chosen.max_length,
        seconds_random_fp32=spread([a for a, _, _ in runs]),
        speedup_grouping=spread([a / b for a, b, _ in runs]),
        speedup_bf16=spread([b / c for _, b, c in runs]),
        speedup_both=spread([a / c for a, _, c in runs]),
    )


if __name__ == "__main__":
    main()
