"""The indexed explanations beside captum, TRAK and dattri: speed, size, nearness to the exact ones.

    python benchmarks/attribution.py compare --model small
    python benchmarks/attribution.py compare --model minilm --methods longarc "captum TracInCP"
    python benchmarks/attribution.py search --documents 1000000

One classifier is trained on categories of licence texts with a recorded path. The exact
contributions to the losses of held-out documents are the measure; every method has the same
checkpoints and all layers (TracInCPFast: the head, as is its nature; ``longarc head`` beside it).
The peers are captum, traker and dattri, each in its release on PyPI.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import BertConfig, BertModel, TrainingArguments

import longarc
from attribution_peers import PEERS, Found, Plain, Task, no_shortcut_for_masks
from longarc.attribution.index import store
from longarc.attribution.index.answer import explain_by_index
from longarc.attribution.index.build import build_index
from longarc.attribution.index.search import scores, top
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.data.labels import LabelSpace
from longarc.data.licenses import read_licenses
from longarc.models.loading import load_classifier, load_tokenizer
from longarc.models.mean_pooled import from_encoder
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.recording.recorded_path import RecordedPath
from rows import append_row, peak_growth, spread

OURS = ("longarc", "longarc head")


def main() -> None:
    """Train once; append a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    compare = verbs.add_parser("compare")
    compare.add_argument("--model", choices=("small", "minilm"), default="small")
    compare.add_argument("--documents", type=int, default=192)
    compare.add_argument("--tokens", type=int, default=48)
    compare.add_argument("--batch", type=int, default=16)
    compare.add_argument("--steps", type=int, default=48)
    compare.add_argument("--rate", type=float, default=None)
    compare.add_argument("--queries", type=int, default=16)
    compare.add_argument("--checkpoints", type=int, default=5)
    compare.add_argument("--dimensions", type=int, default=1024)
    compare.add_argument("--peer-batch", type=int, default=32)
    compare.add_argument("--methods", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS])
    find = verbs.add_parser("search", help="the ten largest of many rows, drawn at random")
    find.add_argument("--documents", type=int, default=1_000_000)
    find.add_argument("--dimensions", type=int, default=1024)
    find.add_argument("--queries", type=int, nargs="+", default=[1, 32])
    find.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.verb == "search":
        search(chosen)
        return
    no_shortcut_for_masks()
    with tempfile.TemporaryDirectory() as folder:
        trained = train(Path(folder), chosen)
        exact, seconds = exact_contributions(trained, chosen)
        for name in chosen.methods:
            found = ours(name, trained, chosen) if name in OURS else PEERS[name](trained.task)
            correlations = [
                float(spearmanr(one, two).statistic)
                for one, two in zip(found.scores, exact, strict=True)
            ]
            append_row(
                "attribution",
                **{k: v for k, v in vars(chosen).items() if k not in ("methods", "verb")},
                method=name,
                used=[c.step for c in trained.index.checkpoints],
                trainable=trained.trainable,
                training_seconds=trained.seconds,
                exact_seconds=seconds,
                gradients=found.gradients,
                index_cpu_seconds=round(found.index_seconds, 2),
                gradients_per_second=round(found.gradients / found.index_seconds, 2),
                query_cpu_seconds=round(found.query_seconds, 2),
                bytes_per_document=round(found.bytes_per_document, 1),
                spearman=spread(correlations),
                device=str(trained.model.device),
            )


def train(folder: Path, chosen: argparse.Namespace) -> SimpleNamespace:
    """A classifier with its path, its documents, the queries, and the same as tensors."""
    number = chosen.documents
    examples = read_licenses("category", limit=number + chosen.queries)
    space = LabelSpace.from_labels(examples.labels or [])
    tokenizer = load_tokenizer("minilm")
    targets = space.encode(examples.labels or [])
    documents = Documents(examples.texts[:number], tokenizer, chosen.tokens, targets[:number])
    held_out = Documents(examples.texts[number:], tokenizer, chosen.tokens)
    collate = PaddedBatches(tokenizer, chosen.tokens)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    if chosen.model == "minilm":
        model = load_classifier("minilm", labels=space.names, attn_implementation="eager")
    else:
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=128, max_position_embeddings=128, attn_implementation="eager",
        )  # fmt: skip
        model = from_encoder(BertModel(config), num_labels=len(space.names))
    rate = chosen.rate or (1e-4 if chosen.model == "minilm" else 2e-3)
    trainer = longarc.Trainer(
        model,
        TrainingArguments(
            str(folder), per_device_train_batch_size=chosen.batch, max_steps=chosen.steps,
            learning_rate=rate, warmup_steps=0.1, weight_decay=0.01, max_grad_norm=1.0,
            use_cpu=device.type == "cpu", save_strategy="no", report_to="none", disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False, logging_steps=10_000,
        ),
        train_dataset=documents,
        data_collator=collate,
        loss=longarc.CrossEntropyLoss(),
        callbacks=[longarc.PathRecorder(folder / "path")],
    )  # fmt: skip
    started = time.process_time()
    trainer.train()
    seconds = round(time.process_time() - started, 2)
    model.eval()
    batches = [collate([held_out[i]]) for i in range(chosen.queries)]
    batches = [{k: v.to(device) for k, v in batch.items()} for batch in batches]
    with torch.no_grad():
        predicted = [int(model(**batch).logits[0].argmax()) for batch in batches]
    queries = [Query(b, measure("loss", c)) for b, c in zip(batches, predicted, strict=True)]
    trained = SimpleNamespace(
        folder=folder, model=model, documents=documents, collate=collate, queries=queries,
        path=RecordedPath(folder / "path"), seconds=seconds,
        trainable=sum(p.numel() for p in model.parameters()),
    )  # fmt: skip
    started = time.process_time()
    trained.index = build_index(
        trained.path, model, documents, collate, folder / "index",
        checkpoints=chosen.checkpoints, dimensions=chosen.dimensions,
    )  # fmt: skip
    trained.index_seconds = time.process_time() - started
    items = [held_out[i] | {"labels": np.int64(c)} for i, c in enumerate(predicted)]
    trained.task = task_of(trained, collate, items, chosen)
    return trained


