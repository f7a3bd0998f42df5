"""Figures of a classifier on a split, with bootstrap intervals: ``M`` of docs/run-folder.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
)

from longarc.data.labels import LabelSpace
from longarc.errors import DataError
from longarc.training.bootstrap import paired_figures, resampled_figures, with_interval

BINS = 15
"""Bins of the calibration error: the number of Guo et al., 2017, arXiv 1706.04599."""

CONFUSED = 20
"""Pairs that ``confused`` lists."""

FIGURES = (
    "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "weighted_f1",
    "recall_head", "recall_mid", "recall_tail", "calibration_error",
)  # fmt: skip

COMPARED = tuple(name for name in FIGURES if name != "calibration_error")
"""What two systems are compared by: the figures that decisions alone have."""

FEWEST_DIFFERING = 6
"""Of five documents all speak for one of two equal systems with a probability of 1 in 16."""

_UNDEFINED: Any = np.nan  # scikit-learn's annotation knows only the string form
_ZERO: Any = 0


def evaluate_predictions(
    target: ArrayLike,
    prediction: ArrayLike,
    *,
    space: LabelSpace,
    probabilities: ArrayLike | None = None,
    unseen: Mapping[str, int] | None = None,
    outside: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of a model on a split, ready for JSON.

    Macro figures are means over the classes that occur in the split. A document whose class was not
    seen in training (−1) is an error: it lowers accuracy, micro and weighted F1, and the precision
    of the class that was predicted; it belongs to no class of the macro figures. In multi-label
    data each such label (``outside``) is missed: it lowers micro and weighted F1, and its document
    is no exact match. The macro figures, average precision and calibration are of known labels.

    Intervals are the 95 % percentiles of a bootstrap over documents. Where the bootstrap's own
    bias leaves the value itself outside (resampling raises the calibration error; a rare class may
    drop out of a macro mean), the interval is widened to the value. It covers the choice of
    documents, not of the training run. 1,000 resamples of 10,000 documents and 450 classes take
    about 1 s, multi-label 3 s; mean average precision uses fewer resamples where it would take
    long, see ``longarc.training.bootstrap``.

    Shapes: N documents, C classes.

    Args:
        target: (N,) class codes, −1 for a class unseen in training; multi-label (N, C) of 0 and 1.
        prediction: (N,) class codes; multi-label (N, C) of 0 and 1.
        space: the label space, for names, training counts and groups.
        probabilities: (N, C); None for a model that gives none, which has no calibration error.
            The confidence of a single-label prediction is the probability of the predicted class,
            also where another class has a higher one (adjusted decisions).
        unseen: how often each label occurs that is not in ``space``, as ``LabelSpace.unseen``.
        outside: multi-label (N,) how many such labels each document has, as ``LabelSpace.outside``;
            None: none. Single labels have −1 in ``target`` for it.
        resamples: 1,000 puts the ends of an interval within a tenth of a standard error.
        seed: of the bootstrap.

    Raises:
        DataError: shapes or values do not fit the label space, or there is no document.

    >>> space = LabelSpace(("ham", "spam"), (120, 7), multi_label=False)
    >>> found = evaluate_predictions([0, 0, 1, 1], [0, 0, 0, 1], space=space)
    >>> found["accuracy"]["value"], found["recall_tail"]["value"], found["confused"]
    (0.75, 0.5, [{'label': 'spam', 'prediction': 'ham', 'count': 1}])
    """
    truth, answer = _pair(target, prediction, space, resamples)
    chances = None if probabilities is None else _chances(probabilities, space, len(truth))

    several = space.multi_label
    per_class = _per_class(truth, answer, chances, space)
    missed = _outside(outside, len(truth)) if several else None
    values = _values(*_with_misses(truth, answer, missed), per_class)
    gaps, reliability = (None, []) if chances is None else _calibration(truth, answer, chances)
    if gaps is not None:
        values["calibration_error"] = float(np.abs(gaps.sum(axis=0)).sum() / len(truth))
    drawn = resampled_figures(
        truth,
        answer,
        groups=space.groups,
        outside=missed,
        gaps=gaps,
        scores=chances if several else None,
        resamples=resamples,
        seed=seed,
    )
    names = (*FIGURES, "mean_average_precision") if several else FIGURES
    return {
        "n": len(truth),
        **{name: with_interval(values.get(name), drawn.get(name)) for name in names},
        "per_class": per_class,
        "confused": [] if several else _confused(truth, answer, space),
        "reliability": reliability,
        "unseen_labels": {str(name): int(count) for name, count in (unseen or {}).items()},
    }


