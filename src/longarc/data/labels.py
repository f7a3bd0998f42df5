"""The label space: the classes of the training split, how frequent they are, and their codes."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from longarc.errors import DataError, RunError
from longarc.files import write_json

# As in the long-tail literature (OpenLongTailRecognition, Liu et al. 2019): many, medium and few
# shot, in numbers of training examples.
HEAD = 100  # head: so many or more
MID = 20  # mid: so many or more; tail: fewer


# True and 3.0 as pandas writes them, TRUE as spreadsheets do: cells.as_label has true and 3.
_TYPED = re.compile(r"(?i:(true|false))|(-?\d+)\.0")


def flat(labels: Iterable[str | list[str]]) -> Iterator[str]:
    """Each name of labels that are single ones or lists.

    >>> [*flat(["a"]), *flat([["a", "b"], []])]
    ['a', 'a', 'b']
    """
    for label in labels:
        if isinstance(label, str):
            yield label
        else:
            yield from label


def spelled_like(labels: Sequence[Any], known: Iterable[str]) -> list[Any]:
    """Labels of one table in the spelling of another's, whose file may be of another kind.

    A boolean and a whole number are named ``true`` and ``3``, while text stays as it is, so that
    ``True`` and ``3.0``, as pandas writes them in CSV, would be labels of their own. A label that
    is not known takes the known spelling, unless it is not clear which or the table has it too.

    >>> spelled_like(["True", "spam", "3.10"], ["true", "Spam", "3.1"])
    ['true', 'spam', '3.10']
    >>> spelled_like([["1", "0"], []], ["1.0", "2.0"])
    [['1.0', '0'], []]
    >>> spelled_like(["1.0", "1"], ["1"])
    ['1.0', '1']
    """
    here, there = set(flat(labels)), set(known)
    ways: dict[str, list[str]] = defaultdict(list)
    for name in there:
        ways[_as_typed(name)].append(name)
    spelled = {
        name: found[0]
        for name in here - there
        if len(found := ways[_as_typed(name)]) == 1 and found[0] not in here
    }
    return [
        spelled.get(label, label)
        if isinstance(label, str)
        else [spelled.get(name, name) for name in label]
        for label in labels
    ]


def _as_typed(name: str) -> str:
    found = _TYPED.fullmatch(name)
    return name if found is None else (found[1] or found[2]).lower()


@dataclass(frozen=True)
class LabelSpace:
    """The C classes in the order of the model's outputs: most frequent first, then by name.

    ``counts`` are numbers of training examples.

    >>> space = LabelSpace.from_labels(["b", "a", "b", "c"])
    >>> space.names, space.counts, space.groups
    (('b', 'a', 'c'), (2, 1, 1), ('tail', 'tail', 'tail'))
    >>> space.encode(["a", "new"])
    array([ 1, -1])
    >>> space.decode([0, 2])
    ['b', 'c']
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    multi_label: bool

    @classmethod
    def from_labels(cls, labels: Sequence[str] | Sequence[list[str]] | None) -> LabelSpace:
        """Count the labels of the training split: a name for each example, or a list of names.

        Raises:
            DataError: there are no labels, or only one class.
        """
        if not labels:
            raise DataError("There are no labels to learn. Expected at least two classes.")
        multi_label = not isinstance(labels[0], str)
        counts = Counter(flat(labels))
        if not counts:
            raise DataError(
                f"All {len(labels)} training examples have an empty list of labels. Expected at "
                "least two classes; is it the right label column?"
            )
        if len(counts) == 1:
            raise DataError(
                f"All labels of the training split are {next(iter(counts))!r}. Expected at least "
                "two classes; is it the right label column?"
            )
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        names, numbers = zip(*ordered, strict=True)
        return cls(names, numbers, multi_label)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def index(self) -> dict[str, int]:
        """The code of each name."""
        return {name: code for code, name in enumerate(self.names)}

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """For each class ``head`` (≥ 100 training examples), ``mid`` (20 to 99) or ``tail``."""
        return tuple(
            "head" if count >= HEAD else "mid" if count >= MID else "tail" for count in self.counts
        )

    def encode(self, labels: Sequence[str] | Sequence[list[str]]) -> np.ndarray:
        """Codes of n examples: int64 (n,), or float32 (n, C) of 0 and 1 for multi-label.

        A label that is not in the space becomes -1, or is left out for multi-label; ``unseen``
        and ``outside`` count them.
        """
        if not self.multi_label:
            return np.array([self.index.get(_one(name), -1) for name in labels], dtype=np.int64)
        codes = np.zeros((len(labels), len(self)), dtype=np.float32)
        for row, names in enumerate(labels):
            for name in _several(names):
                if name in self.index:
                    codes[row, self.index[name]] = 1.0
        return codes

    def decode(self, codes: Any) -> list[Any]:
        """Names for codes: integers (n,), or (n, C) of 0 and 1 for multi-label (names listed)."""
        codes = np.asarray(codes)
        if self.multi_label:
            return [[self.names[c] for c in np.flatnonzero(row > 0.5)] for row in codes]
        if codes.size and (codes.min() < 0 or codes.max() >= len(self)):
            raise DataError(
                f"Code {codes.min() if codes.min() < 0 else codes.max()} has no name: codes go "
                f"from 0 to {len(self) - 1} (-1 stands for a label not seen in training)."
            )
        return [self.names[code] for code in codes.astype(np.int64).tolist()]

    def unseen(self, labels: Sequence[str] | Sequence[list[str]]) -> dict[str, int]:
        """How often each label occurs that is not in the space, most frequent first."""
        counts = Counter(name for name in flat(labels) if name not in self.index)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def outside(self, labels: Sequence[str] | Sequence[list[str]]) -> np.ndarray:
        """How many labels of each of n examples are not in the space: int64 (n,).

        >>> LabelSpace(("a", "b"), (2, 1), multi_label=True).outside([["a", "new"], ["b"], []])
        array([1, 0, 0])
        """
        return np.array(
            [sum(name not in self.index for name in flat([label])) for label in labels],
            dtype=np.int64,
        )

    def refuse_strangers(self, labels: Sequence[str] | Sequence[list[str]], source: str) -> None:
        """Refuse a table to measure on that has labels, and none of the space.

        Raises:
            DataError: so it is, and the message shows a label of each; or single labels are given
                where the space has lists, or the other way around.
        """
        self.encode(labels[:1])  # refuses the other form
        strange = next(iter(self.unseen(labels)), None)
        if strange is None or any(name in self.index for name in flat(labels)):
            return
        folded = {name.casefold(): name for name in self.names}
        near = difflib.get_close_matches(strange.casefold(), folded, n=1)
        known = folded[near[0]] if near else self.names[0]
        raise DataError(
            f"No label of {source} is one that the run was trained on: there {strange!r}, in "
            f"training {known!r}. Spell them as in training, or name another column with --label."
        )

    def to_dict(self) -> dict[str, Any]:
        """What ``labels.json`` holds."""
        entries = zip(self.names, self.counts, self.groups, strict=True)
        return {
            "multi_label": self.multi_label,
            "labels": [{"name": n, "count": c, "group": g} for n, c, g in entries],
        }

    def save(self, path: str | Path) -> None:
        """Write ``labels.json``."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> LabelSpace:
        """Read ``labels.json``.

        Raises:
            RunError: the file is missing or is not what ``save`` wrote.
        """
        path = Path(path)
        if not path.is_file():
            raise RunError(f"{path} does not exist. Expected the labels.json of a run folder.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            labels = found["labels"]
            names = tuple(str(label["name"]) for label in labels)
            counts = tuple(int(label["count"]) for label in labels)
            multi_label = bool(found["multi_label"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is not a label space ({type(error).__name__}: {error}). Expected "
                '{"multi_label": …, "labels": [{"name": …, "count": …}, …]}; train the run again.'
            ) from error
        return cls(names, counts, multi_label)


def _one(label: str | list[str]) -> str:
    if isinstance(label, str):
        return label
    raise DataError(
        f"The labels are lists such as {label}, where the training split has a single label for "
        "each text. Give both the same form."
    )


def _several(label: str | list[str]) -> list[str]:
    if not isinstance(label, str):
        return label
    raise DataError(
        f"The labels are single ones such as {label!r}, where the training split has lists. Give "
        "both the same form, for example with --label-separator."
    )
