"""What a cell means as a text, as a label and as several labels."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from longarc.errors import DataError, OptionError

# Half of a surrogate pair is no character: tokenizers and UTF-8 refuse it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def as_text(value: Any) -> str:
    """The text in a cell; missing values are an empty text, half characters become U+FFFD.

    >>> as_text("two words"), as_text(None), as_text(7)
    ('two words', '', '7')

    Raises:
        ValueError: the value is a list, bytes or another kind that is not text.
    """
    if isinstance(value, str):
        return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | int | float):
        return str(value)
    raise ValueError(f"a {type(value).__name__}, where text was expected; write it as one string")


def as_texts(values: Iterable[Any], where: str, before: int = 0) -> list[str]:
    """Cells as training reads them: a missing one is an empty text.

    Raises:
        DataError: a cell that is no text; it names ``where`` and the row, counted from
            ``before`` + 1.
        OptionError: one string, or a table, whose items would be its letters or its columns.

    >>> as_texts(["a", None], "texts")
    ['a', '']
    """
    if isinstance(values, str):
        raise OptionError("expected a list of texts, found one string. Use [text].")
    if isinstance(values, Mapping) or hasattr(values, "columns") or hasattr(values, "column_names"):
        raise OptionError(
            f"expected a list of texts, found a {type(values).__name__} of columns. Take the one "
            'with the texts, as in table["text"]; predict_table reads whole tables.'
        )
    texts: list[str] = []
    for value in values:
        try:
            texts.append(as_text(value))
        except ValueError as error:
            raise DataError(f"{where}, row {before + len(texts) + 1}: {error}.") from error
    return texts


def as_label(value: Any) -> str | None:
    """The name of a class in a cell, or None where it is missing (None, NaN, "", "nan", "NaN").

    >>> as_label(" spam "), as_label(True), as_label(3), as_label(3.0), as_label(float("nan"))
    ('spam', 'true', '3', '3', None)

    Raises:
        ValueError: a fractional number (a class has no half), or a kind that names no class.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        name = as_text(value).strip()
        return None if name in ("", "nan", "NaN") else name
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if value.is_integer():
            return str(int(value))
        raise ValueError(
            f"{value}, which looks like regression; longarc predicts classes: "
            "turn the numbers into names of ranges"
        )
    raise ValueError(f"a {type(value).__name__}, where a string, an integer or a list was expected")


def as_labels(value: Any, separator: str | None = None) -> list[str]:
    """The names of several classes in a cell, stripped, without empty and repeated ones.

    >>> as_labels(["a", None, "b", "a"]), as_labels("a; b;", ";"), as_labels("['a', 'b']")
    (['a', 'b'], ['a', 'b'], ['a', 'b'])
    >>> as_labels(None)
    []

    Raises:
        ValueError: as for ``as_label``; and a row of an indicator matrix, such as [0, 1, 0, 0].
    """
    parts = _parts(value, separator)
    if len(parts) > 2 and all(_is_indicator(part) for part in parts):  # one is there twice
        raise ValueError(
            f"{parts[:8]}, which looks like an indicator of classes; expected the names of those "
            "that the document has, as sklearn's MultiLabelBinarizer.inverse_transform gives them"
        )
    return list(dict.fromkeys(name for part in parts if (name := as_label(part)) is not None))


def _is_indicator(value: Any) -> bool:
    return isinstance(value, bool | int | float) and value in (0, 1)


def holds_several(value: Any) -> bool:
    """Whether a cell is a list, or a string that is a list written in JSON or Python.

    >>> holds_several(["a"]), holds_several('["a", "b"]'), holds_several("[urgent] a")
    (True, True, False)
    """
    if isinstance(value, str):
        return _written_list(value) is not None
    return isinstance(value, list | tuple | set) or getattr(value, "ndim", 0) == 1


def _parts(value: Any, separator: str | None) -> list[Any]:
    if isinstance(value, str):
        written = _written_list(value)
        if written is not None:
            return written
        return value.split(separator) if separator else [value]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, set):
        return sorted(value, key=str)
    return list(value) if isinstance(value, list | tuple) else [value]


def _written_list(value: str) -> list[Any] | None:
    """The list in a cell such as ``["a", "b"]``, as pandas and spreadsheets of lists write it."""
    value = value.strip()
    if not (value.startswith("[") and value.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return parsed if isinstance(parsed, list) else None
    return None