def paired_differences(
    target: ArrayLike,
    prediction: ArrayLike,
    others: Mapping[str, ArrayLike],
    *,
    space: LabelSpace,
    outside: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """How far each figure of a system is above those of others, on the same documents.

    Each resample of the bootstrap draws the same documents for all systems, so that what is hard
    or easy about a document counts for none. The interval is therefore narrower than the systems'
    own suggest: theirs may overlap where the difference is certain. It covers the choice of
    documents, not of the training run. Where two systems decide differently on fewer than
    ``FEWEST_DIFFERING`` documents there is no interval: by chance all of so few speak for one.
    Figures and arguments are those of ``evaluate_predictions``; calibration and average precision,
    which need probabilities, are left out.

    Shapes: N documents, C classes.

    Args:
        target: (N,) class codes, or (N, C) of 0 and 1.
        prediction: the same of the system that is compared.
        others: the same of each other one, by name.
        space: the label space.
        outside: (N,) labels of each document that are not in ``space``, multi-label only.
        resamples: as many as the systems' own intervals have.
        seed: of the bootstrap.

    Returns:
        For each of ``others`` the figures of ``COMPARED`` with ``value``, ``low`` and ``high``, and
        ``differing``: on how many documents the two decide differently.

    Raises:
        DataError: shapes or values do not fit the label space, or there is no document.

    >>> space = LabelSpace(("ham", "spam"), (120, 7), multi_label=False)
    >>> truth, model = [0, 0, 1, 1] * 8, [0, 0, 0, 1] * 8
    >>> found = paired_differences(truth, model, {"svm": [0, 1, 0, 1] * 8}, space=space)
    >>> found["svm"]["accuracy"], found["svm"]["differing"]
    ({'value': 0.25, 'low': 0.125, 'high': 0.40625}, 8)
    """
    truth, ours = _pair(target, prediction, space, resamples)
    theirs = [_pair(target, other, space, resamples)[1] for other in others.values()]
    systems = paired_figures(
        truth,
        [ours, *theirs],
        groups=space.groups,
        outside=_outside(outside, len(truth)) if space.multi_label else None,
        resamples=resamples,
        seed=seed,
    )
    (mine, drawn), rivals = systems[0], systems[1:]
    found: dict[str, dict[str, Any]] = {}
    for name, other, (value, resampled) in zip(others, theirs, rivals, strict=True):
        apart = ours != other
        differing = int(apart.any(axis=1).sum() if apart.ndim == 2 else apart.sum())
        found[name] = {"differing": differing}
        for figure in COMPARED:
            gap = _number(mine[figure] - value[figure])
            enough = differing >= FEWEST_DIFFERING
            less = drawn[figure] - resampled[figure] if enough else None
            found[name][figure] = with_interval(gap, less)
    return found


def _pair(
    target: ArrayLike, prediction: ArrayLike, space: LabelSpace, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    truth = _codes(target, space, "target", lowest=-1)
    answer = _codes(prediction, space, "prediction", lowest=0)
    if len(truth) != len(answer):
        raise DataError(
            f"There are {len(answer)} predictions for {len(truth)} documents. Expected one each."
        )
    if resamples < 1:
        raise DataError(f"Found {resamples} resamples. Expected at least 1.")
    return truth, answer


def _codes(found: ArrayLike, space: LabelSpace, what: str, *, lowest: int) -> np.ndarray:
    """(N,) int64 within the space, or (N, C) bool."""
    array = np.asarray(found)
    classes = len(space.names)
    if space.multi_label:
        if array.ndim != 2 or array.shape[1] != classes:
            raise DataError(
                f"The {what} has shape {array.shape}. Expected (N, {classes}): a row of 0 and 1 "
                "for each document, a column for each label."
            )
        fits = np.isin(array, (0, 1))
        expected = "0 and 1 only; threshold probabilities first"
    else:
        if array.ndim != 1:
            raise DataError(
                f"The {what} has shape {array.shape}. Expected (N,): a class code for each "
                "document; take the argmax of scores first."
            )
        fits = np.isin(array, np.arange(lowest, classes))
        expected = f"whole numbers from {lowest} to {classes - 1}, codes of the label space"
    if not len(array):
        raise DataError(f"The {what} is empty. Expected at least one document.")
    if not fits.all():
        odd = array[~fits].tolist()
        raise DataError(
            f"The {what} holds {len(odd)} values such as {odd[0]!r}. Expected {expected}."
        )
    return array.astype(bool if space.multi_label else np.int64)


def _outside(found: ArrayLike | None, documents: int) -> np.ndarray:
    numbers = np.zeros(documents, np.int64) if found is None else np.asarray(found)
    if numbers.shape != (documents,) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise DataError(
            f"The labels outside the space are {numbers.dtype} of shape {numbers.shape}. Expected "
            f"({documents},): how many each document has, as LabelSpace.outside counts them."
        )
    return numbers


def _with_misses(
    truth: np.ndarray, answer: np.ndarray, missed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both with a column more for each further label of a document that nothing can predict."""
    if missed is None:
        return truth, answer
    further = np.arange(missed.max()) < missed[:, None]
    return np.hstack([truth, further]), np.hstack([answer, np.zeros_like(further)])


def _chances(found: ArrayLike, space: LabelSpace, documents: int) -> np.ndarray:
    chances = np.asarray(found, dtype=np.float64)
    if chances.shape != (documents, len(space.names)):
        raise DataError(
            f"The probabilities have shape {chances.shape}. Expected ({documents}, "
            f"{len(space.names)}): a row for each document, a column for each class."
        )
    # Half precision may round a probability to slightly above 1.
    if not (np.isfinite(chances).all() and chances.min() >= 0 and chances.max() <= 1.01):
        raise DataError(
            f"The probabilities go from {chances.min()} to {chances.max()}. Expected numbers "
            "from 0 to 1; apply softmax or a sigmoid to logits first. NaN means that the model "
            "broke down in training."
        )
    return chances.clip(0, 1)


def _per_class(
    truth: np.ndarray, answer: np.ndarray, chances: np.ndarray | None, space: LabelSpace
) -> list[dict[str, Any]]:
    """A row a class, in the order of the space; None for what a class without documents lacks."""
    codes = np.arange(len(space.names))
    # Arrays, since average is None; the annotation has floats too.
    precision, recall, f1, support = map(
        np.asarray,
        precision_recall_fscore_support(
            truth, answer, labels=codes, average=None, zero_division=_UNDEFINED
        ),
    )
    rows = [
        {
            "label": space.names[code],
            "group": space.groups[code],
            "train_count": int(space.counts[code]),
            "support": int(support[code]),
            "precision": _number(precision[code]),
            "recall": _number(recall[code]),
            "f1": _number(f1[code]),
        }
        for code in codes
    ]
    if space.multi_label:
        for code, row in enumerate(rows):
            row["average_precision"] = (
                _number(average_precision_score(truth[:, code], chances[:, code]))
                if chances is not None and row["support"]
                else None
            )
    return rows


def _values(
    truth: np.ndarray, answer: np.ndarray, per_class: list[dict[str, Any]]
) -> dict[str, float | None]:
    seen = [row for row in per_class if row["support"]]
    groups = {g: [row for row in seen if row["group"] == g] for g in ("head", "mid", "tail")}
    weighted = f1_score(truth, answer, average="weighted", zero_division=_ZERO)
    micro = f1_score(truth, answer, average="micro", zero_division=_UNDEFINED)
    return {
        "accuracy": float(accuracy_score(truth, answer)),
        "balanced_accuracy": _mean_of(seen, "recall"),
        "macro_f1": _mean_of(seen, "f1"),
        "micro_f1": _number(micro),
        # In a multi-label split without any label there is nothing to weigh by.
        "weighted_f1": _number(weighted) if truth.ndim == 1 or truth.any() else None,
        **{f"recall_{group}": _mean_of(rows, "recall") for group, rows in groups.items()},
        "mean_average_precision": _mean_of(seen, "average_precision"),
    }


def _mean_of(rows: list[dict[str, Any]], key: str) -> float | None:
    found = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(found)) if found else None


def _calibration(
    truth: np.ndarray, answer: np.ndarray, chances: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Gaps (N, B) between confidence and correctness, and the bins' contents.

    The expected calibration error is Σ_b |Σ_i gap(i, b)| / N. Bins are equally wide, closed below.
    """
    documents = len(truth)
    if truth.ndim == 2:
        confidence, correct = chances, truth.astype(float)
    else:
        confidence = chances[np.arange(documents), answer][:, None]
        correct = (truth == answer)[:, None].astype(float)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    flat = (bins + BINS * np.arange(documents)[:, None]).ravel()
    differences = (confidence - correct).ravel() / confidence.shape[1]
    gaps = np.bincount(flat, weights=differences, minlength=documents * BINS)

    held = np.bincount(bins.ravel(), minlength=BINS)
    confidences = np.bincount(bins.ravel(), weights=confidence.ravel(), minlength=BINS)
    hits = np.bincount(bins.ravel(), weights=correct.ravel(), minlength=BINS)
    reliability = [
        {
            "low": b / BINS,
            "high": (b + 1) / BINS,
            "n": int(held[b]),
            "confidence": float(confidences[b] / held[b]) if held[b] else None,
            "accuracy": float(hits[b] / held[b]) if held[b] else None,
        }
        for b in range(BINS)
    ]
    return gaps.reshape(documents, BINS), reliability


def _confused(truth: np.ndarray, answer: np.ndarray, space: LabelSpace) -> list[dict[str, Any]]:
    """The most frequent wrong pairs; equals in the order of the space."""
    wrong = (truth != answer) & (truth >= 0)
    pairs, counts = np.unique(
        np.stack([truth[wrong], answer[wrong]], axis=1), axis=0, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:CONFUSED]
    return [
        {"label": space.names[a], "prediction": space.names[b], "count": int(count)}
        for (a, b), count in zip(pairs[order], counts[order], strict=True)
    ]


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
