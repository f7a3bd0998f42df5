"""Texts without labels: what is read of them, and what is left out."""

from __future__ import annotations

import pytest

from longarc.data.examples import Examples
from longarc.data.splits import Splits
from longarc.data.unlabelled import read_unlabelled
from longarc.errors import DataError

TABLE = Examples("a.csv", ["to train on", " held out ", "measured"], ["p", "p", "q"], [1, 2, 3])
SPLITS = Splits(*(TABLE.select([row]) for row in range(3)))


def test_texts_that_are_measured_on_are_left_out():
    table = {"topic": ["", "x", None, ""], "body": ["to train on", "held out", "measured ", "new"]}
    examples, sentence = read_unlabelled(table, text="body", splits=SPLITS)
    assert examples.texts == ["to train on", "new"]
    assert examples.rows == [1, 4]
    assert examples.labels is None
    assert sentence.endswith("2 texts without a label, besides 2 that are held out")


def test_a_table_of_which_nothing_is_left_is_refused():
    with pytest.raises(DataError, match=r"label: 1 that is empty and 1 that is held out. Name"):
        read_unlabelled({"body": [" ", "held out"]}, text="body", splits=SPLITS)


def test_the_column_is_that_of_the_labelled_table():
    with pytest.raises(DataError, match="body"):
        read_unlabelled({"words": ["new"]}, text="body", splits=SPLITS)
