"""JSON Lines files, streamed: one object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from longarc.data.text_file import SuspectLines, open_text, refuse_suspect_cells
from longarc.errors import DataError

# JSON can spell half of a surrogate pair, which is no character: nothing could be written with it.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_lines(
    path: Path,
) -> tuple[list[str], Callable[[int, list[str]], Iterator[dict[str, list[Any]]]], list[str]]:
    """Columns, a reader of batches, and notes of a JSON Lines file.

    The columns are the keys of all objects, in order of appearance, which takes a pass over the
    file; where an object lacks a key the value is None. Blank lines are passed over.

    Raises:
        DataError: a line is not JSON or not an object, or holds bytes that are not UTF-8.
    """
    columns = list(dict.fromkeys(key for row in _rows(path) for key in row))
    if not columns:
        raise DataError(f"{path} has only empty objects. Expected keys such as text and label.")

    def batches(size: int, wanted: list[str]) -> Iterator[dict[str, list[Any]]]:
        rows = _rows(path)
        while chunk := list(islice(rows, size)):
            yield {name: [row.get(name) for row in chunk] for name in wanted}

    return columns, batches, []


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    row = 0
    with open_text(path) as stream:
        lines = SuspectLines(stream)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row += 1
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                if row == 1 and line.lstrip().startswith("["):
                    raise _array_error(path) from error
                if lines.found:
                    refuse_suspect_cells(path, f"row {row} (line {number})", [("?", line)])
                reason = (
                    f"{error.msg} at character {error.colno}"
                    if isinstance(error, json.JSONDecodeError)
                    else "nested too deeply"
                )
                raise DataError(
                    f"{path}, line {number}: not JSON: {reason}. Expected one whole JSON object "
                    "on every line."
                ) from error
            if isinstance(value, list) and row == 1:
                raise _array_error(path)
            if not isinstance(value, dict):
                raise DataError(
                    f"{path}, line {number}: a JSON {type(value).__name__}, where an object such "
                    'as {"text": "…", "label": "…"} was expected on every line.'
                )
            if _HALF.search(line):
                value = _whole_characters(value)
            if lines.found:
                refuse_suspect_cells(path, f"row {row} (line {number})", value.items())
                refuse_suspect_cells(path, f"row {row} (line {number})", [("?", line)])
            yield value


def _whole_characters(row: dict[str, Any]) -> dict[str, Any]:
    """The object with each lone half of a surrogate pair replaced by U+FFFD."""
    written = json.dumps(row, ensure_ascii=False).encode("utf-16", "surrogatepass")
    return json.loads(written.decode("utf-16", "replace"))


def _array_error(path: Path) -> DataError:
    return DataError(
        f"{path} starts with a JSON array, where one object on every line (JSON Lines) was "
        f"expected. Convert: jq -c '.[]' {path.name} > {path.name.partition('.')[0]}.jsonl"
    )
