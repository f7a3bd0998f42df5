"""Reading: every kind of source gives the same rows, and every bad file its own clear error."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import longarc.data
from longarc.data.table import Table, open_table
from longarc.errors import DataError, OptionError

ROWS = {"body": ["Grüße, a", 'say "hi"\nthere', "third"], "topic": ["x", "y", "x"]}


def rows(table: Table, **options) -> dict[str, list]:
    read: dict[str, list] = {name: [] for name in table.columns}
    for batch in table.batches(**options):
        for name, values in batch.items():
            read[name] += values
    return read


def write_csv(path: Path, columns: dict[str, list], **options) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, **options)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_json_lines(path: Path, columns: dict[str, list]) -> Path:
    lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def zipped(path: Path) -> Path:
    out = path.with_name(path.name + ".gz")
    out.write_bytes(gzip.compress(path.read_bytes()))
    return out


def parquet(path: Path) -> Path:
    pd.DataFrame(ROWS).to_parquet(path)
    return path


def saved(path: Path) -> Path:
    datasets.Dataset.from_dict(ROWS).save_to_disk(str(path))
    return path


SOURCES = {
    "csv": lambda d: write_csv(d / "a.csv", ROWS),
    "csv-upper-case": lambda d: write_csv(d / "a.CSV", ROWS),
    "csv-unix-lines": lambda d: write_csv(d / "a.csv", ROWS, lineterminator="\n"),
    "tsv": lambda d: write_csv(d / "a.tsv", ROWS, delimiter="\t"),
    "csv.gz": lambda d: zipped(write_csv(d / "a.csv", ROWS)),
    "jsonl": lambda d: write_json_lines(d / "a.jsonl", ROWS),
    "jsonl.gz": lambda d: zipped(write_json_lines(d / "a.jsonl", ROWS)),
    "json-as-lines": lambda d: write_json_lines(d / "a.json", ROWS),
    "parquet": lambda d: parquet(d / "a.parquet"),
    "saved": lambda d: saved(d / "a"),
    "string-path": lambda d: str(write_csv(d / "a.csv", ROWS)),
    "frame": lambda d: pd.DataFrame(ROWS, index=[7, 7, 7]),
    "dataset": lambda d: datasets.Dataset.from_dict(ROWS),
    "dict": lambda d: ROWS,
    "table": lambda d: open_table(ROWS),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_rows(kind, tmp_path):
    table = open_table(SOURCES[kind](tmp_path))
    assert table.columns == ["body", "topic"]
    assert rows(table) == ROWS
    assert [len(batch["body"]) for batch in table.batches(rows=2)] == [2, 1]
    assert list(table.batches(columns=["topic"])) == [{"topic": ROWS["topic"]}]


def test_gzip_is_told_by_its_bytes_not_by_its_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(b"text,label\na,b\n"))
    assert rows(open_table(path)) == {"text": ["a"], "label": ["b"]}


def test_byte_order_mark_blank_lines_and_spaces_in_the_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufefftext, label,\n\na,b,1\n\n".encode())
    assert rows(open_table(path)) == {"text": ["a"], "label": ["b"], "unnamed 3": ["1"]}


@pytest.mark.parametrize(
    ("name", "delimiter", "word"),
    [("a.csv", ";", "semicolons"), ("a.csv", "\t", "tabs"), ("a.tsv", ",", "commas")],
)
def test_another_delimiter_in_the_header_is_taken_and_said(tmp_path, name, delimiter, word):
    table = open_table(write_csv(tmp_path / name, ROWS, delimiter=delimiter))
    assert rows(table) == ROWS
    assert len(table.notes) == 1
    assert f"separated by {word}" in table.notes[0]


def test_a_delimiter_inside_quotes_in_the_header_does_not_count(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('"text, long";label\na;b\n')
    assert open_table(path).columns == ["text, long", "label"]


def test_one_column_needs_no_delimiter(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\none\ntwo\n")
    table = open_table(path)
    assert rows(table) == {"text": ["one", "two"]}
    assert table.notes == []


def test_documents_longer_than_csv_allows_by_default(tmp_path):
    long = "word " * 100_000
    assert rows(open_table(write_csv(tmp_path / "a.csv", {"t": [long]}))) == {"t": [long]}


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cells=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t"]),
    compress=st.booleans(),
)
def test_csv_round_trip(tmp_path, cells, delimiter, compress):
    columns = {"text": [a for a, _ in cells], "label": [b for _, b in cells]}
    path = write_csv(tmp_path / "a.csv", columns, delimiter=delimiter)
    assert rows(open_table(zipped(path) if compress else path), rows=2) == columns


def test_json_lines_with_a_key_that_comes_late(tmp_path):
    rows = [{"text": f"t{i}"} for i in range(1500)] + [{"text": "last", "ticket": "T-1"}]
    path = tmp_path / "late.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = open_table(path)
    assert table.columns == ["text", "ticket"]
    read = [value for batch in table.batches() for value in batch["ticket"]]
    assert read == [None] * 1500 + ["T-1"]


def test_json_lines_with_different_keys(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"label": ["x"], "text": null}\n')
    assert rows(open_table(path)) == {"text": ["a", None], "label": [None, ["x"]]}


def test_class_label_columns_give_names(tmp_path):
    label = datasets.ClassLabel(names=["ham", "spam"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": label, "tags": datasets.List(label)}
    )
    dataset = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[0, 1], [], [1]]}, features=features
    )
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    for source in (dataset, tmp_path / "a.parquet"):
        read = rows(open_table(source))
        assert read["label"] == ["spam", "ham", None]
        assert read["tags"] == [["ham", "spam"], [], ["spam"]]


def test_splits_of_a_dataset_dict(tmp_path):
    """To train on there is one that is called so; whatever else is read has to be named."""
    part = datasets.Dataset.from_dict(ROWS)
    both = datasets.DatasetDict(train=part.select([0]), test=part.select([1, 2]))
    both.save_to_disk(str(tmp_path / "a"))
    there = str(tmp_path / "a")
    for source, test in ((both, 'data["test"]'), (there, f"{there}/test")):
        table = open_table(source, to_train=True)
        assert rows(table)["topic"] == ["x"]
        assert table.notes == [f"split: train (not read: {test})"]
        with pytest.raises(OptionError, match="the splits train, test") as raised:
            open_table(source)
        assert test in str(raised.value)
    for source in (both["test"], f"{there}/test"):
        assert rows(open_table(source))["topic"] == ["y", "x"]
    with pytest.raises(DataError, match=r"does not exist\. Did you mean test"):
        open_table(f"{there}/tset")
    with pytest.raises(OptionError, match=r"splits a, b, .*: data\[.a.\] or data\[.b.\]"):
        open_table(datasets.DatasetDict(a=part, b=part), to_train=True)
    assert rows(open_table(datasets.DatasetDict(test=part)))["topic"] == ROWS["topic"]


def test_a_split_of_a_data_set_on_the_hub(monkeypatch):
    """A stand-in for the network alone."""
    part = datasets.Dataset.from_dict(ROWS)
    there = {"an-owner/a-name": datasets.DatasetDict(train=part.select([0]), test=part)}
    monkeypatch.setattr(datasets, "load_dataset", there.__getitem__)
    assert rows(open_table("an-owner/a-name/test"))["topic"] == ROWS["topic"]
    with pytest.raises(OptionError, match="an-owner/a-name/train or an-owner/a-name/test"):
        open_table("an-owner/a-name")
    with pytest.raises(OptionError, match=r"no split 'tset'\. Did you mean test"):
        open_table("an-owner/a-name/tset")


def test_missing_values_of_pandas_are_none():
    frame = pd.DataFrame(
        {
            "a": ["x", None],
            "b": [1.0, float("nan")],
            "c": pd.array([1, None], dtype="Int64"),
            "d": pd.Categorical(["u", None]),
        }
    )
    assert rows(open_table(frame)) == {
        "a": ["x", None], "b": [1.0, None], "c": [1, None], "d": ["u", None]
    }  # fmt: skip


def test_cells_of_pandas_are_values_of_python(tmp_path):
    """Parquet's lists come as arrays, which have no single truth and no JSON."""
    lists = {"flat": [["a"], []], "deep": [[["a"], ["b", "c"]], [[]]], "n": [[1, 2], [0.5]]}
    pd.DataFrame(lists).to_parquet(tmp_path / "a.parquet")
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert isinstance(frame["flat"][0], np.ndarray)
    assert rows(open_table(frame)) == lists
    assert rows(open_table({name: list(frame[name]) for name in frame})) == lists
    missing = {"a": ["x", pd.NA], "b": pd.array([1, None], dtype="Int64")}
    assert rows(open_table(missing)) == {"a": ["x", None], "b": [1, None]}


