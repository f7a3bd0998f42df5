"""The label space: order, groups, codes there and back, its file."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import MultiLabelBinarizer

from longarc.data.examples import read_examples
from longarc.data.labels import LabelSpace, flat, spelled_like
from longarc.errors import DataError, RunError

NAMES = st.sampled_from("abcdefg")
SINGLE = st.lists(NAMES, min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1)
SEVERAL = st.lists(st.lists(NAMES, unique=True), min_size=1, max_size=40).filter(
    lambda labels: len({name for names in labels for name in names}) > 1
)


@given(SINGLE)
def test_single_labels(labels):
    space = LabelSpace.from_labels(labels)
    assert dict(zip(space.names, space.counts, strict=True)) == Counter(labels)
    pairs = list(zip(space.counts, space.names, strict=True))
    assert pairs == sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    codes = space.encode(labels)
    assert codes.dtype == np.int64
    assert space.decode(codes) == labels
    assert space.unseen(labels) == {}


@given(SEVERAL)
def test_several_labels(labels):
    space = LabelSpace.from_labels(labels)
    assert space.multi_label
    codes = space.encode(labels)
    assert codes.dtype == np.float32
    expected = MultiLabelBinarizer(classes=list(space.names)).fit_transform(labels)
    np.testing.assert_array_equal(codes, expected)
    assert [set(names) for names in space.decode(codes)] == [set(names) for names in labels]


def test_groups_at_their_limits():
    counts = {"head": 100, "mid-high": 99, "mid": 20, "tail": 19, "single": 1}
    space = LabelSpace.from_labels([name for name, n in counts.items() for _ in range(n)])
    assert space.names == tuple(counts)
    assert space.groups == ("head", "mid", "mid", "tail", "tail")


def test_unseen_labels():
    space = LabelSpace.from_labels(["a", "b"])
    assert space.encode(["b", "new", "a"]).tolist() == [1, -1, 0]
    assert space.unseen(["b", "new", "z", "new"]) == {"new": 2, "z": 1}
    several = LabelSpace.from_labels([["a"], ["b"]])
    assert several.encode([["a", "new"], ["new"]]).tolist() == [[1, 0], [0, 0]]
    assert several.unseen([["a", "new"], ["new"]]) == {"new": 2}
    assert several.outside([["a", "new"], ["new", "z"], []]).tolist() == [1, 2, 0]
    assert space.outside(["b", "new"]).tolist() == [0, 1]
    with pytest.raises(DataError, match=r"Code -1 has no name.*0 to 1"):
        space.decode([0, -1])
    with pytest.raises(DataError, match="Code 2 has no name"):
        space.decode([2])


@pytest.mark.parametrize("values", [[True, False, True], [3.0, 0.0, 3.0], [[True], [], [2.0, 1.0]]])
def test_labels_are_the_same_in_every_kind_of_file(tmp_path, values):
    """As pandas writes them: in CSV ``True`` and ``3.0`` are text."""
    frame = pd.DataFrame({"text": list("abc"), "label": values})
    frame.to_csv(tmp_path / "a.csv", index=False)
    if not isinstance(values[0], list):  # in Parquet lists are of one kind
        frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    sources = [frame, *sorted(tmp_path.iterdir())]
    read = [read_examples(source)[0] for source in sources]
    for known in read:
        for other in read:
            assert other.spelled_like(flat(known.labels)).labels == known.labels


@given(SINGLE, st.sets(NAMES))
def test_other_labels_keep_their_spelling(labels, known):
    assert spelled_like(labels, known) == labels
    typed = ["true", "True", "TRUE", "1", "1.0"]
    assert spelled_like(typed, typed[:1]) == typed  # they are several in one table
    assert spelled_like(["tRUE", "1.00", "2.0"], typed) == ["tRUE", "1.00", "2.0"]  # which?


def test_strangers_are_refused_with_both_spellings():
    space = LabelSpace.from_labels(["spam", "Invoice", "spam"])
    space.refuse_strangers(["new", "spam"], "t.csv")
    space.refuse_strangers([], "t.csv")
    with pytest.raises(DataError, match=r"t\.csv .* there 'INVOICE', in training 'Invoice'"):
        space.refuse_strangers(["INVOICE", "bill"], "t.csv")
    several = LabelSpace.from_labels([["a"], ["b"]])
    several.refuse_strangers([[], []], "t.csv")
    with pytest.raises(DataError, match=r"there 'x', in training 'a'.*--label"):
        several.refuse_strangers([["x"], []], "t.csv")
    with pytest.raises(DataError, match="single ones"):
        several.refuse_strangers(["x"], "t.csv")


def test_labels_nothing_can_be_learned_from():
    with pytest.raises(DataError, match="All labels of the training split are 'a'"):
        LabelSpace.from_labels(["a", "a"])
    with pytest.raises(DataError, match="All 2 training examples have an empty list"):
        LabelSpace.from_labels([[], []])
    for labels in ([], None):
        with pytest.raises(DataError, match="no labels"):
            LabelSpace.from_labels(labels)
    single, several = LabelSpace.from_labels(["a", "b"]), LabelSpace.from_labels([["a"], ["b"]])
    with pytest.raises(DataError, match="lists such as"):
        single.encode([["a"]])
    with pytest.raises(DataError, match="single ones such as 'ab'"):
        several.encode(["ab"])


def test_file(tmp_path):
    path = tmp_path / "labels.json"
    space = LabelSpace.from_labels(["é</script>"] * 20 + ["x"] * 3)
    space.save(path)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "multi_label": False,
        "labels": [
            {"name": "é</script>", "count": 20, "group": "mid"},
            {"name": "x", "count": 3, "group": "tail"},
        ],
    }
    assert LabelSpace.load(path) == space
    with pytest.raises(RunError, match="does not exist"):
        LabelSpace.load(tmp_path / "none.json")
    for broken in ("{", "[]", '{"multi_label": false, "labels": [{"name": "a"}]}'):
        path.write_text(broken)
        with pytest.raises(RunError, match="not a label space"):
            LabelSpace.load(path)
