"""Documents as token ids on the disk: what is written is read back, whole, also in two goes."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from longarc.data import token_file
from longarc.data.columns import Columns
from longarc.data.table import open_table
from longarc.data.token_file import open_token_file, write_token_file
from longarc.errors import DataError, RunError


class Letters:
    """A tokenizer whose tokens are letters, framed by 1 and 2."""

    def __init__(self, size: int = 300):
        self.size = size
        self.calls = 0

    def __len__(self) -> int:
        return self.size

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        self.calls += 1
        return {"input_ids": [[1, *(ord(c) % self.size for c in text), 2] for text in texts]}


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(token_file, "BATCH", 3)


def table_of(texts: list[str], labels: list | None = None):
    columns = {"text": texts} | ({} if labels is None else {"label": labels})
    return open_table(columns), Columns("text", None if labels is None else "label")


TEXTS = ["abc", "", "d", "  ", "efgh", "abc", "i", "jk", "l"]
LABELS = ["x", "x", None, "y", "y", "z", "x", None, "y"]


@pytest.mark.parametrize("size", [300, 70_000])
def test_documents_read_back_as_they_were(tmp_path, small_batches, size):
    tokenizer = Letters(size)
    done: list[float] = []
    file = write_token_file(
        tmp_path / "documents", *table_of(TEXTS, LABELS), tokenizer, advance=done.append
    )
    kept = [i for i, text in enumerate(TEXTS) if text.strip()]
    assert [file[i] for i in range(len(file))] == tokenizer([TEXTS[i] for i in kept])["input_ids"]
    codes = [-1 if LABELS[i] is None else file.names.index(LABELS[i]) for i in kept]
    assert file.labels.tolist() == codes
    assert file.tokens.dtype == (np.uint16 if size == 300 else np.uint32)
    assert file.about["empty"] == 2
    assert sum(done) == len(TEXTS)
    assert file.keys[0] == file.keys[3]  # equal texts
    assert len(set(file.keys.tolist())) == len(set(TEXTS) - {"", "  "})
    assert [p.name for p in tmp_path.iterdir()] == ["documents"]


def test_limit_reads_the_first_rows(tmp_path, small_batches):
    file = write_token_file(tmp_path / "d", *table_of(TEXTS), Letters(), limit=5)
    assert len(file) == 3
    assert file.names == []


def interrupt_after(batches: int):
    """An ``advance`` that raises, as Ctrl-C would."""
    calls = 0

    def advance(_: float) -> None:
        nonlocal calls
        calls += 1
        if calls == batches:
            raise KeyboardInterrupt

    return advance


def test_an_interrupted_pass_goes_on_and_tokenises_nothing_twice(tmp_path, small_batches):
    whole = write_token_file(tmp_path / "whole", *table_of(TEXTS, LABELS), Letters())
    with pytest.raises(KeyboardInterrupt):
        write_token_file(
            tmp_path / "d", *table_of(TEXTS, LABELS), Letters(), advance=interrupt_after(2)
        )
    assert not (tmp_path / "d").exists()
    with (tmp_path / ".d-unfinished" / "tokens").open("ab") as file:
        file.write(b"half a token")  # what a killed process can leave after its last note
    tokenizer = Letters()
    again = write_token_file(tmp_path / "d", *table_of(TEXTS, LABELS), tokenizer)
    assert tokenizer.calls == 1  # the third batch
    for name in ("tokens", "offsets", "keys", "labels"):
        assert getattr(again, name).tolist() == getattr(whole, name).tolist()
    assert again.about == whole.about


@pytest.mark.parametrize(
    "changed", [["other", *TEXTS[1:]], TEXTS[:4], TEXTS[:3]], ids=["text", "cut", "shorter"]
)
def test_changed_rows_are_refused_after_an_interruption(tmp_path, small_batches, changed):
    with pytest.raises(KeyboardInterrupt):
        write_token_file(tmp_path / "d", *table_of(TEXTS), Letters(), advance=interrupt_after(2))
    with pytest.raises(RunError, match="have changed"):
        write_token_file(tmp_path / "d", *table_of(changed), Letters())


def test_the_hash_is_of_texts_and_labels(tmp_path):
    hashes = {
        write_token_file(tmp_path / str(i), *table_of(texts, labels), Letters()).data_sha256
        for i, (texts, labels) in enumerate(
            [(["a", "b"], None), (["ab", ""], None), (["a", "b"], ["x", "y"]),
             (["a", "b"], ["x", "z"])]
        )
    }  # fmt: skip
    assert len(hashes) == 4


def test_what_cannot_be_a_document_is_named(tmp_path):
    with pytest.raises(DataError, match="row 2, column 'text': a list"):
        write_token_file(tmp_path / "a", *table_of(["a", ["b"]]), Letters())
    with pytest.raises(DataError, match=r"row 1, column 'label'.*one class"):
        write_token_file(tmp_path / "b", *table_of(["a"], [["x", "y"]]), Letters())
    with pytest.raises(DataError, match="all empty"):
        write_token_file(tmp_path / "c", *table_of(["", " "]), Letters())


def test_a_damaged_folder_is_refused(tmp_path):
    write_token_file(tmp_path / "d", *table_of(TEXTS), Letters())
    about = tmp_path / "d" / "documents.json"
    kept = json.loads(about.read_text())
    about.write_text(json.dumps(kept | {"byte_order": "middle"}))
    with pytest.raises(RunError, match="byte order is middle"):
        open_token_file(tmp_path / "d")
    about.write_text(json.dumps(kept | {"tokens": kept["tokens"] + 1}))
    with pytest.raises(RunError, match="does not hold the documents"):
        open_token_file(tmp_path / "d")
    about.unlink()
    with pytest.raises(RunError, match="--overwrite"):
        open_token_file(tmp_path / "d")


def test_memory_does_not_grow_with_the_table(tmp_path):
    """Of eight times the rows on the disk, no more than what a batch of them takes at a time."""
    peaks = []
    for times in (1, 8):
        table = tmp_path / f"{times}.jsonl"
        with table.open("w", encoding="utf-8") as file:
            for i in range(1000 * times):
                file.write(json.dumps({"text": f"{i} " + 50 * "pump oil "}) + "\n")
        tracemalloc.start()
        found = write_token_file(
            tmp_path / str(times), open_table(str(table)), Columns("text", None), Letters()
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found) == 1000 * times
    assert peaks[1] < 1.3 * peaks[0]
