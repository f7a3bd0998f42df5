"""Write a table row group by row group: CSV, JSON Lines or Parquet by the file's name, whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from longarc.errors import DataError, close_matches
from longarc.files import whole_file

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


class Rows(Protocol):
    """Takes columns of equal length, again and again."""

    def __call__(self, columns: dict[str, list[Any]]) -> None:
        """Append the rows of these columns."""


def check_writable(path: str | Path) -> Path:
    """The path, or a DataError that says which formats there are or that its folder is missing."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in FORMATS:
        raise DataError(
            f"cannot write {path}: expected a name that ends in one of {', '.join(FORMATS)}. "
            f"{close_matches(path.suffix, FORMATS)}"
        )
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: there is no folder {path.parent}. Make it first.")
    return path


@contextmanager
def table_writer(path: str | Path) -> Iterator[Rows]:
    r"""Write batches of columns into one file that appears when the block ends without an error.

    The first batch fixes the columns. Parquet takes its types from it too; later batches are cast.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "out.csv"
    >>> with table_writer(target) as write:
    ...     write({"text": ["a", "b"], "n": [1, 2]})
    >>> target.read_text()
    'text,n\na,1\nb,2\n'
    """
    path = check_writable(path)
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".parquet":
            with _parquet(temporary) as write:
                yield write
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                if path.suffix.lower() == ".jsonl":
                    yield lambda columns: _json_lines(file, columns)
                else:
                    out = csv.writer(
                        file,
                        delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
                        lineterminator="\n",
                    )
                    yield _csv_rows(out)


def _csv_rows(out: Any) -> Rows:
    started = False

    def write(columns: dict[str, list[Any]]) -> None:
        nonlocal started
        if not started:
            out.writerow(columns)
            started = True
        for row in zip(*columns.values(), strict=True):
            out.writerow(
                [
                    json.dumps(v, ensure_ascii=False) if isinstance(v, list | dict) else v
                    for v in row
                ]
            )

    return write


def _json_lines(file: Any, columns: dict[str, list[Any]]) -> None:
    for row in zip(*columns.values(), strict=True):
        record = dict(zip(columns, row, strict=True))
        file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


@contextmanager
def _parquet(path: Path) -> Iterator[Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None

    def write(columns: dict[str, list[Any]]) -> None:
        nonlocal writer
        table = pa.table(columns)
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table.cast(writer.schema))

    try:
        yield write
        if writer is None:
            pq.write_table(pa.table({}), path)
    finally:
        if writer is not None:
            writer.close()
