"""Texts without labels, for what learns from them beside a labelled table."""

from __future__ import annotations

from typing import Any

from longarc.data.examples import Examples, read_examples
from longarc.data.splits import Splits
from longarc.errors import DataError


def read_unlabelled(source: Any, *, text: str | None, splits: Splits) -> tuple[Examples, str]:
    """Read texts to learn from without labels, and say in a sentence how many there are.

    Empty texts are left out, and so are those of the validation and test splits: figures on texts
    that training has read would not be those of new ones.

    Args:
        source: as for ``open_table``; a label column is not looked at.
        text: column of the texts; guessed when not named.
        splits: of the labelled table.

    Raises:
        DataError: the table or its columns cannot be used, or nothing is left.

    >>> table = Examples("a.csv", ["x", "y"], ["p", "q"], [1, 2])
    >>> splits = Splits(table.select([0]), None, table.select([1]))
    >>> examples, sentence = read_unlabelled({"text": ["y", "", "z"]}, text="text", splits=splits)
    >>> examples.texts, sentence.partition(": ")[2]
    (['z'], '1 text without a label, besides 1 that is empty and 1 that is held out')
    """
    found, _ = read_examples(source, text=text, need_label=False)
    held_out = {t.strip() for name, part in splits.items() if name != "train" for t in part.texts}
    stripped = [t.strip() for t in found.texts]
    empty, held = stripped.count(""), sum(t in held_out for t in stripped if t)
    kept = found.select([i for i, t in enumerate(stripped) if t and t not in held_out])
    besides = [
        f"{number:,} that {'is' if number == 1 else 'are'} {what}"
        for number, what in ((empty, "empty"), (held, "held out"))
        if number
    ]
    if not len(kept):
        raise DataError(
            f"{found.source} has no text to learn from without a label"
            f"{': ' + ' and '.join(besides) if besides else ''}. Name another table."
        )
    sentence = f"{found.source}: {_counted(len(kept))} without a label"
    return kept, sentence + (f", besides {' and '.join(besides)}" if besides else "")


def _counted(number: int) -> str:
    return f"{number:,} text{'' if number == 1 else 's'}"
