"""Which column holds the texts and which the labels: as named, else guessed and said."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from longarc.data.cells import as_labels, holds_several
from longarc.data.table import Table
from longarc.errors import DataError, close_matches

TEXT_NAMES = (
    "text", "texts", "body", "content", "contents", "document", "doc", "description", "sentence",
    "message", "abstract", "article", "review", "comment", "report", "note", "notes", "transcript",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "classes", "category", "categories", "target", "targets", "topic",
    "topics", "tag", "tags", "intent", "sentiment", "genre", "code", "codes",
)  # fmt: skip

_SAMPLE = 1000  # rows a guess looks at


@dataclass(frozen=True)
class Columns:
    """The chosen columns, and a sentence for each that was guessed, to print to the user."""

    text: str
    label: str | None
    guessed: tuple[str, ...] = ()


def choose_columns(
    table: Table,
    text: str | None = None,
    label: str | None = None,
    *,
    need_label: bool = True,
    text_option: str = "--text",
) -> Columns:
    """Check the named columns, and guess those that are not named.

    A text column is guessed by its name, else it is the one with by far the longest strings. A
    label column is guessed by its name, else it is the only one with few distinct short values.
    With ``need_label=False`` a label column is used only when it is named. ``text_option`` is what
    the messages call the option that names the column of texts.

    >>> from longarc.data.table import open_table
    >>> table = open_table({"id": [1, 2, 3], "body": ["a", "b", "c"], "topic": ["x", "y", "x"]})
    >>> columns = choose_columns(table, text="body")
    >>> columns.label, columns.guessed
    ('topic', ('label column: topic (guessed; name it with --label)',))

    Raises:
        DataError: a named column does not exist, or there is no single good guess.
    """
    for name, option in ((text, text_option), (label, "--label")):
        if name is not None and name not in table.columns:
            raise DataError(
                f"{table.name} has no column {name!r}. {_known(name, table.columns)} "
                f"Name the column with {option}."
            )
    if text is not None and text == label:
        raise DataError(f"Column {text!r} is named as both text and label. Name two columns.")
    guessed = []
    sample: dict[str, list[Any]] = {}
    if text is None or (label is None and need_label):
        sample = next(table.batches(_SAMPLE))
    if text is None:
        text = _guess_text(table, sample, taken=label, option=text_option)
        guessed.append(f"text column: {text} (guessed; name it with {text_option})")
    if label is None and need_label:
        label = _guess_label(table, sample, taken=text)
        guessed.append(f"label column: {label} (guessed; name it with --label)")
    return Columns(text, label, tuple(guessed))


def _guess_text(table: Table, sample: dict[str, list[Any]], taken: str | None, option: str) -> str:
    lengths = {name: _mean_length(sample[name]) for name in table.columns if name != taken}
    lengths = {name: length for name, length in lengths.items() if length is not None}
    named = [name for name in lengths if name.lower() in TEXT_NAMES]
    if len(named) == 1:
        return named[0]
    unnamed = [name for name in lengths if name.lower() not in LABEL_NAMES]
    ranked = sorted(named or unnamed or lengths, key=lambda name: -lengths[name])
    if len(ranked) == 1 or (ranked and lengths[ranked[0]] >= 2 * lengths[ranked[1]]):
        return ranked[0]
    close = [name for name in ranked if 2 * lengths[name] > lengths[ranked[0]]]
    why = f"It could be {_shown(close)}" if close else "None holds strings"
    raise DataError(
        f"Which column of {table.name} holds the texts? {why}. "
        f"Name it with {option}. {_known('', table.columns)}"
    )


def _guess_label(table: Table, sample: dict[str, list[Any]], taken: str) -> str:
    others = [name for name in table.columns if name != taken]
    named = [name for name in others if name.lower() in LABEL_NAMES]
    canonical = [name for name in named if name.lower() in ("label", "labels")]
    for names in (named, canonical):
        if len(names) == 1:
            return names[0]
    likely = named or [name for name in others if _looks_like_label(sample[name])]
    if len(likely) == 1:
        return likely[0]
    why = f"It could be {_shown(likely)}" if likely else "None looks like one"
    raise DataError(
        f"Which column of {table.name} holds the labels? {why}. "
        f"Name it with --label. {_known('', table.columns)}"
    )


def _mean_length(values: list[Any]) -> float | None:
    """Mean length of the strings; None where the column holds something else."""
    strings = [value for value in values if value is not None]
    if not strings or not all(isinstance(value, str) for value in strings):
        return None
    return sum(map(len, strings)) / len(strings)


def _looks_like_label(values: list[Any]) -> bool:
    """Few distinct short values, whole numbers, booleans, or lists of these."""
    values = [value for value in values if value is not None and value == value]
    if not values:
        return False
    if all(holds_several(value) for value in values):
        return all(map(_names_classes, values))
    if not all(isinstance(value, str | int) or _is_whole(value) for value in values):
        return False
    length = _mean_length(values)
    return len({str(value) for value in values}) < len(values) and (length is None or length <= 60)


def _names_classes(value: Any) -> bool:
    """Whether a list may be one of labels; an embedding is none."""
    try:
        as_labels(value)
    except ValueError:
        return False
    return True


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value.is_integer()


def _shown(names: list[str]) -> str:
    return " or ".join(_short(name) for name in names[:20])


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:39] + "…"


def _known(name: str, columns: list[str]) -> str:
    help_ = close_matches(name, [_short(column) for column in columns[:40]])
    if any(len(column) > 100 for column in columns):
        help_ += " The first line looks like a row: is the header missing?"
    return help_
