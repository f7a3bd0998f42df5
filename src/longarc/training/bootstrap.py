"""The bootstrap of classification figures: the same figures on resampled documents, vectorised.

Efron, 1979, "Bootstrap methods: another look at the jackknife". A resample draws N documents with
replacement. Shapes: R resamples, N documents, C classes, B bins of the confidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

CHUNK = 4_000_000
"""Entries of a chunk of resamples (r, N): some 150 MB with all that is made from it."""

RANKING_WORK = 2_000_000_000
"""Entries that average precision may read: some seconds on one core. See ``resampled_figures``."""

FEWEST = 200
"""Resamples that average precision always gets."""


def resampled_figures(
    target: np.ndarray,
    prediction: np.ndarray,
    *,
    groups: Sequence[str],
    outside: np.ndarray | None = None,
    gaps: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Figures (R,) by name; NaN where a resample has no such figure (no tail class was drawn).

    Macro figures are means over the classes that occur in the resample.

    Average precision has to rank anew for each class and resample. Only positives change recall, so
    documents that rank below a class's last positive are left out, exactly; 1,000 resamples of
    10,000 documents and 450 well ranked labels take some 2 s. Where the work would exceed
    ``RANKING_WORK`` entries, mean average precision uses the first resamples only, at least 200.

    Args:
        target: (N,) int, −1 for a class outside the space; or (N, C) bool.
        prediction: (N,) int; or (N, C) bool.
        groups: (C,) of ``head``, ``mid`` and ``tail``.
        outside: (N,) how many labels outside the space each document has besides, where ``target``
            is (N, C); None: none. They are missed: see ``figures_from_counts``.
        gaps: (N, B) sums of confidence − correctness in each bin, divided by the number of
            predictions of a document; None leaves out ``calibration_error``.
        scores: (N, C) that rank the documents of each label; None leaves out
            ``mean_average_precision``.
    """
    documents = len(target)
    counted = _Decisions(target, prediction, groups, outside)
    rankings = [] if scores is None else _rankings(target, scores)
    work = sum(len(order) for order, *_ in rankings)
    ranked = min(resamples, max(FEWEST, RANKING_WORK // max(work, 1)))

    parts: list[dict[str, np.ndarray]] = []
    done = 0
    for drawn in _draws(documents, resamples, seed):
        weights = _tally(drawn, documents).astype(np.float32)
        part = counted.figures(drawn, weights)
        if gaps is not None:
            part["calibration_error"] = np.abs(weights @ gaps).sum(axis=1) / documents
        if scores is not None and done < ranked:
            some = np.ascontiguousarray(weights[: ranked - done].T)
            part["mean_average_precision"] = _mean_average_precision(rankings, some)
        parts.append(part)
        done += len(drawn)
    return {
        name: np.concatenate([part[name] for part in parts if name in part]) for name in parts[0]
    }


def paired_figures(
    target: np.ndarray,
    predictions: Sequence[np.ndarray],
    *,
    groups: Sequence[str],
    outside: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """The figures of several systems, observed and (R,) on resamples, the same ones for all.

    Arguments and figures are those of ``resampled_figures``, without what needs probabilities.
    """
    documents = len(target)
    systems = [_Decisions(target, prediction, groups, outside) for prediction in predictions]
    every = np.arange(documents)[None]
    once = np.ones((1, documents), np.float32)
    observed = [
        {name: float(value[0]) for name, value in system.figures(every, once).items()}
        for system in systems
    ]
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in systems]
    for drawn in _draws(documents, resamples, seed):
        weights = _tally(drawn, documents).astype(np.float32)
        for part, system in zip(parts, systems, strict=True):
            part.append(system.figures(drawn, weights))
    resampled = [
        {name: np.concatenate([each[name] for each in part]) for name in part[0]} for part in parts
    ]
    return list(zip(observed, resampled, strict=True))


class _Decisions:
    """What one system decided, as counts that any selection of the documents can be summed of."""

    def __init__(
        self,
        target: np.ndarray,
        prediction: np.ndarray,
        groups: Sequence[str],
        outside: np.ndarray | None,
    ):
        self.several, self.groups = target.ndim == 2, groups
        correct = (target == prediction).all(axis=1) if self.several else target == prediction
        labels = target.sum(axis=1) if self.several else np.ones(len(target))
        if self.several and outside is not None:
            correct &= outside == 0
            labels = labels + outside
        self.correct, self.labels = correct.astype(np.float32), labels.astype(np.float32)
        hit = target & prediction if self.several else np.where(target == prediction, target, -1)
        self.counted = [hit, target, prediction]
        if self.several:
            self.counted = [each.astype(np.float32) for each in self.counted]

    def figures(self, drawn: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Figures (r,) of indices (r, N), whose tallies are the weights (r, N)."""
        kinds = len(self.groups) + 1
        tallies = [
            # Counts are exact in float32, their ratios would not be.
            (weights @ each).astype(np.float64)
            if self.several
            else _tally(each[drawn] + 1, kinds)[:, 1:]
            for each in self.counted
        ]
        total = (weights @ self.labels).astype(np.float64)
        found = figures_from_counts(*tallies, groups=self.groups, total=total)
        found["accuracy"] = (weights @ self.correct).astype(np.float64) / drawn.shape[1]
        return found


def with_interval(value: float | None, drawn: np.ndarray | None) -> dict[str, float | None]:
    """A figure as ``value``, with the ``low`` and ``high`` of 95 % of its resamples, if there are.

    Widened to the value, which can lie outside of them.
    """
    drawn = None if drawn is None else drawn[np.isfinite(drawn)]
    if value is None or drawn is None or not len(drawn):
        return {"value": value, "low": None, "high": None}
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": value, "low": float(min(low, value)), "high": float(max(high, value))}


def figures_from_counts(
    hits: np.ndarray,
    support: np.ndarray,
    predicted: np.ndarray,
    *,
    groups: Sequence[str],
    total: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Figures (R,) from counts (R, C) of true positives, documents and predictions of each class.

    F1 of a class is 2·hits / (support + predicted).

    Args:
        total: (R,) labels of the documents, those outside the space among them: such a label is
            a miss of micro-F1, and weighs in with an F1 of 0. None: the sum of the supports.

    >>> hits, support, predicted = np.array([[2, 0]]), np.array([[2, 2]]), np.array([[4, 0]])
    >>> found = figures_from_counts(hits, support, predicted, groups=("head", "tail"))
    >>> found["balanced_accuracy"], found["recall_tail"], found["macro_f1"].round(3)
    (array([0.5]), array([0.]), array([0.333]))
    """
    present = support > 0
    recall = _ratio(hits, support)
    f1 = _ratio(2.0 * hits, support + predicted)
    labels = support.sum(axis=1) if total is None else total
    found = {
        "balanced_accuracy": _mean(recall, present),
        "macro_f1": _mean(f1, present),
        "micro_f1": _ratio(2.0 * hits.sum(axis=1), labels + predicted.sum(axis=1)),
        "weighted_f1": _ratio(np.where(present, support * f1, 0.0).sum(axis=1), labels),
    }
    for group in ("head", "mid", "tail"):
        members = np.array([name == group for name in groups])
        found[f"recall_{group}"] = _mean(recall, present & members)
    return found


def _draws(documents: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks (r, N) of the indices that were drawn."""
    generator = np.random.default_rng(seed)
    size = max(1, CHUNK // documents)
    for start in range(0, resamples, size):
        yield generator.integers(documents, size=(min(size, resamples - start), documents))


def _tally(codes: np.ndarray, kinds: int) -> np.ndarray:
    """(r, N) codes → (r, kinds): how often each occurs in each row."""
    rows = len(codes)
    flat = codes + kinds * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * kinds).reshape(rows, kinds)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    missing = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=missing, where=denominator > 0)


def _mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return _ratio(np.where(chosen, values, 0.0).sum(axis=1), chosen.sum(axis=1))


_Ranking = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _rankings(target: np.ndarray, scores: np.ndarray) -> list[_Ranking]:
    """For each class with positives: documents by falling score and where each step starts.

    A step holds the documents from one distinct score of a positive up to the next higher one.
    Twice: for all documents down to the last positive, and for the positives alone.
    """
    rankings = []
    for positive, score in zip(target.T, scores.T, strict=True):
        if not positive.any():
            continue
        steps = np.unique(score[positive])
        step = len(steps) - np.searchsorted(steps, score, side="right")
        order = np.argsort(step, kind="stable")
        order = order[: np.searchsorted(step[order], len(steps))]
        hits = order[positive[order]]
        each = np.arange(len(steps))
        starts = np.searchsorted(step[order], each)
        rankings.append((order, starts, hits, np.searchsorted(step[hits], each)))
    return rankings


def _mean_average_precision(rankings: list[_Ranking], weights: np.ndarray) -> np.ndarray:
    """(r,) from the weights (N, r) of the documents.

    Average precision is Σ (increase of recall) · precision over the steps, as in scikit-learn,
    with documents counted by weight. A class without weight on a positive does not count.
    """
    total = np.zeros(weights.shape[1])
    classes = np.zeros(weights.shape[1])
    for order, starts, hits, hit_starts in rankings:
        drawn = np.add.reduceat(weights[order], starts, axis=0).cumsum(axis=0)
        gained = np.add.reduceat(weights[hits], hit_starts, axis=0)
        found = gained.cumsum(axis=0)
        # Where nothing was drawn yet, nothing was gained either.
        sums = (gained * found / np.maximum(drawn, 1)).sum(axis=0)
        present = found[-1] > 0
        total += np.where(present, sums / np.maximum(found[-1], 1), 0.0)
        classes += present
    return _ratio(total, classes)
