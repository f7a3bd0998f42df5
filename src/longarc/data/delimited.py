"""CSV and TSV files, streamed, every row checked against the header."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from longarc.data.text_file import SuspectLines, open_text, refuse_suspect_cells
from longarc.errors import DataError

_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_delimited(
    path: Path, delimiter: str
) -> tuple[list[str], Callable[[int, list[str]], Iterator[dict[str, list[Any]]]], list[str]]:
    """Columns, a reader of batches, and notes of a CSV or TSV file.

    ``delimiter`` is what the file's extension promises. If the header line has none of it, but
    semicolons or tabs (or commas, in a TSV), that is taken and a note says so. All values are
    strings. Blank lines are passed over.

    Raises:
        DataError: no rows, repeated column names, rows with another number of fields than the
            header, unbalanced quotes, NULs, or bytes that are not UTF-8.
    """
    delimiter, notes = _find_delimiter(path, delimiter)
    rows = _rows(path, delimiter)
    columns = next(rows)
    if next(rows, None) is None:
        raise DataError(f"{path} has a header and no rows. Expected at least one row below it.")

    def batches(size: int, wanted: list[str]) -> Iterator[dict[str, list[Any]]]:
        places = [(name, columns.index(name)) for name in wanted]
        rows = _rows(path, delimiter)
        next(rows)
        while chunk := list(islice(rows, size)):
            yield {name: [row[place] for row in chunk] for name, place in places}

    return columns, batches, notes


def _find_delimiter(path: Path, expected: str) -> tuple[str, list[str]]:
    with open_text(path) as stream:
        header = next((line for line in stream if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", header)
    if expected in bare:
        return expected, []
    found = max(_NAMES, key=bare.count)
    if found not in bare:
        return expected, []  # a table of one column
    note = f"{path.name}: separated by {_NAMES[found]}s (the header has no {_NAMES[expected]})"
    return found, [note]


def _rows(path: Path, delimiter: str) -> Iterator[list[str]]:
    """The header, then the rows. All have the same length."""
    csv.field_size_limit(2**31 - 1)  # the default refuses documents over 131,072 characters
    columns: list[str] = []
    row = 0
    with open_text(path) as stream:
        lines = SuspectLines(stream)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _quote_error(path, line, str(error)) from error
            if not cells:
                continue
            if not columns:
                columns = _header(path, cells)
                if lines.found:
                    refuse_suspect_cells(path, "header", enumerate(cells, 1))  # pyright: ignore[reportArgumentType]
                yield columns
                continue
            row += 1
            if lines.found:
                names = [*columns, *["(beyond the header)"] * len(cells)]
                cells_named = zip(names, cells, strict=False)
                refuse_suspect_cells(path, f"row {row} (line {line})", cells_named)
            if len(cells) != len(columns):
                raise DataError(
                    f"{path}, line {line} (row {row}): {len(cells)} fields, where the header has "
                    f"{len(columns)} ({_shown(columns)}). Put double quotes around fields that "
                    f"contain a {_NAMES[delimiter]}, a quote or a line break."
                )
            yield cells


def _header(path: Path, cells: list[str]) -> list[str]:
    columns = [cell.strip() or f"unnamed {place}" for place, cell in enumerate(cells, 1)]
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise DataError(
            f"{path} has the column name {repeated[0]!r} {columns.count(repeated[0])} times in its "
            f"header ({_shown(columns)}). Give each column its own name."
        )
    return columns


def _quote_error(path: Path, line: int, reason: str) -> DataError:
    if "unexpected end of data" in reason:
        return DataError(
            f"{path}: the row that starts in line {line} opens a double quote that is never "
            "closed, so the rest of the file would be one field. Close it, or write a quote "
            'inside a quoted field twice ("").'
        )
    return DataError(
        f"{path}, in the row that starts in line {line}: {reason}. A field that starts with a "
        'double quote must end with one, and quotes inside it are written twice ("").'
    )


def _shown(columns: list[str]) -> str:
    names = [name if len(name) <= 40 else name[:39] + "…" for name in columns]
    return ", ".join(names if len(names) <= 20 else [*names[:20], f"and {len(names) - 20} more"])
