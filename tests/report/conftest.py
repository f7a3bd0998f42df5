"""Real runs without an encoder: licence texts, TF-IDF and a linear classifier in its place.

Everything is written by the code that writes it after training, so the folders are what a report
meets; only the classifier is a quick one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier

from longarc.data.check import check_splits
from longarc.data.examples import Examples
from longarc.data.labels import LabelSpace
from longarc.data.licenses import read_licenses
from longarc.data.splits import make_splits
from longarc.files import write_json
from longarc.training.config import TrainConfig
from longarc.training.evaluation import macro_f1, score, score_decisions, write_predictions
from longarc.training.run_folder import create_run_folder, describe_origin, hash_texts

SCRIPT = "<script>alert(1)</script>"


def write_run(
    folder: Path,
    examples: Examples,
    *,
    epochs: int = 6,
    seed: int = 0,
    test_fraction: float = 0.15,
    baseline: bool = True,
    frozen: bool = False,
    **options,
) -> Path:
    """Train a linear classifier by stochastic gradient descent and write its run folder."""
    splits = make_splits(examples, test_fraction=test_fraction)
    space = LabelSpace.from_labels(splits.train.labels)
    from transformers import AutoConfig, AutoTokenizer

    import longarc.models.loading as loading
    from longarc.models.mean_pooled import MeanPooledConfig

    tokenizer = AutoTokenizer.from_pretrained(loading.resolve_model("minilm"))
    parts = [(name, part) for name, part in splits.items() if name != "train"]
    vectorizer = HashingVectorizer(n_features=2**14, ngram_range=(1, 2), alternate_sign=False)
    train_x = vectorizer.transform(splits.train.texts)
    part_x = {name: vectorizer.transform(part.texts) for name, part in parts}
    target = space.encode(splits.train.labels)
    rng = np.random.default_rng(seed)

    class Heads:
        """One linear layer: a multinomial one has no partial fit here, so one against the rest."""

        def __init__(self, alpha: float):
            columns = target.shape[1] if space.multi_label else 1
            self.heads = [
                SGDClassifier(loss="log_loss", alpha=alpha, random_state=seed)
                for _ in range(columns)
            ]

        def step(self, rows: np.ndarray) -> None:
            for column, head in enumerate(self.heads):
                y = target[:, column].astype(int) if space.multi_label else target
                known = [0, 1] if space.multi_label else range(len(space))
                head.partial_fit(train_x[rows], y[rows], classes=known)

        def logits(self, x) -> np.ndarray:
            if space.multi_label:
                return np.stack([head.decision_function(x) for head in self.heads], axis=1)
            return 2 * self.heads[0].decision_function(x)

    def loss(logits: np.ndarray, wanted: np.ndarray) -> float:
        if space.multi_label:
            return float(np.mean(np.logaddexp(0, -(2 * wanted - 1) * logits)))
        seen = wanted >= 0
        norm = np.logaddexp.reduce(logits[seen], axis=1)
        return float(np.mean(norm - logits[seen, wanted[seen]]))

    model, log, best = (
        Heads(2e-6),
        [{"event": "start", "steps": 0, "resumed_from": None}],
        (-1.0, 0),
    )
    batches = np.array_split(rng.permutation(len(splits.train)), 16)
    step, checked = 0, splits.validation
    for epoch in range(epochs):
        for rows in batches:
            model.step(rows)
            step += 1
            rate = 1e-4 * min(1, step / 10) * (1 - step / (epochs * 16 + 1))
            log.append(
                {"event": "train", "step": step, "epoch": round(step / 16, 3),
                 "loss": loss(model.logits(train_x[rows]), target[rows]),
                 "gradient_norm": 1.0, "learning_rate": rate}
            )  # fmt: skip
            depths = {"head": 10 * rate, "layer 0": 3 * rate, "embeddings": rate}
            log.append(
                {"event": "update", "step": step, "update_ratio": 5 * rate, "update_ratios": depths,
                 "implicit_penalty": rate / 4, "implicit_share": rate / 4 / log[-1]["loss"]}
            )  # fmt: skip
            if step % 20 == 2:
                log.append(
                    {"event": "sharpness", "step": step, "learning_rate": rate, "passes": 6,
                     "critical_learning_rate": 3e-4, "critical_sharpness": 2 / 3e-4,
                     "threshold": 2 / rate, "seconds": 1.0}
                )  # fmt: skip
        logits = model.logits(part_x["validation"])
        wanted = space.encode(checked.labels)
        predicted = (logits > 0).astype(int) if space.multi_label else logits.argmax(axis=1)
        quality = macro_f1(wanted, predicted)
        best = max(best, (quality, step))
        log.append(
            {"event": "validation", "step": step, "epoch": epoch + 1.0,
             "loss": loss(logits, wanted), "macro_f1": quality,
             "accuracy": float((wanted == predicted).mean())}
        )  # fmt: skip
    log.append({"event": "end", "step": step, "best_step": best[1], "seconds": 190.0})

    usual = {"data": "licences.csv", "text": "text", "label": "category", "max_length": 256}
    config = TrainConfig(
        out=str(folder), freeze=frozen, baseline=baseline, seed=seed, **(usual | options)
    )
    texts = [text for _, part in splits.items() for text in part.texts]
    origin = describe_origin(hash_texts(texts), encoder="BertModel", parameters=22713216)
    create_run_folder(config, {**origin, "command": f"longarc train {config.data} --out {folder}"})
    space.save(folder / "labels.json")
    encoder = AutoConfig.from_pretrained(loading.resolve_model("minilm"))
    MeanPooledConfig(encoder=encoder).save_pretrained(folder / "model")
    check = check_splits(splits, space, tokenizer=tokenizer, max_length=256)
    write_json(folder / "check.json", check.to_dict())
    if not frozen:
        lines = "".join(json.dumps({**record, "time": 1e9}) + "\n" for record in log)
        (folder / "log.jsonl").write_text(lines, encoding="utf-8")

    weak = Heads(2e-4)
    if baseline:
        weak.step(np.arange(len(splits.train)))
    metrics = {}
    predicted_parts = []
    for name, part in parts:
        logits = model.logits(part_x[name])
        metrics[name] = {"model": score(part, space, logits), "baselines": {}}
        if baseline:
            plain = weak.logits(part_x[name])
            predicted = (plain > 0).astype(int) if space.multi_label else plain.argmax(axis=1)
            metrics[name]["baselines"] = {
                "tfidf-svm": score_decisions(part, space, predicted),
                "frozen-probe": score(part, space, 0.5 * plain),
            }
        predicted_parts.append((name, part, logits))
    metrics["seconds"] = {"prepare": 3.1, "baseline": 5.0, "training": 190.0, "evaluation": 12.3}
    write_json(folder / "metrics.json", metrics)
    write_predictions(folder / "predictions.parquet", space, predicted_parts)
    return folder


@pytest.fixture(scope="session")
def licences() -> Examples:
    """1,500 licence texts with their category, cut at 4,000 characters to be quick."""
    found = read_licenses("category", limit=1500)
    return Examples(found.source, [t[:4000] for t in found.texts], found.labels, found.rows)


@pytest.fixture(scope="session")
def build_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory, licences) -> Path:
    """A single-label run on 11 categories with all parts; tests copy what they change."""
    return write_run(tmp_path_factory.mktemp("runs") / "licences", licences)


@pytest.fixture(scope="session")
def multi_label_run(tmp_path_factory, licences) -> Path:
    """Several properties a text: its category, and what its words mention."""
    words = {"warranty": "warrant", "patents": "patent", "trademarks": "trademark", "gpl": "gnu"}
    labels = [
        [label] * (label != "Unstated License")
        + [name for name, word in words.items() if word in text.lower()]
        for text, label in zip(licences.texts, licences.labels, strict=True)
    ]
    several = Examples(licences.source, licences.texts, labels, licences.rows)
    folder = tmp_path_factory.mktemp("runs") / "properties"
    return write_run(folder, several, loss="multilabel-softmax")


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory, licences) -> Path:
    """Markup wherever a value of the user's reaches the page."""
    labels = [f"{SCRIPT} {name}" for name in licences.labels]
    texts = [f"{SCRIPT}\x00<img src=x onerror=alert(2)> {text}" for text in licences.texts]
    hostile = Examples(licences.source, texts[:600], labels[:600], licences.rows[:600])
    folder = tmp_path_factory.mktemp("runs") / "hostile <b> & 'co'"
    return write_run(
        folder, hostile, epochs=2, data=f"{SCRIPT}.csv", text=f"</pre>{SCRIPT}",
        model="</style><svg onload=alert(3)>",
    )  # fmt: skip
