"""Columns, texts and labels: what is accepted, how it is understood, what is refused."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longarc.data.cells import as_texts
from longarc.data.examples import choose_columns, read_examples
from longarc.data.table import open_table
from longarc.errors import DataError, OptionError

LONG = [f"A somewhat longer text, number {i}." for i in range(6)]


def choose(columns, **options):
    return choose_columns(open_table(columns), **options)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"label": list("ababab"), "text": LONG}, ("text", "label")),
        ({"Body": LONG, "Topic": list("ababab")}, ("Body", "Topic")),
        # By kind where names say nothing: the longest strings, the few distinct values.
        ({"id": range(6), "x": LONG, "y": list("ababab")}, ("x", "y")),
        ({"x": LONG, "score": [0.5] * 6, "y": [1, 0, 1, 0, 1, 0]}, ("x", "y")),
        ({"x": LONG, "y": [["a"], [], ["b"], ["c"], [], []]}, ("x", "y")),
        # An embedding is no list of labels.
        ({"x": LONG, "vector": [np.array([0.5, 1.5])] * 6, "y": list("ababab")}, ("x", "y")),
        ({"x": LONG, "y": [np.array(["a", "b"])] * 6}, ("x", "y")),
        ({"x": LONG, "y": ["a", "b", pd.NA] * 2}, ("x", "y")),
        # Of two names of texts the far longer one.
        ({"note": ["n"] * 6, "document": LONG, "label": list("ababab")}, ("document", "label")),
        # label_text stands beside label in many data sets.
        ({"text": LONG, "label": [0, 1] * 3, "label_text": list("ababab")}, ("text", "label")),
        ({"text": LONG, "label": [0, 1] * 3, "category": list("ababab")}, ("text", "label")),
    ],
)
def test_guesses(columns, expected):
    chosen = choose({name: list(values) for name, values in columns.items()})
    assert (chosen.text, chosen.label) == expected
    assert chosen.guessed == (
        f"text column: {expected[0]} (guessed; name it with --text)",
        f"label column: {expected[1]} (guessed; name it with --label)",
    )


def test_named_columns_are_taken_and_nothing_is_said():
    chosen = choose({"a": LONG, "b": list("xyxyxy")}, text="a", label="b")
    assert (chosen.text, chosen.label, chosen.guessed) == ("a", "b", ())
    assert choose({"text": LONG}, need_label=False).label is None


def test_ambiguous_and_missing_columns():
    two = {"a": LONG, "b": LONG, "c": list("xyxyxy")}
    with pytest.raises(
        DataError, match=r"holds the texts\? It could be a or b\. .*--text.*a, b, c"
    ):
        choose(two)
    with pytest.raises(DataError, match=r"holds the labels\? It could be p or q\. .*--label"):
        choose({"text": LONG, "p": list("xyxyxy"), "q": list("xyxyxy")})
    with pytest.raises(DataError, match=r"labels\? None looks like one"):
        choose({"text": LONG, "id": list(range(6))})
    with pytest.raises(DataError, match=r"texts\? None holds strings"):
        choose({"a": [1, 2], "b": [1, 2]})
    with pytest.raises(DataError, match=r"no column 'topics'\. Did you mean topic\?"):
        choose({"text": LONG, "topic": list("xyxyxy")}, label="topics")
    with pytest.raises(DataError, match="both text and label"):
        choose({"text": LONG}, text="text", label="text")
    with pytest.raises(DataError, match="is the header missing"):
        choose({"word " * 40: LONG, "x": LONG}, text="text")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["spam", " ham "], ["spam", "ham"]),
        ([3, 0], ["3", "0"]),
        ([3.0, 0.0], ["3", "0"]),
        ([True, False], ["true", "false"]),
        ([["a", "b"], []], [["a", "b"], []]),
        ([["a", "a", " "], None], [["a"], []]),
        (["['a', 'b']", "[]"], [["a", "b"], []]),
        (['["a", "b"]', ""], [["a", "b"], []]),
        (["[urgent]", "b"], ["[urgent]", "b"]),
        (np.array([1, 2]), ["1", "2"]),
        ([np.array(["a", "b"]), np.array([], dtype=str)], [["a", "b"], []]),
        ([[1, 2], [True]], [["1", "2"], ["true"]]),
    ],
)
def test_labels(values, expected):
    table = {"text": ["a", "b"], "label": values}
    assert read_examples(table, text="text", label="label")[0].labels == expected


def test_labels_through_pandas_and_its_files(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b"], "label": [["x", "y"], []]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    for source in (frame, *(tmp_path / f"a.{kind}" for kind in ("csv", "parquet", "jsonl"))):
        examples, _ = read_examples(source)
        assert examples.labels == [["x", "y"], []]
        assert examples.multi_label


def test_label_separator():
    table = {"text": list("abc"), "label": ["x; y;", "", "y"]}
    assert read_examples(table, label_separator=";")[0].labels == [["x", "y"], [], ["y"]]
    with pytest.raises(OptionError, match="label_separator is empty"):
        read_examples(table, label_separator="")


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  ", "nan", "NaN"])
def test_missing_labels_are_counted_and_placed(missing):
    labels = ["x", missing, "y", missing] + [missing] * 5
    with pytest.raises(
        DataError, match=r"7 rows have no label in column 'label' \(rows 2, 4, 5, 6"
    ):
        read_examples({"text": LONG + LONG[:3], "label": labels}, label="label")


def test_labels_that_are_no_classes(tmp_path):
    def read(values):
        return read_examples({"text": LONG[: len(values)], "label": values}, label="label")

    with pytest.raises(
        DataError, match=r"row 2, column 'label': 0\.5, which looks like regression"
    ):
        read([1.0, 0.5])
    with pytest.raises(DataError, match=r"row 2.*a list, where row 1 has a single label"):
        read(["a", ["b"]])
    with pytest.raises(DataError, match=r"row 3.*single label 'b', where row 2 has a list"):
        read([None, ["a"], "b"])
    with pytest.raises(DataError, match="row 1, column 'label': a dict"):
        read([{"a": 1}])
    path = tmp_path / "a.csv"
    path.write_text("text,score\n" + "".join(f"some text,{i / 7:.4f}\n" for i in range(40)))
    with pytest.raises(DataError, match=r"40 different numbers such as 0\.0000.*regression"):
        read_examples(path, label="score")
    path.write_text("text,stars\n" + "".join(f"some text,{i % 10 / 2}\n" for i in range(40)))
    assert len(set(read_examples(path, label="stars")[0].labels)) == 10


def test_texts():
    values = ["a", None, float("nan"), 7, "half \ud83d", "whole 😀"]
    examples, _ = read_examples({"text": values}, text="text", need_label=False)
    assert examples.texts == ["a", "", "", "7", "half \ufffd", "whole 😀"]
    assert examples.labels is None
    assert examples.rows == [1, 2, 3, 4, 5, 6]
    for value in (["a", "list"], b"bytes"):
        with pytest.raises(DataError, match=f"row 2, column 'text': a {type(value).__name__}"):
            read_examples({"text": ["a", value]}, text="text", need_label=False)


def test_an_escaped_half_character_in_json_does_not_reach_the_tokenizer(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "bad \udcff", "label": "x\ud800"}) + "\n")
    examples, _ = read_examples(path)
    assert (examples.texts, examples.labels) == (["bad \ufffd"], ["x\ufffd"])


@given(n=st.integers(1, 60), limit=st.integers(1, 70), seed=st.integers(0, 5))
def test_limit_is_a_seeded_sample_in_order(n, limit, seed):
    table = {"text": [f"t{i}" for i in range(n)], "label": [f"l{i % 3}" for i in range(n)]}
    options = {"text": "text", "label": "label", "limit": limit, "seed": seed}
    examples, _ = read_examples(table, **options)
    assert len(examples) == min(n, limit)
    assert examples.rows == sorted(set(examples.rows))
    assert examples.texts == [f"t{row - 1}" for row in examples.rows]
    assert examples.labels == [f"l{(row - 1) % 3}" for row in examples.rows]
    assert read_examples(table, **options)[0] == examples


def test_limit_asks_for_the_labels_of_its_sample_alone():
    table = {"text": [f"t{i}" for i in range(40)], "label": [*["a", "b"] * 19, "a", None]}
    read = {"text": "text", "label": "label", "limit": 8}
    samples = [seed for seed in range(9) if 40 not in read_rows(table, seed=seed, **read)]
    assert samples
    for seed in samples:
        assert len(read_examples(table, seed=seed, **read)[0].labels) == 8
    (drawn, *_) = set(range(9)) - set(samples)
    with pytest.raises(DataError, match=r"1 rows have no label .*\(rows 40\)"):
        read_examples(table, seed=drawn, **read)


def read_rows(table, **options):
    return read_examples({**table, "label": ["a"] * 40}, **options)[0].rows


def test_limit_is_uniform():
    table = {"text": [str(i) for i in range(20)]}
    counts = np.zeros(20)
    for seed in range(1000):
        options = {"text": "text", "need_label": False, "limit": 5, "seed": seed}
        counts[np.array(read_examples(table, **options)[0].rows) - 1] += 1
    # Binomial(1000, 1/4) has a standard deviation of 13.7; five of them for 20 counts.
    assert abs(counts - 250).max() < 69
    with pytest.raises(OptionError, match="limit is 0"):
        read_examples(table, limit=0)


def test_select():
    examples, _ = read_examples({"text": LONG, "label": list("ababab")})
    some = examples.select([4, 1])
    assert (some.texts, some.labels, some.rows) == ([LONG[4], LONG[1]], ["a", "b"], [5, 2])


@pytest.mark.parametrize(
    "row", [[0, 1, 0, 0], [True, False, False], "[0, 0, 0]", np.array([1, 0, 0]), [1.0, 1.0, 0.0]]
)
def test_an_indicator_is_no_list_of_labels(row):
    with pytest.raises(DataError, match=r"row 1, column 'label'.*indicator of classes"):
        read_examples({"text": ["a pump", "a bill"], "label": [row, row]})


@pytest.mark.parametrize("row", [[0, 1], [1, 1], ["0", "1", "1"], [2, 2, 0], ["a", "a"]])
def test_lists_that_are_no_indicator(row):
    examples, _ = read_examples({"text": ["a pump", "a bill"], "label": [row, row]})
    assert examples.labels == [list(dict.fromkeys(map(str, row)))] * 2


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ("one text", "found one string"),
        ({"body": ["a"]}, "found a dict of columns"),
        (pd.DataFrame({"body": ["a", "b"]}), "found a DataFrame of columns"),
        (datasets.Dataset.from_dict({"body": ["a"]}), "found a Dataset of columns"),
    ],
    ids=["string", "dict", "pandas", "datasets"],
)
def test_texts_are_a_list_of_them(values, found):
    with pytest.raises(OptionError, match=f"expected a list of texts, {found}"):
        as_texts(values, "texts")
    assert as_texts(pd.Series(["a", None]), "texts") == ["a", ""]
