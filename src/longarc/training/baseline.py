"""The linear baseline that every run is compared with: TF-IDF and a linear support vector machine.

On long-tailed topics it is hard to beat (Reuters R52: accuracy .950, macro-F1 .748), costs seconds,
and reads the whole of a document.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC

from longarc.data.labels import LabelSpace
from longarc.errors import DataError, ModelError

MAX_FEATURES = 100_000
"""Most frequent n-grams that are kept. The classifier is dense: C × features × 8 bytes, 0.4 GB at
450 classes. On R52 all 245,000 are no better (macro-F1 .745 against .748)."""

LONGEST = 1_000_000
"""Characters of a document that are read: some 150,000 words. A file that went into one cell by
mistake would otherwise fill the memory with n-grams."""

UNSPACED = 0.25
"""Share of unspaced letters from which texts are cut into characters. A Chinese character says
about as much as three Latin letters, so at a quarter both halves of mixed texts say as much."""

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

    ``vectorizer`` and ``classifier`` are scikit-learn's; ``vectorizer`` is None in that last case.
    10,800 licence texts of 450 classes take up to a minute on one core.

    >>> space = LabelSpace(("fruit", "tool"), (2, 2), multi_label=False)
    >>> baseline = LinearBaseline()
    >>> texts = ["ripe apple", "green apple", "steel hammer", "heavy hammer"]
    >>> _ = baseline.fit(texts, [0, 0, 1, 1], space=space)
    >>> baseline.predict(["an apple", "a hammer"])
    array([0, 1])
    """

    vectorizer: TfidfVectorizer | None = field(default=None, init=False)
    classifier: Any = field(default=None, init=False)

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
        features = self._features(texts)
        if features is None or (codes.ndim == 1 and len(np.unique(codes)) < 2):
            self.vectorizer = None
            self.classifier = DummyClassifier(strategy="most_frequent").fit(texts, codes)
            return self
        # At the default of 1e-4 predictions on R52 and on licences are the same and take longer.
        svm = LinearSVC(class_weight="balanced", tol=1e-2, random_state=seed)
        self.classifier = OneVsRestClassifier(svm) if space.multi_label else svm
        with warnings.catch_warnings():
            # A label that no or every document has gets a constant answer, which is meant.
            warnings.filterwarnings("ignore", message="Label .* is present in all training")
            warnings.filterwarnings("ignore", message="Label not .* is present in all training")
            self.classifier.fit(features, codes)
        return self

    def _features(self, texts: Sequence[str]) -> Any:
        """(n, F) sparse, from a new vocabulary; None if the texts have none."""
        if is_unspaced(texts):
            vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3))
        else:
            vectorizer = TfidfVectorizer(token_pattern=_WORD, ngram_range=(1, 2))
        self.vectorizer = vectorizer.set_params(sublinear_tf=True, max_features=MAX_FEATURES)
        try:
            return vectorizer.fit_transform(_shortened(texts))
        except ValueError as error:
            if "empty vocabulary" not in str(error):
                raise
            return None

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) int64 class codes; multi-label (N, C) int64 of 0 and 1.

        Raises:
            ModelError: ``fit`` was not called.
        """
        if self.classifier is None:
            raise ModelError("The baseline has learnt nothing yet. Call fit before predict.")
        if self.vectorizer is None:
            found = self.classifier.predict(texts)
        else:
            found = self.classifier.predict(self.vectorizer.transform(_shortened(texts)))
        return np.asarray(found).astype(np.int64)


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


def _shortened(texts: Iterable[str]) -> Iterable[str]:
    return (text[:LONGEST] for text in texts)


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
