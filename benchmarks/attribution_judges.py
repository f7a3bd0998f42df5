r"""Do attributions foretell what training without documents does? Judged by training without them.

    python benchmarks/attribution_judges.py --task digits
    python benchmarks/attribution_judges.py --task r52 --train R52TRAIN --test R52TEST
    python benchmarks/attribution_judges.py --task digits --judges mislabel

A small network is trained with a recorded path, and each method attributes the margins (the logit
of the true class less the others' log-sum-exp) of held-out examples to the training examples.
Judges:

* ``lds``: the linear datamodelling score of Park and others 2023 (arXiv 2303.14186) by
  ``dattri.metric.lds``: networks are trained on a hundred random halves of the training set, and
  the sum of the attributions to a half is ranked against the margin it gave, the mean over seeds.
* ``removal``: the margin lost when the fifty examples that a method says support it most are left
  out, less what fifty random ones cost.
* ``mislabel``: 5 % of the labels are wrong; the area under the curve with which an example's
  attribution of its own margin to itself tells them, by ``dattri.metric.mislabel_detection_auc``.

Every method has the same networks. Where one has an option (TRAK's dimensions), it is chosen by
thirty halves that are not among the hundred; ``choosing`` in a row is the score on these.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from dattri.metric import lds, mislabel_detection_auc
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments, default_data_collator, get_linear_schedule_with_warmup

import longarc
from attribution_peers import Task, captum_tracin, dattri_tracin, margin, trak
from longarc.attribution.counterfactual import effects
from longarc.attribution.index.answer import explain_by_index
from longarc.attribution.index.build import build_index
from longarc.attribution.query import Query
from longarc.attribution.sweep import explain
from longarc.training.recording.recorded_path import RecordedPath
from rows import append_row, spread


@dataclass
class Problem:
    """Data, network and recipe."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    build: Callable[[], nn.Module]
    classes: int
    epochs: int
    batch: int
    rate: float


class Bag(nn.Module):
    """A small text encoder: the mean of word vectors, and two layers."""

    def __init__(self, words: int, width: int, hidden: int, classes: int):
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.hidden = nn.Linear(width, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n) → (b, C)."""
        known = (x != 0).to(self.hidden.weight)[..., None]
        mean = (self.words(x) * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        return self.classifier(nn.functional.gelu(self.hidden(mean)))


class WithLogits(nn.Module):
    """Names the output, as trainers like it."""

    def __init__(self, net: nn.Module, classes: int):
        super().__init__()
        self.net = net
        self.config = SimpleNamespace(num_labels=classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(b, …) → logits (b, C)."""
        return {"logits": self.net(x)}


class Pairs(Dataset[dict[str, Tensor]]):
    """Inputs with labels."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "labels": self.y[i]}


def digits(chosen: argparse.Namespace) -> Problem:
    """scikit-learn's digits, 8 × 8 pixels, and a perceptron with one hidden layer."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order])
    n, q = chosen.documents or 1000, chosen.queries

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))

    return Problem("digits", x[:n], y[:n], x[n : n + q], y[n : n + q], build, 10, 20, 50, 1e-2)


