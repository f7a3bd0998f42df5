"""Documents as token ids in flat files on the disk: a table larger than memory, read once.

``documents/`` holds ``tokens`` (all ids, one document after the other), ``offsets`` (where each
ends), ``keys`` (a hash of each text) and ``labels`` (a class each, −1 for none), plain arrays in
the byte order of the machine, and ``documents.json``. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longarc.data.cells import as_label, as_text, holds_several
from longarc.data.columns import Columns
from longarc.data.lengths import LONGEST_TEXT
from longarc.data.table import Table
from longarc.errors import DataError, RunError
from longarc.files import write_json

BATCH = 512
"""Rows that are tokenised, written and noted as done together."""

_ARRAYS = {"offsets": np.int64, "keys": np.uint64, "labels": np.int32}


@dataclass(frozen=True)
class TokenFile:
    """N documents, memory-mapped: ``file[i]`` reads one document's ids and no other.

    Shapes: ``offsets`` (N + 1,), ``keys`` (N,), ``labels`` (N,), codes into ``names``.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    labels: np.ndarray
    names: list[str]
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> list[int]:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].tolist()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document (N,)."""
        return np.diff(self.offsets)

    @property
    def data_sha256(self) -> str:
        """Hash of the texts and labels, in order."""
        return self.about["data_sha256"]


def open_token_file(folder: Path) -> TokenFile:
    """Map what ``write_token_file`` wrote; nothing is read yet.

    Raises RunError where the folder is not whole, or was written on another kind of machine.
    """
    try:
        about = json.loads((folder / "documents.json").read_text(encoding="utf-8"))
        if about["byte_order"] != sys.byteorder:
            raise ValueError(f"its byte order is {about['byte_order']}")
        count = about["documents"]
        kinds = {"tokens": np.dtype(about["type"]), **_ARRAYS}
        sizes = {"tokens": about["tokens"], "offsets": count + 1, "keys": count, "labels": count}
        arrays = {
            name: np.memmap(folder / name, dtype=kind, mode="r", shape=(sizes[name],))
            for name, kind in kinds.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder} does not hold the documents of a run as expected: {error}. Start anew with "
            "--overwrite."
        ) from error
    return TokenFile(**arrays, names=about["labels"], about=about)


def write_token_file(
    folder: Path,
    table: Table,
    columns: Columns,
    tokenizer: Any,
    *,
    limit: int | None = None,
    advance: Callable[[float], Any] = lambda _: None,
) -> TokenFile:
    """Tokenise a table in one pass and bounded memory; the folder appears whole.

    What was written before an interruption is kept: the rows are read again and compared by their
    hash, but not tokenised again. Ids have the tokenizer's special tokens and are not cut. Texts
    that are empty after stripping are left out, and counted.

    Args:
        folder: to be made; what is unfinished lies beside it in ``.NAME-unfinished``.
        table: any table.
        columns: the text, and a label to keep or None.
        tokenizer: a transformers tokenizer.
        limit: read only the first rows.
        advance: is told of rows done.

    Raises:
        DataError: a cell that is no text, several labels in one, or no document at all.
        RunError: an interrupted pass goes on, and the rows are not the same ones.
    """
    unfinished = folder.with_name(f".{folder.name}-unfinished")
    unfinished.mkdir(exist_ok=True)
    writing = _Writing(unfinished, len(tokenizer))
    try:
        for texts, labels in _rows(table, columns, limit):
            writing.add(texts, labels, tokenizer)
            advance(len(texts))
        writing.finish(table, columns)
    finally:
        writing.close()
    unfinished.replace(folder)
    return open_token_file(folder)


class _Writing:
    """Files that grow by a batch of rows at a time, and the note of how far they are whole."""

    def __init__(self, folder: Path, vocabulary: int):
        self.folder = folder
        self.type = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
        self.progress = folder / "progress.json"
        self.done = {"rows": 0, "documents": 0, "tokens": 0, "empty": 0, "digest": "", "labels": []}
        if self.progress.is_file():
            self.done = json.loads(self.progress.read_text(encoding="utf-8"))
        self.codes = {name: i for i, name in enumerate(self.done["labels"])}
        self.read, self.digest = 0, ""
        documents = self.done["documents"]
        sizes = {
            "tokens": self.done["tokens"] * self.type.itemsize,
            "offsets": (documents + 1) * 8, "keys": documents * 8, "labels": documents * 4,
        }  # fmt: skip
        self.files = {}
        for name, size in sizes.items():
            file = (folder / name).open("ab")
            if name == "offsets" and file.tell() == 0:
                file.write(np.zeros(1, np.int64).tobytes())
            file.truncate(size)  # what was written after the last note
            self.files[name] = file

    def add(self, texts: list[str], labels: list[str | None], tokenizer: Any) -> None:
        """Append a batch; one that is there already is compared instead."""
        self.digest = _chained(self.digest, texts, labels)
        self.read += len(texts)
        if self.read <= self.done["rows"]:
            if self.read == self.done["rows"] and self.digest != self.done["digest"]:
                raise _changed(self.folder)
            return
        if self.read - len(texts) < self.done["rows"]:
            raise _changed(self.folder)
        kept = [i for i, text in enumerate(texts) if text.strip()]
        ids: list[list[int]] = []
        if kept:
            ids = tokenizer(
                [texts[i][:LONGEST_TEXT] for i in kept],
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # texts beyond the model's length are what crops are for
            )["input_ids"]
        ends = self.done["tokens"] + np.cumsum([len(row) for row in ids], dtype=np.int64)
        flat = np.fromiter((token for row in ids for token in row), self.type)
        self._write("tokens", flat)
        self._write("offsets", ends.astype(np.int64))
        self._write("keys", np.array([_key(texts[i]) for i in kept], np.uint64))
        self._write("labels", np.array([self._code(labels[i]) for i in kept], np.int32))
        self.done = {
            "rows": self.read, "documents": self.done["documents"] + len(kept),
            "tokens": self.done["tokens"] + len(flat),
            "empty": self.done["empty"] + len(texts) - len(kept),
            "digest": self.digest, "labels": list(self.codes),
        }  # fmt: skip
        self._flush()  # first: the note must not name what the disk does not have
        write_json(self.progress, self.done)

    def finish(self, table: Table, columns: Columns) -> None:
        """Say what the files hold."""
        if self.read < self.done["rows"]:
            raise _changed(self.folder)
        if not self.done["documents"]:
            raise DataError(
                f"{table.name} has no text in column {columns.text!r}: {self.done['rows']} rows, "
                "all empty. Name another column with --text."
            )
        self._flush()
        about = {k: v for k, v in self.done.items() if k != "digest"}
        about |= {"data_sha256": self.digest, "type": self.type.name, "byte_order": sys.byteorder}
        write_json(self.folder / "documents.json", about)
        self.progress.unlink(missing_ok=True)

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def _flush(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def _write(self, name: str, values: np.ndarray) -> None:
        self.files[name].write(values.tobytes())

    def _code(self, label: str | None) -> int:
        return -1 if label is None else self.codes.setdefault(label, len(self.codes))


def _rows(
    table: Table, columns: Columns, limit: int | None
) -> Iterator[tuple[list[str], list[str | None]]]:
    """Texts and labels, ``BATCH`` rows at a time."""
    names = [columns.text] if columns.label is None else [columns.text, columns.label]
    row = 0
    for batch in table.batches(BATCH, columns=names):
        texts: list[str] = []
        labels: list[str | None] = []
        for place, value in enumerate(batch[columns.text]):
            if limit is not None and row == limit:
                break
            row += 1
            column = columns.text
            try:
                texts.append(as_text(value))
                column = columns.label
                cell = None if column is None else batch[column][place]
                if holds_several(cell):
                    raise ValueError("a list; an evaluation takes one class a document")
                labels.append(as_label(cell))
            except ValueError as error:
                raise DataError(f"{table.name}, row {row}, column {column!r}: {error}.") from error
        if texts:
            yield texts, labels
        if limit is not None and row == limit:
            return


def _key(text: str) -> int:
    """64 bits of a hash, the same for texts that are equal after stripping."""
    data = text.strip().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def _chained(digest: str, texts: Sequence[str], labels: Sequence[str | None]) -> str:
    """The digest of all rows up to here, from that of the rows before."""
    hashed = hashlib.sha256(digest.encode())
    for part in (*texts, *(str(label) for label in labels)):
        data = part.encode("utf-8", "surrogatepass")
        hashed.update(f"{len(data)}:".encode())
        hashed.update(data)
    return hashed.hexdigest()


def _changed(folder: Path) -> RunError:
    return RunError(
        f"the rows of the table have changed since the run in {folder.parent} began to read them. "
        "Restore them, or start anew with --overwrite."
    )
