"""The linear baseline that every run is compared with: TF-IDF and a linear support vector machine.

On long-tailed topics it is hard to beat (Reuters R52: accuracy .950, macro-F1 .748), costs seconds,
and reads the whole of a document.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from longarc.data.labels import LabelSpace
from longarc.data.lengths import LONGEST_TEXT
from longarc.errors import DataError, ModelError, RunError
from longarc.files import whole_folder, write_json

MAX_FEATURES = 100_000
"""Most frequent n-grams that are kept. The classifier is dense: C × features × 4 bytes, 0.2 GB at
450 classes, and twice that while it is fitted. On R52 all 245,000 are no better (macro-F1 .745
against .748)."""

UNSPACED = 0.25
"""Share of unspaced letters from which texts are cut into characters. A Chinese character says
about as much as three Latin letters, so at a quarter both halves of mixed texts say as much."""

_NEVER = 10.0
"""A margin beyond any that a text has."""

# Scripts that put no space between words. Korean does.
_UNSPACED_SCRIPTS = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO ", "KHMER", "MYANMAR", "TIBETAN")

# scikit-learn's pattern, two or more word characters, with combining marks among them: \w has none,
# so Hindi or vowelled Arabic would fall into single letters, which are dropped.
_MARKS = "".join(chr(c) for c in range(0x10000) if unicodedata.category(chr(c)).startswith("M"))
_WORD = rf"[\w{_MARKS}]{{2,}}"


@dataclass
class LinearBaseline:
    """TF-IDF of words and word pairs with sublinear counts, and a balanced linear SVM.

    Texts in scripts without spaces between words are cut into 1- to 3-grams of characters instead,
    see ``is_unspaced``. Multi-label data takes one such classifier for each label. There are no
    probabilities: an SVM's margins are none.

    Where there is nothing to learn from, because no text holds a word or only one class occurs, it
    predicts the most frequent class (multi-label: the labels that most documents have).

    ``vectorizer`` is scikit-learn's, None in that last case; ``weight`` (C, F) and ``bias`` (C,)
    are float32, so that what is saved decides as what was fitted.
    10,800 licence texts of 450 classes take up to a minute on one core.

    >>> space = LabelSpace(("fruit", "tool"), (2, 2), multi_label=False)
    >>> baseline = LinearBaseline()
    >>> texts = ["ripe apple", "green apple", "steel hammer", "heavy hammer"]
    >>> _ = baseline.fit(texts, [0, 0, 1, 1], space=space)
    >>> baseline.predict(["an apple", "a hammer"])
    array([0, 1])
    """

    vectorizer: TfidfVectorizer | None = None
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    multi_label: bool = False

    def fit(
        self, texts: Sequence[str], labels: ArrayLike, *, space: LabelSpace, seed: int = 0
    ) -> LinearBaseline:
        """Learn from n texts.

        Args:
            texts: n texts.
            labels: (n,) class codes; multi-label (n, C) of 0 and 1.
            space: the label space.
            seed: of the order in which the solver visits the documents.

        Raises:
            DataError: there is no text, or the labels do not fit the texts or the space.
        """
        codes = _codes(labels, len(texts), space)
        self.multi_label = space.multi_label
        self.vectorizer, features = _vectorized(texts)
        if features is None or (codes.ndim == 1 and len(np.unique(codes)) < 2):
            self.vectorizer = None
            hot = codes if space.multi_label else np.eye(len(space), dtype=int)[codes]
            self.weight = np.zeros((len(space), 0), dtype=np.float32)
            self.bias = (hot.mean(axis=0) - 0.5).astype(np.float32)
            return self
        # At the default of 1e-4 predictions on R52 and on licences are the same and take longer.
        svm = LinearSVC(class_weight="balanced", tol=1e-2, random_state=seed)
        classifier: Any = OneVsRestClassifier(svm) if space.multi_label else svm
        with warnings.catch_warnings():
            # A label that no or every document has gets a constant answer, which is meant.
            warnings.filterwarnings("ignore", message="Label .* is present in all training")
            warnings.filterwarnings("ignore", message="Label not .* is present in all training")
            classifier.fit(features, codes)
        self.weight, self.bias = _margins(classifier, len(space), features.shape[1])
        return self

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) int64 class codes; multi-label (N, C) int64 of 0 and 1.

        Raises:
            ModelError: ``fit`` was not called.
        """
        margins = self.margins(texts)
        found = margins > 0 if self.multi_label else margins.argmax(axis=1)
        return found.astype(np.int64)

    def margins(self, texts: Sequence[str]) -> np.ndarray:
        """(N, C) float32: the signed distance of each text to each class's boundary, times ‖w‖.

        Raises:
            ModelError: ``fit`` was not called.
        """
        if self.weight is None or self.bias is None:
            raise ModelError("The baseline has learnt nothing yet. Call fit before predict.")
        if self.vectorizer is None or not len(texts):
            return np.tile(self.bias, (len(texts), 1))
        weights: Any = self.vectorizer.transform(_shortened(texts))
        features = weights.astype(np.float32)
        return features @ self.weight.T + self.bias

    def scaled(self, factor: float) -> LinearBaseline:
        """The same classifier with ``factor`` times the margins.

        Raises:
            ModelError: ``fit`` was not called.
        """
        if self.weight is None or self.bias is None:
            raise ModelError("The baseline has learnt nothing yet. Call fit before scaled.")
        factor = np.float32(factor)  # pyright: ignore[reportAssignmentType]
        return dataclasses.replace(self, weight=factor * self.weight, bias=factor * self.bias)

    def save(self, folder: str | Path) -> None:
        """Write ``linear.json``, with the vocabulary, and ``linear.safetensors``.

        Raises:
            ModelError: ``fit`` was not called.
        """
        if self.weight is None or self.bias is None:
            raise ModelError("The baseline has learnt nothing yet. Call fit before save.")
        kept: dict[str, Any] = {"multi_label": self.multi_label, "analyzer": None, "terms": []}
        tensors = {"weight": self.weight, "bias": self.bias}
        if self.vectorizer is not None:
            kept["analyzer"] = self.vectorizer.analyzer
            kept["terms"] = self.vectorizer.get_feature_names_out().tolist()
            tensors["idf"] = self.vectorizer.idf_
        with whole_folder(Path(folder)) as temporary:
            write_json(temporary / "linear.json", kept)
            whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
            save_file(whole, temporary / "linear.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> LinearBaseline:
        """Read what ``save`` wrote.

        Raises:
            RunError: a file is missing or is not what ``save`` wrote.
        """
        folder = Path(folder)
        try:
            kept = json.loads((folder / "linear.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "linear.safetensors")
            vectorizer = None
            if kept["analyzer"] is not None:
                vectorizer = _vectorizer(kept["analyzer"]).set_params(vocabulary=kept["terms"])
                vectorizer.idf_ = tensors["idf"]
            return cls(vectorizer, tensors["weight"], tensors["bias"], kept["multi_label"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RunError(
                f"cannot read the linear classifier in {folder} ({type(error).__name__}: {error}). "
                "Expected linear.json and linear.safetensors as a run writes them; train it again."
            ) from error


def is_unspaced(texts: Sequence[str]) -> bool:
    """Whether the texts are mostly in scripts without spaces between words.

    True from a quarter of the letters on, counted in the first 1,000 characters of some 2,000
    texts, evenly spaced. A pattern for words would take a whole Chinese clause as one word, and
    find it in no other text.

    >>> is_unspaced(["今日は良い天気です", "see README"]), is_unspaced(["a word like 天気"])
    (True, False)
    """
    counts: Counter[str] = Counter()
    for text in texts[:: max(1, len(texts) // 2000)]:
        counts.update(text[:1000])
    letters = {c: n for c, n in counts.items() if c.isalpha()}
    unspaced = sum(
        n for c, n in letters.items() if unicodedata.name(c, "").startswith(_UNSPACED_SCRIPTS)
    )
    return unspaced > 0 and unspaced >= UNSPACED * sum(letters.values())


def _vectorizer(analyzer: str) -> TfidfVectorizer:
    if analyzer == "char_wb":
        cut: dict[str, Any] = {"analyzer": analyzer, "ngram_range": (1, 3)}
    else:
        cut = {"token_pattern": _WORD, "ngram_range": (1, 2)}
    return TfidfVectorizer(**cut, sublinear_tf=True, max_features=MAX_FEATURES)


def _vectorized(texts: Sequence[str]) -> tuple[TfidfVectorizer, Any]:
    """A new vocabulary, and the texts in it, (n, F) sparse; None if it would be empty."""
    vectorizer = _vectorizer("char_wb" if is_unspaced(texts) else "word")
    try:
        return vectorizer, vectorizer.fit_transform(_shortened(texts))
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        return vectorizer, None


def _margins(classifier: Any, classes: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The weight (C, F) and bias (C,) behind scikit-learn's decisions."""
    weight = np.zeros((classes, features), dtype=np.float32)
    # No document was of these classes, or of these labels.
    bias = np.full(classes, -_NEVER, dtype=np.float32)
    parts: list[Any] | None = getattr(classifier, "estimators_", None)
    if parts is not None:
        for label, part in enumerate(parts):
            if hasattr(part, "coef_"):
                weight[label], bias[label] = part.coef_[0], part.intercept_[0]
            else:  # a constant answer
                bias[label] = _NEVER if part.y_[0] else -_NEVER
    elif len(classifier.classes_) == 2:  # one margin, in favour of the second
        first, second = classifier.classes_
        weight[second], bias[second] = classifier.coef_[0] / 2, classifier.intercept_[0] / 2
        weight[first], bias[first] = -weight[second], -bias[second]
    else:
        weight[classifier.classes_] = classifier.coef_
        bias[classifier.classes_] = classifier.intercept_
    return weight, bias


def _shortened(texts: Iterable[str]) -> Iterable[str]:
    return (text[:LONGEST_TEXT] for text in texts)


def _codes(labels: ArrayLike, texts: int, space: LabelSpace) -> np.ndarray:
    codes = np.asarray(labels)
    expected = (texts, len(space.names)) if space.multi_label else (texts,)
    if not texts:
        raise DataError("There is no text to learn from. Expected at least one.")
    if codes.shape != expected:
        raise DataError(
            f"The labels of {texts} texts have shape {codes.shape}. Expected {expected}, as "
            "LabelSpace.encode gives them."
        )
    codes = codes.astype(np.int64)
    top = 1 if space.multi_label else len(space.names) - 1
    if codes.min() < 0 or codes.max() > top:
        raise DataError(
            f"The labels go from {codes.min()} to {codes.max()}. Expected 0 to {top}: a class "
            "must be in the label space to be learnt."
        )
    return codes
