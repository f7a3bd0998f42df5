"""Splits: a partition, stratified, no text on two sides, every class in train."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longarc.data.examples import Examples
from longarc.data.splits import make_splits
from longarc.errors import DataError, OptionError


def table(texts, labels, source="table.csv") -> Examples:
    return Examples(source, list(texts), list(labels), list(range(1, len(texts) + 1)))


def distinct(labels, prefix="text") -> Examples:
    return table([f"{prefix} {i}" for i in range(len(labels))], labels)


def counts(examples: Examples) -> Counter:
    return Counter(
        name for label in examples.labels for name in ([label] if isinstance(label, str) else label)
    )


TEXTS = st.integers(0, 40).map(lambda number: f"{'  ' * (number % 2)}text {number // 2}")
NAMES = st.sampled_from("aaaaabbbcd")
SINGLE = st.lists(st.tuples(TEXTS, NAMES), min_size=8, max_size=80)
SEVERAL = st.lists(
    st.tuples(TEXTS, st.lists(NAMES, unique=True, max_size=3)), min_size=8, max_size=80
)


@settings(deadline=None)
@given(
    rows=SINGLE | SEVERAL,
    fractions=st.tuples(st.floats(0.05, 0.45), st.sampled_from([0, 0.1, 0.3, 0.5])),
    seed=st.integers(0, 3),
)
def test_properties(rows, fractions, seed):
    examples = table([text for text, _ in rows], [label for _, label in rows])
    options = {
        "validation_fraction": fractions[0],
        "test_fraction": fractions[1],
        "seed": seed,
    }
    try:
        splits = make_splits(examples, **options)
    except DataError:  # too few distinct texts beside those that must be in train
        assert len({text.strip() for text, _ in rows}) <= 2 * len(counts(examples)) + 10
        assume(False)
    parts = [part for _, part in splits.items()]
    assert (splits.test is None) == (fractions[1] == 0)
    # A partition in the order of the file, rows with their own texts and labels.
    assert sorted(row for part in parts for row in part.rows) == examples.rows
    for part in parts:
        assert part.rows == sorted(part.rows)
        assert part == examples.select([row - 1 for row in part.rows])
    # No text on two sides.
    sides = [{text.strip() for text in part.texts} for part in parts]
    assert sum(map(len, sides)) == len(set().union(*sides))
    # Every class is in train.
    assert set(counts(splits.train)) == set(counts(examples))
    assert make_splits(examples, **options) == splits


@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=8).filter(lambda s: sum(s) > 40),
    seed=st.integers(0, 3),
)
def test_each_class_is_divided_by_the_fractions(sizes, seed):
    labels = [f"c{i}" for i, size in enumerate(sizes) for _ in range(size)]
    splits = make_splits(distinct(labels), validation_fraction=0.2, test_fraction=0.1, seed=seed)
    train, validation, test = (counts(part) for _, part in splits.items())
    for i, size in enumerate(sizes):
        assert abs(train[f"c{i}"] - 0.7 * size) <= 1.3
        assert abs(validation[f"c{i}"] - 0.2 * size) <= 1
        assert abs(test[f"c{i}"] - 0.1 * size) <= 1


def test_rare_classes():
    labels = ["big"] * 100 + ["one"] + ["two"] * 2 + ["three"] * 3
    for seed in range(5):
        splits = make_splits(distinct(labels), seed=seed)
        held_out = counts(splits.validation) + counts(splits.test)
        train = counts(splits.train)
        assert (train["one"], held_out["one"]) == (1, 0)
        assert (train["two"], held_out["two"]) == (1, 1)
        assert (train["three"], held_out["three"]) == (2, 1)


def test_classes_of_two_do_not_swell_the_held_out_splits():
    labels = [f"c{i % 200}" for i in range(400)]
    splits = make_splits(distinct(labels))
    assert len(counts(splits.train)) == 200
    assert [len(part) for _, part in splits.items()] == [280, 60, 60]


def test_copies_count_as_one_text_and_stay_together():
    splits = make_splits(
        table(["same"] * 50 + [f"t{i}" for i in range(60)], ["a"] * 50 + ["b", "c"] * 30)
    )
    assert counts(splits.train)["a"] == 50
    assert abs(len(splits.train) - 0.7 * 110) <= 20


def test_multi_label_proportions():
    rng = np.random.default_rng(0)
    probabilities = np.array([0.5, 0.3, 0.1, 0.05, 0.02])
    labels = [[f"l{j}" for j in np.flatnonzero(rng.random(5) < probabilities)] for _ in range(1000)]
    whole = counts(distinct(labels))
    splits = make_splits(distinct(labels), validation_fraction=0.2, test_fraction=0.2)
    for part, fraction in ((splits.train, 0.6), (splits.validation, 0.2), (splits.test, 0.2)):
        assert abs(len(part) - 1000 * fraction) <= 10
        for name, count in counts(part).items():
            assert abs(count - fraction * whole[name]) <= max(2, 0.05 * fraction * whole[name])


def test_a_small_multi_label_table_has_more_labels_than_texts():
    """100 documents with 4 of 116 labels each: most labels are in several, so it can be split."""
    random = np.random.default_rng(0)
    labels = [[f"l{c}" for c in random.choice(116, 4, replace=False)] for _ in range(100)]
    splits = make_splits(distinct(labels))
    assert len({name for found in labels for name in found}) > 100
    assert set(counts(splits.train)) == {name for found in labels for name in found}
    assert len(splits.validation) > 5
    assert len(splits.test) > 5
    with pytest.raises(DataError, match="9 classes for 4 different texts, each in one text only"):
        make_splits(distinct([["a", "b"], ["c", "d", "e"], ["f"], ["g", "h", "i"]]))


def test_seeds_differ():
    examples = distinct(["a", "b"] * 50)
    assert make_splits(examples, seed=0) != make_splits(examples, seed=1)


def test_given_files_are_kept_and_only_the_rest_is_split_off():
    examples, other = distinct(["a", "b"] * 20), distinct(["a", "b"] * 4, "other")
    both = make_splits(examples, validation=other, test=other)
    assert (both.train, both.validation, both.test) == (examples, other, other)
    tested = make_splits(examples, test=other, validation_fraction=0.25)
    assert tested.test == other
    assert (len(tested.train), len(tested.validation)) == (30, 10)
    validated = make_splits(examples, validation=other, test_fraction=0.5)
    assert validated.validation == other
    assert (len(validated.train), len(validated.test)) == (20, 20)
    untested = make_splits(examples, validation=other, test_fraction=0)
    assert (untested.train, untested.test) == (examples, None)
    last = make_splits(examples, test=other, validation_fraction=0)
    assert (last.train, last.validation, last.test) == (examples, None, other)
    assert [name for name, _ in last.items()] == ["train", "test"]
    halved = make_splits(examples, validation_fraction=0, test_fraction=0.5)
    assert (len(halved.train), halved.validation, len(halved.test)) == (20, None, 20)


def test_impossible_requests():
    examples = distinct(["a", "b"] * 10)
    for fraction in (1, -0.1, 1.5):
        with pytest.raises(OptionError, match=f"validation_fraction is {fraction}"):
            make_splits(examples, validation_fraction=fraction)
    with pytest.raises(OptionError, match="both 0, so nothing would be measured"):
        make_splits(examples, validation_fraction=0, test_fraction=0)
    with pytest.raises(OptionError, match="test_fraction is 1"):
        make_splits(examples, test_fraction=1)
    with pytest.raises(OptionError, match=r"0\.5 and 0\.5 leave nothing"):
        make_splits(examples, validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(DataError, match="3 classes for 3 different texts"):
        make_splits(distinct(["a", "b", "c"]))
    with pytest.raises(DataError, match="without labels"):
        make_splits(Examples("t.csv", ["a"], None, [1]))


def test_rarest_label_is_divided_first():
    # Every example has the common label; six have the rare one too. Divided by the common label,
    # the rare one would fall anywhere.
    labels = [["common", "rare"] if i % 50 == 0 else ["common"] for i in range(300)]
    for seed in range(10):
        parts = [
            counts(part)["rare"] for _, part in make_splits(distinct(labels), seed=seed).items()
        ]
        assert parts == [4, 1, 1]


def test_a_text_with_many_copies_does_not_upset_the_sizes():
    texts = ["same"] * 30 + [f"t{i}" for i in range(70)]
    for seed in range(5):
        splits = make_splits(table(texts, ["a"] * 99 + ["b"]), seed=seed)
        assert [len(part) for _, part in splits.items()] == [70, 15, 15]