def task_of(
    trained: SimpleNamespace, collate: PaddedBatches, items: list[Any], chosen: argparse.Namespace
) -> Task:
    """The same model, checkpoints, documents and queries, as the peers take them."""
    path, device = trained.path, trained.model.device

    def tensors(items: list[Any]) -> tuple[torch.Tensor, ...]:
        batch = collate(items)
        names = ("input_ids", "token_type_ids", "attention_mask", "labels")
        return tuple(batch[name].to(device) for name in names)

    plain = Plain(trained.model)
    checkpoints, rates = [], []
    for checkpoint in trained.index.checkpoints:
        weights = {k: v.detach().clone() for k, v in plain.state_dict().items()}
        for key, value in path.snapshot(checkpoint.step).items():
            if key.startswith("parameter."):
                weights[f"model.{key[len('parameter.') :]}"] = value.to(device)
        checkpoints.append(weights)
        steps = path.batches(checkpoint.first, checkpoint.after)
        rates.append(sum(batches[0].learning_rates[0] for batches in steps))
    return Task(
        model=plain,
        train=tensors([trained.documents[i] for i in range(chosen.documents)]),
        queries=tensors(items),
        checkpoints=checkpoints,
        rates=rates,
        head=[f"model.{n}" for n, _ in trained.model.named_parameters() if "classifier" in n],
        dimensions=chosen.dimensions,
        batch=chosen.peer_batch,
    )


def exact_contributions(
    trained: SimpleNamespace, chosen: argparse.Namespace
) -> tuple[np.ndarray, float]:
    """(queries, documents), and the seconds of processor time they took."""
    started = time.process_time()
    found = explain(
        trained.path, trained.model, trained.documents, trained.collate, trained.queries,
        tolerance=1e-2,
    )  # fmt: skip
    return (
        np.stack([e.contributions for e in found]),
        round(time.process_time() - started, 2),
    )


def ours(name: str, trained: SimpleNamespace, chosen: argparse.Namespace) -> Found:
    """The index of all layers, or of the head alone."""
    index, seconds = trained.index, trained.index_seconds
    if name == "longarc head":
        started = time.process_time()
        index = build_index(
            trained.path, trained.model, trained.documents, trained.collate,
            trained.folder / "head", checkpoints=chosen.checkpoints, dimensions=chosen.dimensions,
            parameters=lambda parameter: "classifier" in parameter,
        )  # fmt: skip
        seconds = time.process_time() - started
    started = time.process_time()
    found = explain_by_index(index, trained.path, trained.model, trained.queries)
    asked = time.process_time() - started
    size = sum(index.part_file(*part).stat().st_size for part in index.parts)
    scores = np.stack([e.contributions for e in found])
    return Found(scores, seconds, asked, size / chosen.documents, index.rows)


def search(chosen: argparse.Namespace) -> None:
    """How long a question takes an index of one checkpoint; a row for each number of questions."""
    number, size, part = chosen.documents, chosen.dimensions, 1024
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = {
            "step": 0, "first": 0, "after": 1, "moments": 0, "ratios": [1.0], "decay": [0.0],
            "coupled": [0.0], "documents": number,
        }  # fmt: skip
        about = {"checkpoints": [checkpoint], "part": part, "dtype": "float16"}
        index = store.create(Path(folder), about | {"documents": number, "dimensions": size})
        generator = torch.Generator().manual_seed(0)
        for step, place in index.parts:
            rows = torch.randn(index.rows_of(step, place), size, generator=generator)
            documents = np.arange(place * part, place * part + len(rows))
            index.write_part(step, place, documents, rows)
        for queries in chosen.queries:
            asked = [torch.randn(queries, size, generator=generator)]
            seconds, growth = [], []
            for _ in range(chosen.repeats):
                started = time.perf_counter()
                growth.append(
                    peak_growth(lambda asked=asked: top(scores(index, asked, size).values, 10))
                )
                seconds.append(time.perf_counter() - started)
            append_row(
                "attribution-search", documents=number, dimensions=size, queries=queries,
                threads=torch.get_num_threads(), seconds=spread(seconds),
                peak_growth_mib=max(growth), gigabytes=round(number * size * 2 / 1e9, 2),
            )  # fmt: skip


if __name__ == "__main__":
    main()