def r52(chosen: argparse.Namespace) -> Problem:
    """Reuters R52 and a bag of word vectors, both cut to a size that trains in a second."""
    import pyarrow.parquet as pq

    from longarc.models.loading import load_tokenizer

    tables = [pq.read_table(file).to_pydict() for file in (chosen.train, chosen.test)]
    n, q, words, length = chosen.documents or 1500, chosen.queries, 2000, 64
    names = sorted(set(tables[0]["label"]))
    picked = []
    for table, number, seed in zip(tables, (n, q), (0, 1), strict=True):
        some = np.random.default_rng(seed).permutation(len(table["text"]))[:number]
        picked.append(([table["text"][i] for i in some], [table["label"][i] for i in some]))
    tokenizer = load_tokenizer("minilm")
    ids = [
        tokenizer(texts, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
        for texts, _ in picked
    ]
    counts = Counter(i for each in ids[0] for i in each)
    known = {i: place + 1 for place, (i, _) in enumerate(counts.most_common(words - 1))}
    tensors = []
    for rows, (_, labels) in zip(ids, picked, strict=True):
        x = torch.zeros(len(rows), length, dtype=torch.long)
        for row, each in enumerate(rows):
            kept = [known[i] for i in each if i in known]
            x[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        tensors += [x, torch.tensor([names.index(label) for label in labels])]

    def build() -> nn.Module:
        return Bag(words, 32, 64, len(names))

    return Problem("r52", *tensors, build, len(names), 12, 50, 1e-2)


TASKS: dict[str, Callable[[argparse.Namespace], Problem]] = {"digits": digits, "r52": r52}


def main() -> None:
    """Run the judges asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--train", help="R52's training table")
    parser.add_argument("--test", help="R52's test table")
    parser.add_argument("--judges", nargs="+", default=["lds", "removal", "mislabel"])
    parser.add_argument("--documents", type=int, help="training examples")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3, help="trainings for each subset")
    parser.add_argument("--ensemble", type=int, default=50, help="networks of TRAK's ensemble")
    parser.add_argument("--recorded", type=int, default=5, help="of them longarc's, recorded")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[128, 256, 512], help="TRAK's")
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--removed", type=int, default=20, help="queries that removal judges")
    parser.add_argument("--methods", nargs="+", help="only these rows")
    chosen = parser.parse_args()
    if chosen.task == "r52" and not (chosen.train and chosen.test):
        parser.error("--task r52 needs --train and --test.")
    problem = TASKS[chosen.task](chosen)
    with tempfile.TemporaryDirectory() as folder:
        if {"lds", "removal"} & set(chosen.judges):
            counterfactuals(problem, Path(folder), chosen)
        if "mislabel" in chosen.judges:
            mislabel(problem, Path(folder), chosen)


# Training


def retrain(
    problem: Problem, parts: Sequence[np.ndarray], seeds: Sequence[int], together: int = 50
) -> list[dict[str, Tensor]]:
    """Train a network on each part of the training set, all parts of one size: their weights.

    It is the recipe of :func:`record`, for several networks at once.
    """
    found: list[dict[str, Tensor]] = []
    for first in range(0, len(parts), together):
        some = slice(first, first + together)
        found += _retrain(problem, torch.tensor(np.stack(parts[some])), seeds[some])
    return found


def _retrain(problem: Problem, parts: Tensor, seeds: Sequence[int]) -> list[dict[str, Tensor]]:
    started, orders = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        started.append(dict(problem.build().named_parameters()))
        orders.append(torch.stack([torch.randperm(parts.shape[1]) for _ in range(problem.epochs)]))
    order = torch.stack(orders)  # (networks, epochs, examples)
    net = problem.build()
    weights = {
        name: torch.stack([each[name].detach() for each in started]).requires_grad_()
        for name in started[0]
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights.values() if w.ndim > 2], "weight_decay": 0.01},
            {"params": [w for w in weights.values() if w.ndim < 3], "weight_decay": 0.0},
        ],
        lr=problem.rate,
    )
    steps = problem.epochs * -(-parts.shape[1] // problem.batch)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(0.1 * steps), steps)

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(net, own, (x,)), y)

    for epoch in range(problem.epochs):
        for batch in order[:, epoch].split(problem.batch, dim=1):
            rows = parts.gather(1, batch)
            optimizer.zero_grad()
            torch.vmap(loss)(weights, problem.x[rows], problem.y[rows]).sum().backward()
            grads = [w.grad for w in weights.values() if w.grad is not None]
            norm = sum(g.flatten(1).square().sum(dim=1) for g in grads) ** 0.5
            for g in grads:  # each network's own gradient is clipped
                g *= (1 / (norm + 1e-6)).clamp(max=1).view(-1, *[1] * (g.ndim - 1))
            optimizer.step()
            schedule.step()
    return [{n: w[i].detach().clone() for n, w in weights.items()} for i in range(len(seeds))]


def record(problem: Problem, folder: Path, seed: int) -> SimpleNamespace:
    """Train on everything with a recorded path."""
    torch.manual_seed(seed)
    model = WithLogits(problem.build(), problem.classes)
    data = Pairs(problem.x, problem.y)
    trainer = longarc.Trainer(
        model,
        TrainingArguments(
            str(folder), per_device_train_batch_size=problem.batch,
            num_train_epochs=problem.epochs, learning_rate=problem.rate, warmup_steps=0.1,
            weight_decay=0.01, max_grad_norm=1.0, use_cpu=True, save_strategy="no",
            report_to="none", disable_tqdm=True, remove_unused_columns=False, seed=seed,
            dataloader_pin_memory=False, logging_strategy="no",
        ),
        train_dataset=data,
        data_collator=default_data_collator,
        loss=longarc.CrossEntropyLoss(),
        callbacks=[longarc.PathRecorder(folder / "path")],
    )  # fmt: skip
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    model.eval()
    return SimpleNamespace(
        model=model, data=data, path=RecordedPath(folder / "path"), seconds=seconds, folder=folder
    )


def logits_by(problem: Problem, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """(b, C)."""
    with torch.no_grad():
        return torch.func.functional_call(problem.build(), weights, (x,))


# Methods: margins of queries → attributions (queries, examples)


def questions(x: Tensor, y: Tensor) -> list[Query]:
    return [
        Query({"x": x[i : i + 1]}, lambda logits, c=y[i]: margin(logits[None], c)[0])
        for i in range(len(x))
    ]


def exact(run: SimpleNamespace, x: Tensor, y: Tensor) -> np.ndarray:
    found = explain(
        run.path, run.model, run.data, default_data_collator, questions(x, y), tolerance=1e-2
    )
    return np.stack([e.contributions for e in found])


def by_effects(run: SimpleNamespace, x: Tensor, y: Tensor) -> np.ndarray:
    return effects(run.path, run.model, run.data, default_data_collator, questions(x, y))


def indexed(run: SimpleNamespace, x: Tensor, y: Tensor, checkpoints: int) -> np.ndarray:
    index = build_index(
        run.path, run.model, run.data, default_data_collator, run.folder / "index",
        checkpoints=checkpoints, dimensions=1024, batch_size=250,
    )  # fmt: skip
    found = explain_by_index(index, run.path, run.model, questions(x, y))
    return np.stack([e.contributions for e in found])


def peers_task(
    problem: Problem, run: SimpleNamespace, x: Tensor, y: Tensor, checkpoints: int, **more: Any
) -> Task:
    """The recorded training's checkpoints, with the step sizes that each stands for."""
    from longarc.attribution.index.plan import plan_checkpoints

    states, rates = [], []
    prefix = "parameter.net."
    for checkpoint in plan_checkpoints(run.path, checkpoints).checkpoints:
        tensors = run.path.snapshot(checkpoint.step)
        states.append({k.removeprefix(prefix): v for k, v in tensors.items() if prefix in k})
        steps = run.path.batches(checkpoint.first, checkpoint.after)
        rates.append(sum(batches[0].learning_rates[0] for batches in steps))
    return Task(
        model=run.model.net, train=(problem.x, problem.y), queries=(x, y), checkpoints=states,
        rates=rates, head=[], dimensions=512, batch=len(problem.x), margin=True, **more,
    )  # fmt: skip


@dataclass
class Attributed:
    """Attributions of one method, (queries, examples), and what they took."""

    scores: np.ndarray
    networks: int
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)


def attribute(
    problem: Problem,
    runs: Sequence[SimpleNamespace],
    finals: Sequence[dict[str, Tensor]],
    x: Tensor,
    y: Tensor,
    chosen: argparse.Namespace,
    choose: Callable[[np.ndarray], float],
) -> Iterable[tuple[str, Attributed]]:
    """The rows, one after the other. ``runs`` are recorded, ``finals`` further trained networks.

    ``choose`` gives the score by which a method's option is chosen.
    """

    def wanted(name: str) -> bool:
        return not chosen.methods or name in chosen.methods

    def mean_of(method: Callable[..., np.ndarray], some: Sequence[SimpleNamespace], *more: Any):
        started = time.process_time()
        scores = np.mean([method(run, x, y, *more) for run in some], axis=0)
        return Attributed(scores, len(some), time.process_time() - started)

    def peer(method: Callable[[Task], Any], task: Task) -> Attributed:
        started = time.process_time()
        found = method(task)
        return Attributed(-found.scores, 1, time.process_time() - started)

    first = runs[:1]
    if wanted("longarc exact"):
        yield "longarc exact", mean_of(exact, first)
    if wanted("longarc effects"):
        yield "longarc effects", mean_of(by_effects, first)
    if wanted("longarc exact, ensemble"):
        yield "longarc exact, ensemble", mean_of(exact, runs)
    if wanted("longarc indexed"):
        yield "longarc indexed", mean_of(indexed, first, chosen.checkpoints)
    if wanted("longarc indexed, ensemble"):
        yield "longarc indexed, ensemble", mean_of(indexed, runs, chosen.checkpoints)
    task = peers_task(problem, first[0], x, y, chosen.checkpoints)
    if wanted("captum TracInCP"):
        yield "captum TracInCP", peer(captum_tracin, task)
    if wanted("captum TracInCP of the loss"):
        yield "captum TracInCP of the loss", peer(captum_tracin, replace(task, margin=False))
    if wanted("dattri TracIn"):
        yield "dattri TracIn", peer(dattri_tracin, task)
    for name, nets in (("TRAK-1", finals[:1]), (f"TRAK-{len(finals)}", finals)):
        if wanted(name):
            options = []
            for dimensions in chosen.dimensions:
                more = replace(task, checkpoints=list(nets), dimensions=dimensions)
                found = peer(trak, more)
                found.networks, found.options = len(nets), {"dimensions": dimensions}
                options.append((choose(found.scores), found))
            yield name, max(options, key=lambda option: option[0])[1]
    if wanted("random"):
        scores = np.random.default_rng(0).standard_normal((len(x), len(problem.x)))
        yield "random", Attributed(scores, 0, 0.0)


# The judges


def counterfactuals(problem: Problem, folder: Path, chosen: argparse.Namespace) -> None:
    """The linear datamodelling score, and removal of the top fifty."""
    n = len(problem.x)
    x, y = problem.test_x, problem.test_y
    networks = list(range(1000, 1000 + chosen.ensemble))
    finals = retrain(problem, [np.arange(n)] * len(networks), networks)
    runs = [record(problem, folder / str(i), i) for i in networks[: chosen.recorded]]
    logits = logits_by(problem, finals[0], x)
    accuracy = float((logits.argmax(dim=1) == y).double().mean())
    random = np.random.default_rng(5)
    halves = [np.sort(random.permutation(n)[: n // 2]) for _ in range(chosen.subsets + 30)]
    started = time.process_time()
    truth = mean_margins(problem, halves, chosen.seeds)
    retraining = time.process_time() - started
    indices = torch.tensor(np.stack(halves))
    judged, others = slice(0, chosen.subsets), slice(chosen.subsets, None)

    def score(scores: np.ndarray, some: slice) -> Tensor:
        found, _ = lds(torch.tensor(scores.T), (truth[some].double(), indices[some]))
        return found

    removed = (logits.argmax(dim=1) == y).nonzero()[: chosen.removed, 0].tolist()
    whole = mean_margins(problem, [np.arange(n)], chosen.seeds * 5)[0, removed].numpy()
    baseline: np.ndarray | None = None
    about = {
        "task": problem.name, "documents": n, "queries": len(x), "seeds": chosen.seeds,
        "parameters": sum(p.numel() for p in finals[0].values()), "accuracy": accuracy,
        "epochs": problem.epochs, "batch": problem.batch, "rate": problem.rate,
        "steps": runs[0].path.end, "checkpoints": chosen.checkpoints, "subsets": chosen.subsets,
        "recording_cpu_seconds": round(runs[0].seconds, 2),
        "retraining_cpu_seconds": round(retraining, 1),
    }  # fmt: skip
    if "removal" in chosen.judges:
        baseline = fall_without(problem, random_fifties(n, len(removed)), removed, whole, chosen)
        append_row("attribution-removal", **about, method="random", **falls(baseline, None))
    choose = lambda scores: float(score(scores, others).mean())  # noqa: E731
    for name, found in attribute(problem, runs, finals, x, y, chosen, choose):
        more = {
            **about, "method": name, "networks": found.networks, "options": found.options,
            "cpu_seconds": round(found.seconds, 2),
        }  # fmt: skip
        if "lds" in chosen.judges:
            each = score(found.scores, judged)
            append_row(
                "attribution-lds", **more, lds=round(float(each.mean()), 4),
                standard_error=round(float(each.std() / len(each) ** 0.5), 4),
                spread=spread(each.tolist()), choosing=round(choose(found.scores), 4),
            )  # fmt: skip
        if baseline is not None and name != "random":
            top = [np.argsort(-found.scores[i], kind="stable")[:50] for i in removed]
            fall = fall_without(problem, top, removed, whole, chosen)
            append_row("attribution-removal", **more, **falls(fall, baseline))


def mean_margins(problem: Problem, parts: Sequence[np.ndarray], seeds: int) -> Tensor:
    """(parts, q): margins of the queries after training on each part, the mean over seeds."""
    repeated = [part for part in parts for _ in range(seeds)]
    nets = retrain(problem, repeated, list(range(seeds)) * len(parts))
    found = [margin(logits_by(problem, net, problem.test_x), problem.test_y) for net in nets]
    return torch.stack(found).view(len(parts), seeds, -1).mean(dim=1)


def random_fifties(examples: int, number: int) -> list[np.ndarray]:
    random = np.random.default_rng(9)
    return [random.permutation(examples)[:50] for _ in range(number)]


def fall_without(
    problem: Problem,
    left_out: Sequence[np.ndarray],
    queries: Sequence[int],
    whole: np.ndarray,
    chosen: argparse.Namespace,
) -> np.ndarray:
    """How far each query's margin falls without its fifty examples."""
    rest = [np.setdiff1d(np.arange(len(problem.x)), some) for some in left_out]
    found = mean_margins(problem, rest, chosen.seeds)
    return whole - found[range(len(queries)), list(queries)].numpy()


def falls(fall: np.ndarray, baseline: np.ndarray | None) -> dict[str, Any]:
    """The mean fall with its standard error, and how often it is larger than random's."""
    found: dict[str, Any] = {
        "fall": round(float(fall.mean()), 3),
        "fall_standard_error": round(float(fall.std(ddof=1) / len(fall) ** 0.5), 3),
        "removed": 50,
        "judged": len(fall),
    }
    if baseline is not None:
        found["above_random"] = round(float((fall > baseline).mean()), 3)
    return found


def mislabel(problem: Problem, folder: Path, chosen: argparse.Namespace) -> None:
    """Give 5 % of the examples a wrong label; who attributes most to itself."""
    n = len(problem.x)
    random = np.random.default_rng(7)
    wrong = np.zeros(n, dtype=bool)
    wrong[random.permutation(n)[: n // 20]] = True
    shift = torch.from_numpy(random.integers(1, problem.classes, n) * wrong)
    flipped = replace(problem, y=(problem.y + shift) % problem.classes)
    run = record(flipped, folder / "flipped", 0)
    x, y = flipped.x, flipped.y

    def row(name: str, own: np.ndarray, seconds: float) -> None:
        auc, _ = mislabel_detection_auc(torch.from_numpy(own), torch.from_numpy(wrong))
        append_row(
            "attribution-mislabel", task=problem.name, documents=n, wrong=int(wrong.sum()),
            steps=run.path.end, epochs=problem.epochs, method=name, auc=round(float(auc), 4),
            cpu_seconds=round(seconds, 2),
        )  # fmt: skip

    def no_choice(_: np.ndarray) -> float:
        return 0.0

    finals = [dict(run.model.net.state_dict())]
    for name, found in attribute(flipped, [run], finals, x, y, chosen, no_choice):
        if "ensemble" not in name:
            row(name, np.diag(found.scores).copy(), found.seconds)
    started = time.process_time()
    loss = -margin(logits_by(problem, finals[0], x), y).numpy()
    row("loss after training", loss, time.process_time() - started)


if __name__ == "__main__":
    main()
