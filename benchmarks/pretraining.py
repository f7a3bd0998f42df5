"""What pretraining on unlabelled documents costs a step, and what it brings where labels are few.

    python benchmarks/pretraining.py step [--rounds 9]
    python benchmarks/pretraining.py few-labels --task licence-categories [--seeds 0 1 2]
    python benchmarks/pretraining.py few-labels --task r52 --tables TRAIN TEST

``step``: seconds of one whole step of SimCSE (both views forward, backward, AdamW) on MiniLM,
beside sentence-transformers' MultipleNegativesRankingLoss on the same batches, with the same
weights and dropout, interleaved; in fp32, and in bfloat16 where the machine has it. Needs
sentence-transformers.

``few-labels``: the training documents keep 1, 5 and 10 % of their labels, at least one of each
class; the smaller parts lie in the larger ones. MiniLM is adapted to the texts of all other
training documents, by each objective, and each encoder is then fine-tuned on the labelled ones
alone, with the same options and no validation split. Each row has the figures on the test
documents, their mean and extremes over the seeds, which draw test documents, labels, and all else,
and the difference to MiniLM as it is with the same seed; ``tfidf-svm`` is TF-IDF + LinearSVC on the
same labelled documents.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import longarc
from longarc.data.examples import Examples, read_examples
from longarc.data.licenses import read_licenses
from longarc.data.table_writer import table_writer
from longarc.models.loading import load_encoder, resolve_model
from longarc.models.pooled_encoder import PooledEncoder
from longarc.training.prediction import bfloat16_is_fast
from rows import append_row, spread

FIGURES = ("macro_f1", "accuracy")
PLAIN = "minilm"


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=["step", "few-labels"], default="few-labels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument(
        "--task", choices=["licence-categories", "r52"], default="licence-categories"
    )
    parser.add_argument("--tables", nargs=2, metavar=("TRAIN", "TEST"), help="for r52")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.1])
    parser.add_argument("--objectives", nargs="+", default=["simcse", "simsiam", "byol", "mlm"])
    parser.add_argument("--limit", type=int, help="so many training and as many test documents")
    parser.add_argument("--pretrain-options", type=json.loads, default={}, help="as JSON")
    parser.add_argument("--train-options", type=json.loads, default={}, help="as JSON")
    chosen = parser.parse_args()
    if chosen.what == "step":
        step(chosen.rounds, chosen.batch, chosen.tokens)
    elif chosen.task == "r52" and not chosen.tables:
        parser.error("--task r52 needs --tables TRAIN TEST")
    else:
        few_labels(chosen)


def step(rounds: int, batch: int, tokens: int) -> None:
    """Seconds and ratios of a step, the first round to warm up."""
    kinds = {"fp32": False} | ({"bf16": True} if bfloat16_is_fast(torch.device("cpu")) else {})
    for precision, bf16 in kinds.items():
        steps = {"longarc": _our_step(), "sentence-transformers": _their_step()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        losses: dict[str, float] = {}
        for turn in range(rounds + 1):
            torch.manual_seed(turn)
            shape = (batch, tokens)
            views = [
                {
                    "input_ids": torch.randint(1000, 30000, shape),
                    "attention_mask": torch.ones(shape, dtype=torch.long),
                }
                for _ in range(2)
            ]
            order = list(steps) if turn % 2 else list(reversed(steps))
            for name in order:
                torch.manual_seed(turn)  # the same dropout
                start = time.perf_counter()
                losses[name] = steps[name](views, bf16)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        ours, theirs = seconds.values()
        append_row(
            "pretraining-step",
            precision=precision,
            ratio=spread([a / b for a, b in zip(ours, theirs, strict=True)]),
            seconds={name: spread(times) for name, times in seconds.items()},
            last_losses={name: round(loss, 4) for name, loss in losses.items()},
            documents=batch,
            tokens=tokens,
            threads=torch.get_num_threads(),
        )


def _our_step() -> Any:
    objective = longarc.SimCLR(
        PooledEncoder(load_encoder("minilm")), temperature=0.05, negatives="other"
    ).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5)

    def run(views: list[dict[str, torch.Tensor]], bf16: bool) -> float:
        with _autocast(bf16):
            loss = objective(*views).loss
        return _descend(loss, optimizer)

    return run


def _their_step() -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(resolve_model("minilm"), device="cpu")
    if hasattr(model[0].auto_model, "pooler"):
        model[0].auto_model.pooler = None  # ours has none either
    objective = MultipleNegativesRankingLoss(model, scale=20.0).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5)

    def run(views: list[dict[str, torch.Tensor]], bf16: bool) -> float:
        with _autocast(bf16):
            loss = objective([dict(view) for view in views], None)
        return _descend(loss, optimizer)

    return run


def _descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _autocast(bf16: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()


def few_labels(chosen: argparse.Namespace) -> None:
    """Adapt and fine-tune for each seed."""
    found: dict[tuple[float, str], list[dict[str, float]]] = {}
    for seed in chosen.seeds:
        train, test = _documents(chosen, seed)
        parts = labelled_parts(train.labels or [], chosen.shares, seed)
        rest = np.setdiff1d(np.arange(len(train)), parts[max(chosen.shares)])
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            _write(folder / "rest.parquet", train.select(rest.tolist()))
            _write(folder / "test.parquet", test)
            starts = {PLAIN: PLAIN}
            minutes = {PLAIN: 0.0}
            for objective in chosen.objectives:
                began = time.perf_counter()
                try:
                    run = longarc.pretrain(
                        folder / "rest.parquet", text="text", objective=objective, seed=seed,
                        out=folder / objective, **chosen.pretrain_options,
                    )  # fmt: skip
                except longarc.ModelError as error:  # a collapse is a finding too
                    print(chosen.task, seed, objective, error, flush=True)
                    continue
                starts[objective] = str(run.model)
                minutes[objective] = (time.perf_counter() - began) / 60
            for share, part in parts.items():
                _write(folder / "labelled.parquet", train.select(part.tolist()))
                for name, model in starts.items():
                    options = {
                        "loss": "logit-adjusted", "epochs": 10, "max_length": 128,
                        "learning_rate": 1e-4, **chosen.train_options,
                    }  # fmt: skip
                    run = longarc.fit(
                        folder / "labelled.parquet", test=str(folder / "test.parquet"),
                        text="text", label="label", model=model, validation_fraction=0.0,
                        seed=seed, out=folder / "run", overwrite=True, verbose=False, **options,
                    )  # fmt: skip
                    measured = run.metrics["test"]
                    figures = {f: measured["model"][f]["value"] for f in FIGURES}
                    figures |= {"documents": len(part), "minutes": minutes[name]}
                    found.setdefault((share, name), []).append(figures)
                    systems = {f"probe of {name}": "frozen-probe"}
                    if name == PLAIN:
                        systems["tfidf-svm"] = "tfidf-svm"
                    for system, baseline in systems.items():
                        if baseline in measured["baselines"]:
                            values = measured["baselines"][baseline]
                            found.setdefault((share, system), []).append(
                                {f: values[f]["value"] for f in FIGURES}
                                | {"documents": len(part), "minutes": minutes[name]}
                            )
                    print(chosen.task, seed, share, name, figures, flush=True)
    for (share, name), runs in found.items():
        plain = found[share, PLAIN]
        same = len(runs) == len(plain)  # not where a seed collapsed
        append_row(
            "pretraining-few-labels", task=chosen.task, share=share, start=name,
            **{f: _over_seeds([run[f] for run in runs]) for f in FIGURES},
            gain={f: _over_seeds([r[f] - p[f] for r, p in zip(runs, plain, strict=True)])
                  for f in FIGURES} if same else None,
            labelled=_over_seeds([run["documents"] for run in runs]),
            pretrain_minutes=_over_seeds([run["minutes"] for run in runs]),
            limit=chosen.limit, seeds=chosen.seeds, pretrain_options=chosen.pretrain_options,
            train_options=chosen.train_options,
        )  # fmt: skip


def _documents(chosen: argparse.Namespace, seed: int) -> tuple[Examples, Examples]:
    """Training and test documents: R52's split, or three quarters and one of the licence texts."""
    random = np.random.default_rng(seed)
    if chosen.task == "r52":
        train, test = (read_examples(table)[0] for table in chosen.tables)
        orders = [random.permutation(len(part)) for part in (train, test)]
    else:
        train = test = read_licenses("category")
        order = random.permutation(len(train))
        orders = [order[len(order) // 4 :], order[: len(order) // 4]]
    kept = [np.sort(order[: chosen.limit]).tolist() for order in orders]
    return train.select(kept[0]), test.select(kept[1])


def labelled_parts(
    labels: Sequence[Any], shares: Sequence[float], seed: int
) -> dict[float, np.ndarray]:
    """For each share the indices of the documents that keep their label, in nested parts."""
    random = np.random.default_rng([seed, 1])
    order = random.permutation(len(labels))
    first: dict[Any, int] = {}
    for i in order:
        first.setdefault(labels[i], int(i))
    one_each = set(first.values())
    queue = [*one_each, *(int(i) for i in order if int(i) not in one_each)]
    return {
        share: np.array(queue[: max(len(one_each), round(share * len(labels)))])
        for share in sorted(shares)
    }


def _write(path: Path, part: Examples) -> None:
    with table_writer(path) as write:
        write({"text": part.texts, "label": part.labels or []})


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.mean(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


if __name__ == "__main__":
    main()