# What is wrong, the bytes of the file, and what the message must say.
BAD_FILES = {
    "empty": ("a.csv", b"", ["a.csv is empty", "at least one row"]),
    "blank": ("a.csv", b"\xef\xbb\xbf \n\n", ["is empty"]),
    "header-only": ("a.csv", b"text,label\n", ["a header and no rows"]),
    "repeated-column": (
        "a.csv", b"text,label,text\na,b,c\n", ["'text' 2 times", "Give each column its own name"]),
    "ragged": (
        "a.csv", b'text,label\n"a\nb",c\nd,e,f\n',
        ["line 4 (row 2)", "3 fields", "header has 2 (text, label)", "double quotes"]),
    "short-row": ("a.csv", b"text,label\na\n", ["line 2 (row 1)", "1 fields", "has 2"]),
    "cp1252": (
        "a.csv", b"text,label\nok,x\nth\xe9 \x80 caf\xe9,x\n",
        ["row 2 (line 3)", "column 'text'", "byte 0xE9", "'th'", "not UTF-8",
         "iconv -f CP1252 -t UTF-8 > a-utf8.csv"]),
    "latin1": ("a.csv", b"text,label\na,caf\xe9 \x81\n",
               ["row 1", "column 'label'", "0xE9", "iconv -f LATIN1"]),
    "header-bytes": ("a.csv", b"caf\xe9,label\na,b\n", ["header", "0xE9", "CP1252"]),
    "nul": ("a.csv", b"text,label\na,b\nc\x00d,e\n", ["row 2 (line 3)", "NUL", "tr -d '\\000'"]),
    "utf-16": ("a.csv", "text,label\na,b\n".encode("utf-16"), ["UTF-16", "iconv -f UTF-16"]),
    "utf-16-no-mark": ("a.csv", "text,label\na,b\n".encode("utf-16-le"), ["UTF-16", "UTF-8"]),
    "utf-16-json": ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), ["UTF-16"]),
    "unclosed-quote": (
        "a.csv", b'text,label\na,b\n"c,d\ne,f\n', ["line 3", "never closed", '("")']),
    "stray-quote": ("a.csv", b'text,label\n"a" b,c\n', ["line 2", "double quote"]),
    "excel": ("a.csv", b"PK\x03\x04rest", ["Excel", "CSV UTF-8"]),
    "damaged-gzip": (
        "a.csv.gz", gzip.compress(b"text,label\n" + b"a,b\n" * 99)[:-12], ["damaged gzip"]),
    "broken-json": (
        "a.jsonl", b'{"text": "a"}\n{"text": "b",}\n', ["line 2", "not JSON", "at character"]),
    "json-scalar": ("a.jsonl", b'{"text": "a"}\n"b"\n', ["line 2", "JSON str", "an object"]),
    "json-array": (
        "a.json", b'[{"text": "a"},\n {"text": "b"}]\n', ["JSON array", "jq -c '.[]' a.json"]),
    "json-array-one-line": ("a.json", b'[{"text": "a"}]\n', ["JSON array", "one object"]),
    "json-empty": ("a.jsonl", b"{}\n{}\n", ["only empty objects"]),
    "json-bytes": (
        "a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n',
        ["row 2 (line 2)", "column 'text'", "0xE9", "iconv"]),
    "json-bytes-nested": (
        "a.jsonl", b'{"text": "a", "tags": ["caf\xe9"]}\n', ["row 1", "0xE9", "iconv"]),
    "json-deep": ("a.jsonl", b"[" * 100_000, ["JSON array"]),
    "not-parquet": ("a.parquet", b"text,label\n", ["not a Parquet file"]),
    "unknown-extension": ("a.xlsx", b"x", ["extension .xlsx", ".csv, .tsv", ".parquet"]),
    "no-extension": ("table", b"text\na\n", ["extension (none)"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_place_and_fix(case, tmp_path):
    name, content, said = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        rows(open_table(tmp_path / name))
    for words in said:
        assert words in str(caught.value)


def test_the_advised_command_mends_the_file(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\ncafé “x”,y\n".encode("cp1252"))
    with pytest.raises(DataError) as caught:
        rows(open_table(tmp_path / "a.csv"))
    subprocess.run(str(caught.value).split("Convert: ")[1], shell=True, cwd=tmp_path, check=True)
    assert rows(open_table(tmp_path / "a-utf8.csv"))["text"] == ["café “x”"]


def test_a_fault_far_down_is_found(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + b"a,b\n" * 5000 + b"a\n")
    table = open_table(path)
    batches = table.batches()
    next(batches)
    with pytest.raises(DataError, match=r"line 5002 \(row 5001\): 1 fields"):
        list(batches)


def test_a_damaged_parquet_file_is_refused_wherever_the_damage_is(tmp_path):
    columns = {"body": [f"text {i}" for i in range(5000)], "topic": ["x", "y"] * 2500}
    path = tmp_path / "whole.parquet"
    pd.DataFrame(columns).to_parquet(path)
    whole = path.read_bytes()
    for start, stop in ((200, 5000), (len(whole) - 300, len(whole) - 8), (0, len(whole))):
        damaged = bytearray(whole)
        damaged[start:stop] = bytes(byte ^ 0x5A for byte in whole[start:stop])
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"whole\.parquet.*damaged"):
            rows(open_table(path))


def test_half_of_a_surrogate_pair_in_json_becomes_the_replacement_character(tmp_path):
    path = tmp_path / "half.jsonl"
    lines = [r'{"body": "a\ud83d b", "topic": ["\uDE00"]}', r'{"body": "\ud83d\ude00"}']
    path.write_text("\n".join(lines))
    assert rows(open_table(path)) == {
        "body": ["a\ufffd b", "\U0001f600"],
        "topic": [["\ufffd"], None],
    }


def test_missing_sources(tmp_path):
    write_csv(tmp_path / "tickets.csv", ROWS)
    with pytest.raises(DataError, match=r"does not exist\. Did you mean tickets\.csv\?"):
        open_table(tmp_path / "tikets.csv")
    with pytest.raises(DataError, match="nor does the folder"):
        open_table(tmp_path / "no" / "tickets.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"There are no tables in {tmp_path / 'empty'}"):
        open_table(tmp_path / "empty" / "a.csv")
    with pytest.raises(DataError, match=r"save_to_disk.*Name a file: tickets\.csv"):
        open_table(tmp_path)
    (tmp_path / "empty" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        open_table(tmp_path / "empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is a pipe or a device, and a table is read more than"):
        open_table(tmp_path / "pipe.csv")


def test_a_hub_id_without_connection(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no-such-owner/no-such-data is no file or folder here"):
        open_table("no-such-owner/no-such-data")


def test_objects_that_are_no_table():
    with pytest.raises(DataError, match="A list is not a table"):
        open_table([["a", "b"]])
    with pytest.raises(DataError, match=r"different lengths \(text: 2, label: 1\)"):
        open_table({"text": ["a", "b"], "label": ["x"]})
    with pytest.raises(DataError, match="column 'text' is a str"):
        open_table({"text": "abc"})
    with pytest.raises(DataError, match="0 columns and 0 rows"):
        open_table({})
    with pytest.raises(DataError, match="2 columns and 0 rows"):
        open_table(pd.DataFrame({"text": [], "label": []}))
    with pytest.raises(DataError, match="'a' 2 times"):
        open_table(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    stream = datasets.Dataset.from_dict(ROWS).to_iterable_dataset()
    with pytest.raises(DataError, match="without streaming"):
        open_table(stream)


def test_data_modules_do_not_import_torch():
    folder = Path(longarc.data.__file__).parent
    names = [path.stem for path in folder.glob("*.py") if path.stem[0] != "_"]
    assert "table" in names
    code = (
        "import importlib, sys\n"
        f"for name in {names}: importlib.import_module('longarc.data.' + name)\n"
        "assert not {'torch', 'transformers', 'pandas', 'datasets', 'sklearn'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
