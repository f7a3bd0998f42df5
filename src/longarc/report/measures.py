"""The measures that reports show: their names, their order, how a figure is written and compared.

The terminal's table, the page and the model card all take them from here, so that one run never
reads differently in two places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longarc.report.saved import as_dict, is_number, systems


@dataclass(frozen=True)
class Measure:
    """A measure of ``metrics.json`` and what people call it."""

    key: str
    name: str
    meaning: str
    lower_is_better: bool = False


ACCURACY = Measure("accuracy", "Accuracy", "share of documents with the right label")
BALANCED = Measure("balanced_accuracy", "Balanced accuracy", "mean recall over classes")
MACRO_F1 = Measure("macro_f1", "Macro-F1", "mean F1 over classes, small ones counting like big")
MICRO_F1 = Measure("micro_f1", "Micro-F1", "F1 over all decisions, big classes counting more")
WEIGHTED_F1 = Measure("weighted_f1", "Weighted F1", "mean F1, weighted by the documents of a class")
HEAD = Measure("recall_head", "Head recall", "mean recall of classes with ≥ 100 training examples")
MID = Measure("recall_mid", "Mid recall", "mean recall of classes with 20–99 training examples")
TAIL = Measure("recall_tail", "Tail recall", "mean recall of classes with < 20 training examples")
CALIBRATION = Measure(
    "calibration_error",
    "Calibration error",
    "mean gap between confidence and accuracy; lower is better",
    lower_is_better=True,
)
EXACT = Measure("accuracy", "Exact match", "share of documents with every label right")
MEAN_RECALL = Measure("balanced_accuracy", "Mean recall", "mean recall over labels")
PRECISION = Measure(
    "mean_average_precision", "mAP", "mean over labels of the average precision of its ranking"
)

SINGLE_LABEL = (ACCURACY, BALANCED, MACRO_F1, WEIGHTED_F1, HEAD, MID, TAIL, CALIBRATION)
MULTI_LABEL = (MICRO_F1, MACRO_F1, PRECISION, MEAN_RECALL, EXACT, HEAD, MID, TAIL, CALIBRATION)

_SYSTEMS = {
    "model": "Model",
    "tfidf-svm": "TF-IDF + linear SVM",
    "frozen-probe": "Linear probe",
}


def measures_of(multi_label: bool) -> tuple[Measure, ...]:
    """The measures to show, in reading order."""
    return MULTI_LABEL if multi_label else SINGLE_LABEL


def system_name(key: str) -> str:
    """What to call the model or a baseline; an unknown baseline is called by its key.

    >>> system_name("tfidf-svm"), system_name("bm25")
    ('TF-IDF + linear SVM', 'bm25')
    """
    return _SYSTEMS.get(key, key)


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval; ``low`` and ``high`` are None where there is none."""

    value: float
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        """The value, to three decimals."""
        return f"{self.value:.3f}"

    @property
    def interval(self) -> str:
        """The interval, to three decimals, or an empty string."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:.3f}–{self.high:.3f}"

    @property
    def points(self) -> str:
        """The value of a difference, in hundredths with its sign.

        >>> Figure(-0.0213, None, None).points
        '−2.1'
        """
        return signed(100 * self.value, 1)

    @property
    def points_interval(self) -> str:
        """The interval of a difference, in hundredths, or an empty string."""
        if self.low is None or self.high is None:
            return ""
        return f"{signed(100 * self.low, 1)} to {signed(100 * self.high, 1)}"

    @property
    def is_certain(self) -> bool:
        """Whether the interval of a difference leaves out 0.

        >>> Figure(-0.02, -0.04, -0.001).is_certain, Figure(-0.02, -0.04, 0.0).is_certain
        (True, False)
        """
        if self.low is None or self.high is None:
            return False
        return not self.low <= 0 <= self.high

    @property
    def written(self) -> str:
        """The value, and in brackets the interval or a dash."""
        return f"{self.text} ({self.interval or '–'})"


def figure(metrics: dict[str, Any], key: str) -> Figure | None:
    """A measure of one system; None where the figure does not exist.

    >>> figure({"accuracy": {"value": 0.8754, "low": 0.85, "high": 0.9}}, "accuracy").text
    '0.875'
    >>> figure({"recall_tail": {"value": None, "low": None, "high": None}}, "recall_tail")
    """
    entry = metrics.get(key)
    if not isinstance(entry, dict) or not is_number(entry.get("value")):
        return None
    bounds = (entry.get("low"), entry.get("high"))
    low, high = bounds if all(is_number(bound) for bound in bounds) else (None, None)
    return Figure(float(entry["value"]), low, high)


def best(figures: dict[str, Figure | None], measure: Measure) -> set[str]:
    """The systems with the best figure as it is written; none if all figures are equal.

    >>> figures = {"a": Figure(0.91, None, None), "b": Figure(0.9101, None, None), "c": None}
    >>> best(figures, ACCURACY)
    set()
    >>> sorted(best({**figures, "d": Figure(0.9, None, None)}, ACCURACY))
    ['a', 'b']
    """
    written = {name: float(f.text) for name, f in figures.items() if f is not None}
    if len(set(written.values())) < 2:
        return set()
    top = (min if measure.lower_is_better else max)(written.values())
    return {name for name, value in written.items() if value == top}


def verdict(split: dict[str, Any]) -> str | None:
    """One sentence: is the trained model worth it? None without a baseline to compare with.

    Compares macro-F1 with that of the best baseline, by the interval of their difference on the
    same documents. One that has 0 in it does not show that the systems are equal, only that this
    split does not settle it, and the sentence says that.

    >>> m = {"macro_f1": {"value": 0.81, "low": 0.78, "high": 0.84}}
    >>> b = {"macro_f1": {"value": 0.79, "low": 0.76, "high": 0.82}}
    >>> d = {"macro_f1": {"value": 0.02, "low": 0.008, "high": 0.033}}
    >>> split = {"model": m, "baselines": {"tfidf-svm": b}, "differences": {"tfidf-svm": d}}
    >>> print(verdict(split))
    The model’s macro-F1 (0.810) is 0.020 above that of the linear baseline, TF-IDF + linear
    SVM (0.790); the 95 % interval of the difference, +0.008 to +0.033, excludes 0.
    """
    found = {name: figure(metrics, MACRO_F1.key) for name, metrics in systems(split).items()}
    model = found.pop("model")
    rivals = {name: f for name, f in found.items() if f is not None}
    if model is None or not rivals:
        return None
    rival_name = max(rivals, key=lambda name: rivals[name].value)
    rival = rivals[rival_name]
    which = "the best baseline" if len(rivals) > 1 else "the baseline"
    if len(rivals) == 1 and rival_name == "tfidf-svm":
        which = "the linear baseline"
    against = f"that of {which}, {system_name(rival_name)}"
    paired = as_dict(as_dict(split.get("differences")).get(rival_name))
    if paired.get("differing") == 0:
        return f"The model decides as {which}, {system_name(rival_name)}, does on every document."
    difference = figure(paired, MACRO_F1.key)
    certain = difference is not None and difference.is_certain
    gap = abs(float(model.text) - float(rival.text))  # as the two are written
    side = "above" if model.value > rival.value else "below"
    far = f"{gap:.3f} {side}" if gap >= 0.0005 else f"hardly {side}"
    opening = f"The model’s macro-F1 ({model.text}) is {far} {against} ({rival.text})"
    if gap < 0.0005 and not certain:
        opening = f"The model’s macro-F1 equals {against} ({rival.text})"
    if difference is None:
        return f"{opening}."
    if difference.low is None or difference.high is None:
        number = paired.get("differing")
        many = "1 document" if number == 1 else f"{number} documents"
        return f"{opening}; they decide differently on {many} only, too few to settle it."
    ends = f"{signed(difference.low, 3)} to {signed(difference.high, 3)}"
    interval = f"the 95 % interval of the difference, {ends},"
    if certain:
        return f"{opening}; {interval} excludes 0."
    return f"{opening}; {interval} has 0 in it, so this split alone does not settle it."


def signed(value: float, decimals: int) -> str:
    """A number with its sign, a true minus, and digits enough not to look like 0.

    >>> signed(-0.5714, 3), signed(0.0, 3), signed(0.00031, 3)
    ('−0.571', '0', '+0.0003')
    """
    value = round(value, 9)  # differences of equal figures may leave some 1e-17
    if value == 0:
        return "0"
    while round(value, decimals) == 0:
        decimals += 1
    return f"{value:+.{decimals}f}".replace("-", "−")
