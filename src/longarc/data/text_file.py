"""A text file as checked lines: gzip, byte-order marks, encodings and stray NULs."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from longarc.errors import DataError

# Bytes that are not UTF-8 come through the decoder as these surrogates (PEP 383), so the parser
# can go on and the error can name the row and the column instead of an offset in the file.
_SUSPECT = re.compile("[\0\udc80-\udcff]")


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file, gzip-compressed or not (told by its first bytes), for the parsers.

    A byte-order mark is dropped and line ends are left as they are, as ``csv`` wants them. Bytes
    that are not UTF-8 arrive as surrogates: see ``SuspectLines``.

    Raises:
        DataError: the file is empty, UTF-16, a zip archive (Excel), or damaged gzip.
    """
    with path.open("rb") as raw:
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
        stream = gzip.GzipFile(fileobj=raw) if zipped else raw
        try:
            head = stream.peek(4096)[:4096]
            _check_start(path, head, zipped)
            yield io.TextIOWrapper(
                io.BufferedReader(stream) if zipped else stream,  # pyright: ignore[reportArgumentType]
                encoding="utf-8-sig",
                errors="surrogateescape",
                newline="",
            )
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path} is a damaged gzip file ({error}). Compress or download it again."
            ) from error


class SuspectLines:
    """Iterate over lines and remember, in ``found``, whether one held a NUL or a non-UTF-8 byte."""

    def __init__(self, lines: Iterable[str]):
        self._lines = iter(lines)
        self.found = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if _SUSPECT.search(line):
            self.found = True
        return line


def refuse_suspect_cells(path: Path, where: str, cells: Iterable[tuple[str, object]]) -> None:
    """Raise the error for the first cell that holds a NUL or a byte that is not UTF-8.

    Args:
        path: the file, for the message and the command that mends it.
        where: the place in the file, such as ``row 3 (line 4)``.
        cells: pairs of column name and value.
    """
    remove_nul = "tr -d '\\000'"
    for column, value in cells:
        found = _SUSPECT.search(value) if isinstance(value, str) else None
        if found is None:
            continue
        before = value[max(0, found.start() - 20) : found.start()]  # pyright: ignore[reportIndexIssue]
        place = f"{path}, {where}, column {column!r}"
        if found.group() == "\0":
            raise DataError(
                f"{place}: a NUL byte after {before!r}, where text was expected; the file is "
                f"damaged or not text. Remove it: {_pipe(path, remove_nul)}"
            )
        encoding = _guess_encoding(value)  # pyright: ignore[reportArgumentType]
        raise DataError(
            f"{place}: byte 0x{ord(found.group()) & 0xFF:02X} after {before!r} is not UTF-8, which "
            f"was expected; it looks like {encoding}. "
            f"Convert: {_pipe(path, f'iconv -f {encoding} -t UTF-8')}"
        )


def _guess_encoding(value: str) -> str:
    try:
        value.encode("utf-8", "surrogateescape").decode("cp1252")
    except UnicodeDecodeError:
        return "LATIN1"
    return "CP1252"


def _pipe(path: Path, command: str) -> str:
    """A shell line that sends the file through a command into a new file beside it."""
    name = path.name.removesuffix(".gz")
    stem, dot, suffix = name.rpartition(".")
    out = f"{stem}-utf8{dot}{suffix}" if dot else f"{name}-utf8"
    reader = "gunzip -c" if path.name.endswith(".gz") else "cat"
    return f"{reader} {path.name} | {command} > {out}"


def _check_start(path: Path, head: bytes, zipped: bool) -> None:
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError(f"{path} is empty. Expected a table with a header and at least one row.")
    if head.startswith(b"PK\x03\x04") and not zipped:
        raise DataError(
            f"{path} is a zip archive or an Excel workbook, not text. "
            "Unpack it, or save the sheet as 'CSV UTF-8'."
        )
    zeros = head[::2].count(0), head[1::2].count(0)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or max(zeros) > len(head) // 8:
        raise DataError(
            f"{path} is UTF-16, and UTF-8 was expected. "
            f"Convert: {_pipe(path, 'iconv -f UTF-16 -t UTF-8')}"
        )
