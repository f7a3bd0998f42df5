"""Texts and labels with the rows they came from, read from any table."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longarc.data.cells import as_label, as_labels, as_text, holds_several
from longarc.data.columns import Columns, choose_columns
from longarc.data.labels import spelled_like
from longarc.data.table import Table, open_table
from longarc.errors import DataError, OptionError

__all__ = ["Columns", "Examples", "choose_columns", "read_examples"]


@dataclass(frozen=True)
class Examples:
    """Texts, their labels, and where they stand in the user's file.

    ``labels`` is a name for each text, or a list of names for each (multi-label; it may be empty),
    or None where there are none. ``rows`` counts from 1, the first after the header.

    >>> examples = Examples("table.csv", ["a", "b", "c"], ["x", "y", "x"], [1, 2, 3])
    >>> examples.select([2, 0])
    Examples(source='table.csv', texts=['c', 'a'], labels=['x', 'x'], rows=[3, 1])
    """

    source: str
    texts: list[str]
    labels: list[str] | list[list[str]] | None
    rows: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def multi_label(self) -> bool:
        """Whether a text can have any number of labels."""
        return bool(self.labels) and isinstance(self.labels[0], list)

    def select(self, indices: Sequence[int]) -> Examples:
        """The examples at these positions (not rows), in this order."""
        labels: Any = None if self.labels is None else [self.labels[i] for i in indices]
        texts, rows = [self.texts[i] for i in indices], [self.rows[i] for i in indices]
        return Examples(self.source, texts, labels, rows)

    def spelled_like(self, known: Iterable[str]) -> Examples:
        """With labels in the spelling of known ones, where the kind of file alone differs."""
        if self.labels is None:
            return self
        return dataclasses.replace(self, labels=spelled_like(self.labels, known))


def read_examples(
    source: Any,
    *,
    text: str | None = None,
    label: str | None = None,
    label_separator: str | None = None,
    need_label: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Examples, Columns]:
    """Read the texts and labels of a table.

    Labels may be strings, whole numbers or booleans (one class a text), or lists of them (several
    classes a text, or none). A cell that holds a written list, ``["a", "b"]``, counts as a list.
    Missing texts become empty ones, which ``check_splits`` reports.

    Args:
        source: as for ``open_table``.
        text: column of the texts; guessed when not named.
        label: column of the labels; guessed when not named and ``need_label``.
        label_separator: what stands between several labels in one string, such as ``;``.
        need_label: False reads labels only if ``label`` names their column.
        limit: keep a random sample of so many rows (not the first: files are often sorted), in the
            order of the file.
        seed: of that sample.

    Raises:
        DataError: a label is missing or is no class name, single and several labels are mixed, or
            the table or its columns cannot be used.
        OptionError: ``limit`` is not positive, or ``label_separator`` is empty.

    >>> table = {"text": ["a", "b"], "topics": ["x; y", ""]}
    >>> examples, _ = read_examples(table, label_separator=";")
    >>> examples.labels
    [['x', 'y'], []]
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit is {limit}. Expected a number of rows of at least 1.")
    if label_separator is not None and not label_separator.strip(" "):
        raise OptionError("label_separator is empty or a space. Expected a character such as ';'.")
    table = open_table(source)
    columns = choose_columns(table, text, label, need_label=need_label)
    reading = _Reading(table.name, columns, label_separator)
    kept: list[tuple[int, str, Any]] = []
    generator = random.Random(seed)
    for entry in reading.entries(table):
        if limit is None or len(kept) < limit:
            kept.append(entry)
        else:  # reservoir sampling (Vitter 1985, algorithm R): one pass, memory of the sample
            place = generator.randrange(entry[0])
            if place < limit:
                kept[place] = entry
    kept.sort(key=lambda entry: entry[0])
    labels = None if columns.label is None else reading.finish(kept)
    texts, rows = [entry[1] for entry in kept], [entry[0] for entry in kept]
    return Examples(table.name, texts, labels, rows), columns


class _Reading:
    """One pass over a table, which finds out on its way whether labels are single or several."""

    def __init__(self, source: str, columns: Columns, separator: str | None):
        self.source, self.columns, self.separator = source, columns, separator
        self.several: bool | None = None if separator is None else True
        self.decided_by = 0  # the row that showed which

    def entries(self, table: Table) -> Iterator[tuple[int, str, Any]]:
        """Row, text and label (None where missing) of each row."""
        text, label = self.columns.text, self.columns.label
        row = 0
        for batch in table.batches(columns=[text] if label is None else [text, label]):
            for place, value in enumerate(batch[text]):
                row += 1
                column = text
                try:
                    cleaned = as_text(value)
                    column = label
                    found = None if label is None else self.label(row, batch[label][place])
                except ValueError as error:
                    where = f"{self.source}, row {row}, column {column!r}"
                    raise DataError(f"{where}: {error}.") from error
                yield row, cleaned, found

    def label(self, row: int, value: Any) -> str | list[str] | None:
        several = holds_several(value)
        if self.separator is not None:
            return as_labels(value, self.separator)
        name = None if several else as_label(value)
        if name is None and not several:
            return None
        if self.several is None:
            self.several, self.decided_by = several, row
        if several != self.several:
            raise ValueError(
                f"{'a list' if several else f'the single label {name!r}'}, where row "
                f"{self.decided_by} has {'a single label' if several else 'a list'}; write lists "
                "in every row or in none"
            )
        return as_labels(value) if several else name

    def finish(self, kept: list[tuple[int, str, Any]]) -> list[Any]:
        """The labels of entries, once it is known what a missing one means."""
        labels = [label for _, _, label in kept]
        if self.several:
            return [[] if label is None else label for label in labels]
        if missing := [row for row, _, label in kept if label is None]:
            first = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
            raise DataError(
                f"{self.source}: {len(missing)} rows have no label in column "
                f"{self.columns.label!r} (rows {first}). Fill them in, or remove those rows."
            )
        _refuse_numbers(self.source, self.columns.label, labels)
        return labels


def _refuse_numbers(source: str, column: str | None, labels: list[str]) -> None:
    """Refuse a column of many fractional numbers, which a CSV file gives as strings."""
    distinct = set(labels)
    if len(distinct) <= 20:  # ratings such as 3.5 are classes
        return
    try:
        fractional = any(not float(label).is_integer() for label in distinct)
    except (ValueError, OverflowError):
        return
    if fractional:
        raise DataError(
            f"{source}: column {column!r} holds {len(distinct)} different numbers such as "
            f"{labels[0]}, which looks like regression; longarc predicts classes: name another "
            "label column, or turn the numbers into names of ranges."
        )
