"""Train, validation and test: stratified, seeded, and no text on two sides."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from longarc.data.examples import Examples
from longarc.data.labels import flat
from longarc.errors import DataError, OptionError

TRAIN = 0


@dataclass(frozen=True)
class Splits:
    """The examples to train on, to choose the best step with, and to measure with.

    One of ``validation`` and ``test`` may be missing.
    """

    train: Examples
    validation: Examples | None
    test: Examples | None

    def items(self) -> list[tuple[str, Examples]]:
        """Name and examples of the splits that exist."""
        pairs = [("train", self.train), ("validation", self.validation), ("test", self.test)]
        return [(name, examples) for name, examples in pairs if examples is not None]


def make_splits(
    examples: Examples,
    *,
    validation: Examples | None = None,
    test: Examples | None = None,
    validation_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
) -> Splits:
    """Split off what is not given as a file of its own.

    - Texts that are equal after stripping go to the same side.
    - Every class has a text in train; its second text, if it has one, is held out, so that as many
      classes as possible are measured. Beyond that each class is divided by the fractions.
    - Multi-label examples are divided by iterative stratification, rarest label first
      (Sechidis et al. 2011); one label is the special case.

    The same examples and seed give the same splits, each in the order of the file.

    Args:
        examples: n labelled examples.
        validation: given instead of a part of ``examples``.
        test: given instead of a part of ``examples``.
        validation_fraction: of ``examples``; 0 means no validation split.
        test_fraction: of ``examples``; 0 means no test split.
        seed: which texts go where.

    Raises:
        OptionError: the fractions leave nothing for a split, or nothing to measure with.
        DataError: there are too few examples, or they have no labels.

    >>> texts, rows = [f"text {row}" for row in range(1, 21)], list(range(1, 21))
    >>> examples = Examples("table.csv", texts, ["a", "b"] * 10, rows)
    >>> splits = make_splits(examples)
    >>> [len(split) for _, split in splits.items()]
    [14, 3, 3]
    """
    if examples.labels is None:
        raise DataError(f"{examples.source} was read without labels. Name the label column.")
    wanted = {}
    if validation is None and validation_fraction != 0:
        wanted["validation"] = validation_fraction
    if test is None and test_fraction != 0:
        wanted["test"] = test_fraction
    for name, fraction in wanted.items():
        if not 0 < fraction < 1:
            raise OptionError(
                f"{name}_fraction is {fraction}. Expected a number from 0 to below 1."
            )
    if not wanted and validation is None and test is None:
        raise OptionError(
            "validation_fraction and test_fraction are both 0, so nothing would be measured. "
            "Leave a part of the table for one of them, or name a table."
        )
    if sum(wanted.values()) >= 1:
        raise OptionError(
            f"The fractions {' and '.join(map(str, wanted.values()))} leave nothing to train on. "
            "Expected a sum below 1."
        )
    if not wanted:
        return Splits(examples, validation, test)

    _refuse_uniform(examples)
    parts = _assign(examples, [1 - sum(wanted.values()), *wanted.values()], seed)
    made = {}
    for part, name in enumerate(["train", *wanted]):
        made[name] = examples.select(np.flatnonzero(parts == part).tolist())
        if not len(made[name]):
            raise DataError(
                f"{examples.source}: {len(examples)} examples are too few for a {name} split: "
                "every class keeps a text in train, and equal texts stay together. Add examples, "
                f"or name a table of its own with --{name}."
            )
    return Splits(made["train"], validation or made.get("validation"), test or made.get("test"))


def _refuse_uniform(examples: Examples) -> None:
    """Name the usual reasons why a table cannot be split: mostly, a wrong column."""
    texts = {text.strip() for text in examples.texts}
    texts_of: dict[str, set[str]] = defaultdict(set)
    for text, label in zip(examples.texts, examples.labels or (), strict=True):
        for name in flat([label]):
            texts_of[name].add(text.strip())
    if texts == {""}:
        raise DataError(
            f"All {len(examples)} texts of {examples.source} are empty. "
            "Is it the right text column?"
        )
    if len(texts) == 1:
        raise DataError(
            f"All {len(examples)} texts of {examples.source} are the same. "
            "Is it the right text column?"
        )
    if len(examples) > 2 and texts_of and max(map(len, texts_of.values())) == 1:
        raise DataError(
            f"{examples.source} has {len(texts_of)} classes for {len(texts)} different texts, each "
            "in one text only, so none can be held out. Is it the right label column? If so, merge "
            "classes or add examples."
        )


def _assign(examples: Examples, fractions: list[float], seed: int) -> np.ndarray:
    """For each example its part, (n,): 0 is train."""
    groups, labels = _groups(examples)
    sizes = [len(group) for group in groups]
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    order.sort(key=lambda group: -sizes[group])  # large groups while there is room for them

    with_label: dict[str, list[int]] = defaultdict(list)
    for group in order:
        for name in labels[group]:
            with_label[name].append(group)
    names = sorted(with_label)
    # What each part still wants: in all, and of each label (rows). Assigning a group subtracts it.
    total = [fraction * len(examples) for fraction in fractions]
    rows = {name: sum(sizes[group] for group in with_label[name]) for name in names}
    wants = {name: [fraction * rows[name] for fraction in fractions] for name in names}
    left = {name: len(with_label[name]) for name in names}  # groups not yet assigned
    has = {name: [False] * len(fractions) for name in names}
    part_of: dict[int, int] = {}
    everywhere = range(len(fractions))

    def assign(group: int, part: int) -> None:
        # The last chance of a label to be in train comes before any other wish.
        if any(left[name] == 1 and not has[name][TRAIN] for name in labels[group]):
            part = TRAIN
        part_of[group] = part
        total[part] -= sizes[group]
        for name in labels[group]:
            wants[name][part] -= sizes[group]
            left[name] -= 1
            has[name][part] = True

    def part_for(name: str) -> int:
        if not has[name][TRAIN]:
            return TRAIN
        # A part later in the list wins a tie: a class with one text to hold out is tested on it.
        held_out = [part for part in everywhere if part != TRAIN]
        if not any(has[name][part] for part in held_out) and max(total[1:]) > 0:
            return max(held_out, key=lambda part: (wants[name][part], total[part], part))
        return max(everywhere, key=lambda part: (wants[name][part], total[part], part))

    waiting = set(names)
    while waiting:
        rarest = min(waiting, key=lambda name: (left[name], name))
        waiting.remove(rarest)
        for group in with_label[rarest]:
            if group not in part_of:
                assign(group, part_for(rarest))
    for group in order:
        if group not in part_of:  # no labels
            assign(group, max(everywhere, key=lambda part: total[part]))

    parts = np.empty(len(examples), dtype=np.int64)
    for group, part in part_of.items():
        parts[groups[group]] = part
    return parts


def _groups(examples: Examples) -> tuple[list[list[int]], list[list[str]]]:
    """Positions of equal texts, and all labels that each such group has."""
    positions: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(examples.texts):
        positions[text.strip()].append(position)
    groups = list(positions.values())
    labels = []
    for group in groups:
        found = [examples.labels[position] for position in group]  # pyright: ignore[reportOptionalSubscript]
        labels.append(sorted(set(flat(found))))
    return groups, labels
