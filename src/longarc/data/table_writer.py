"""Write a table row group by row group: CSV, JSON Lines or Parquet by the file's name, whole."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from longarc.errors import DataError, close_matches
from longarc.files import check_place, whole_file

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")


class Rows(Protocol):
    """Takes columns of equal length, again and again."""

    def __call__(self, columns: dict[str, list[Any]]) -> None:
        """Append the rows of these columns."""


def check_writable(path: str | Path, *others: str) -> Path:
    """The path, or a DataError that says which formats there are or that its folder is missing.

    RunError where the folder takes no files.

    ``others`` are endings of files that the caller writes itself.
    """
    path = Path(path).expanduser()
    formats = (*FORMATS, *others)
    if path.suffix.lower() not in formats:
        likely = close_matches(path.suffix, formats).partition("Known:")[0]
        ends = f"expected a name that ends in one of {', '.join(formats)}"
        raise DataError(f"cannot write {path}: {ends}. {likely}".rstrip())
    if not path.parent.is_dir():
        raise DataError(f"cannot write {path}: there is no folder {path.parent}. Make it first.")
    check_place(path)
    return path


@contextmanager
def table_writer(path: str | Path) -> Iterator[Rows]:
    r"""Write batches of columns into one file that appears when the block ends without an error.

    The first batch fixes the columns. Parquet takes its types from it too; later batches are cast,
    and a column that has no value yet, or only empty lists, becomes strings. JSON Lines have null
    for NaN and infinities.

    Raises:
        DataError: Parquet, and a column holds values of different kinds.

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
                    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
                    yield _csv_rows(csv.writer(_UnixLines(file), delimiter=delimiter))


class _UnixLines:
    r"""Takes rows that end in \r\n and writes them with \n.

    Told to end rows in \n, ``csv`` before Python 3.13 leaves a lone \r inside a field unquoted, and
    whoever reads the file sees two rows.
    """

    def __init__(self, file: Any):
        self.file = file

    def write(self, row: str) -> None:
        """Write one row."""
        self.file.write(row.removesuffix("\r\n") + "\n")


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
        file.write(_json(record) + "\n")


def _json(value: Any) -> str:
    """JSON, with null for NaN and the infinities, which it cannot spell."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _parquet(path: Path) -> Iterator[Rows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None

    def write(columns: dict[str, list[Any]]) -> None:
        nonlocal writer
        arrays = {name: _array(name, values) for name, values in columns.items()}
        if writer is None:
            schema = pa.schema({name: array.type for name, array in arrays.items()})
            writer = pq.ParquetWriter(path, schema, compression="zstd")
        for name, array in arrays.items():
            arrays[name] = _cast(name, array, writer.schema.field(name).type)
        writer.write_table(pa.table(arrays, schema=writer.schema))

    try:
        yield write
        if writer is None:
            pq.write_table(pa.table({}), path)
    finally:
        if writer is not None:
            writer.close()


def _array(name: str, values: list[Any]) -> Any:
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise _mixed(name, error) from error
    return array.cast(_with_strings(array.type))


def _with_strings(found: Any) -> Any:
    """The type, with strings where a value has not been seen yet, also within lists and dicts."""
    import pyarrow as pa

    if pa.types.is_null(found):
        return pa.string()
    if pa.types.is_list(found):
        return pa.list_(_with_strings(found.value_type))
    if pa.types.is_struct(found):
        return pa.struct([(field.name, _with_strings(field.type)) for field in found])
    return found


def _cast(name: str, array: Any, wanted: Any) -> Any:
    import pyarrow as pa

    if not array.null_count < len(array):
        return pa.nulls(len(array), wanted)
    try:
        return array.cast(wanted)
    except pa.ArrowException as error:
        raise _mixed(name, error) from error


def _mixed(name: str, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"column {name!r} cannot be written as Parquet, where a column has values of one kind: "
        f"{reason}. Write a .jsonl or .csv file."
    )
