"""From logits to figures and to the table of predictions."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longarc.data.examples import Examples
from longarc.data.labels import LabelSpace
from longarc.files import whole_file
from longarc.training.metrics import evaluate_predictions
from longarc.training.prediction import confidence, decisions, probabilities

if TYPE_CHECKING:
    from longarc.objectives.losses.contract import Loss

# scikit-learn's annotations know only strings here.
_ZERO: Any = 0
_EACH: Any = None

EXCERPT = 500
"""Characters of a text that predictions.parquet keeps, for the report to show."""


def score(
    examples: Examples, space: LabelSpace, logits: np.ndarray, *, loss: Loss | None = None
) -> dict[str, Any]:
    """The figures ``M`` of docs/run-folder.md for logits (N, C).

    ``loss`` is what reads probabilities off the logits, see ``probabilities``.
    """
    several = space.multi_label
    return evaluate_predictions(
        space.encode(examples.labels or []),
        decisions(logits, multi_label=several),
        space=space,
        probabilities=probabilities(logits, multi_label=several, loss=loss),
        unseen=space.unseen(examples.labels or []),
        outside=space.outside(examples.labels or []),
    )


def score_decisions(examples: Examples, space: LabelSpace, predicted: np.ndarray) -> dict[str, Any]:
    """The same for a model that gives decisions only, such as the linear baseline."""
    return evaluate_predictions(
        space.encode(examples.labels or []),
        predicted,
        space=space,
        unseen=space.unseen(examples.labels or []),
        outside=space.outside(examples.labels or []),
    )


def macro_f1(target: np.ndarray, predicted: np.ndarray) -> float:
    """Macro-F1 over the classes that occur in ``target``; rows of class −1 or −100 do not count.

    0 if no class occurs.
    """
    from sklearn.metrics import f1_score

    if target.ndim == 2:
        present = np.flatnonzero(target.any(axis=0))
        if not len(present):
            return 0.0
        target, predicted = target.astype(int), predicted.astype(int)
        scores = f1_score(target, predicted, labels=present, average=_EACH, zero_division=_ZERO)
        return float(np.mean(scores))
    known = target >= 0
    if not known.any():
        return 0.0
    present = np.unique(target[known])
    scores = f1_score(
        target[known], predicted[known], labels=present, average=_EACH, zero_division=_ZERO
    )
    return float(np.mean(scores))


def validation_metrics(evaluated: Any) -> dict[str, float]:
    """Macro-F1, which chooses the best checkpoint, and accuracy."""
    logits, target = np.asarray(evaluated.predictions), np.asarray(evaluated.label_ids)
    predicted = decisions(logits, multi_label=target.ndim == 2)
    exact = predicted == target if target.ndim == 1 else (predicted == target).all(axis=1)
    return {"macro_f1": macro_f1(target, predicted), "accuracy": float(exact.mean())}


def write_predictions(
    path: Path,
    space: LabelSpace,
    parts: list[tuple[str, Examples, np.ndarray]],
    *,
    loss: Loss | None = None,
) -> None:
    """Write ``predictions.parquet``; ``parts`` are (split, examples, logits (N, C)).

    ``loss`` is what reads probabilities off the logits, see ``probabilities``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = pa.list_(pa.string()) if space.multi_label else pa.string()
    schema = pa.schema(
        {
            "split": pa.string(), "row": pa.int64(), "text_sha256": pa.string(),
            "excerpt": pa.string(), "label": name, "prediction": name,
            "confidence": pa.float32(), "probabilities": pa.list_(pa.float32()),
        }
    )  # fmt: skip
    with (
        whole_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as out,
    ):
        for split, examples, logits in parts:
            several = space.multi_label
            chances = probabilities(logits, multi_label=several, loss=loss)
            columns = {
                "split": [split] * len(examples),
                "row": examples.rows,
                "text_sha256": [short_hash(text) for text in examples.texts],
                "excerpt": [text[:EXCERPT] for text in examples.texts],
                "label": examples.labels,
                "prediction": space.decode(decisions(logits, multi_label=several)),
                "confidence": confidence(chances, multi_label=several).astype(np.float32),
                "probabilities": list(chances.astype(np.float32)),
            }
            out.write_table(pa.table(columns, schema=schema))


def short_hash(text: str) -> str:
    """What ``predictions.parquet`` knows a text by."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
