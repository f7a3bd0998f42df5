"""Writing tables: what was written reads back, and what cannot be written is refused."""

from __future__ import annotations

import json
import math

import pyarrow.parquet as pq
import pytest

from longarc.data.table import open_table
from longarc.data.table_writer import table_writer
from longarc.errors import DataError

HARD = ["plain", "a\rb", "a\r\nb", "a\nb", 'say "hi"', "a,b;c\td", "\r", " ", "ends in\r\n"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_text_reads_back(tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    with table_writer(path) as write:
        write({"text": HARD[:4], "other": ["x"] * 4})
        write({"text": HARD[4:], "other": ["x"] * 5})
    read = [text for batch in open_table(path).batches() for text in batch["text"]]
    assert read == HARD
    if suffix != "parquet":
        assert path.read_bytes().endswith((b"x\n", b'"x"}\n'))


def test_json_lines_have_null_for_what_is_no_number(tmp_path):
    path = tmp_path / "out.jsonl"
    with table_writer(path) as write:
        write({"x": [math.nan, math.inf, 1.5], "y": [["é", -math.inf], {"z": [math.nan]}, None]})

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    rows = [
        json.loads(line, parse_constant=refuse) for line in path.read_text("utf-8").splitlines()
    ]
    assert rows == [
        {"x": None, "y": ["é", None]},
        {"x": None, "y": {"z": [None]}},
        {"x": 1.5, "y": None},
    ]


def test_a_parquet_column_may_begin_or_go_on_empty(tmp_path):
    path = tmp_path / "out.parquet"
    with table_writer(path) as write:
        write({"note": [None, None], "n": [1, 2]})
        write({"note": ["late", None], "n": [None, None]})
    assert pq.read_table(path).to_pydict() == {
        "note": [None, None, "late", None],
        "n": [1, 2, None, None],
    }


@pytest.mark.parametrize(
    "batches",
    [
        [[[], []], [["a"], []]],  # no document of the first batch has a label
        [[["a"]], [[], []], [None]],
        [[[[]]], [[["a"], []]]],
        [[{"note": None, "n": 1}], [{"note": "late", "n": 2}]],
    ],
)
def test_a_parquet_column_of_lists_may_begin_or_go_on_empty(tmp_path, batches):
    path = tmp_path / "out.parquet"
    with table_writer(path) as write:
        for values in batches:
            write({"found": values})
    written = [value for values in batches for value in values]
    assert pq.read_table(path).to_pydict() == {"found": written}


@pytest.mark.parametrize(
    "batches", [[[1, "x"]], [[1, 2], ["x", "y"]], [[1, 2], [0.5, 1.5]], [["x"], [["y"]]]]
)
def test_a_parquet_column_of_several_kinds_is_refused(tmp_path, batches):
    path = tmp_path / "out.parquet"

    def write_all():
        with table_writer(path) as write:
            for values in batches:
                write({"mixed": values})

    with pytest.raises(DataError, match=r"column 'mixed'.*jsonl"):
        write_all()
    assert not list(tmp_path.iterdir())
