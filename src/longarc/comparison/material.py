"""What all candidates have in common: the table, its splits, and the documents to predict."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

from longarc.comparison.config import CompareConfig
from longarc.comparison.presets import PRESETS
from longarc.data.columns import Columns
from longarc.data.examples import Examples, read_examples
from longarc.data.labels import LabelSpace, flat
from longarc.data.licenses import read_licenses
from longarc.data.splits import Splits, make_splits
from longarc.data.table import open_table
from longarc.errors import OptionError
from longarc.training.run_folder import hash_texts


@dataclass(frozen=True)
class Material:
    """``config`` has guesses and the presets' values filled in; ``splits`` are by seed.

    ``table`` is what has to be written to a file, as every candidate reads it in its own process;
    None where it is one.
    """

    config: CompareConfig
    splits: dict[int, Splits]
    table: Examples | None
    notes: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        """Whether a document can have several labels."""
        return self.first.train.multi_label

    @property
    def first(self) -> Splits:
        """The splits of the first seed."""
        return next(iter(self.splits.values()))

    def facts(self) -> dict[str, Any]:
        """What is written down of the data, and has to be the same when a comparison goes on."""
        first = self.first
        return {
            "documents": {name: len(part) for name, part in first.items()},
            "classes": len(set(flat(first.train.labels or ()))),
            "multi_label": self.multi_label,
            "sha256": hash_texts(
                part
                for splits in self.splits.values()
                for _, split in splits.items()
                for part in (*split.texts, *map(str, split.labels or ()))
            ),
        }

    def documents(self) -> list[str]:
        """A random sample of the held-out texts, for the speed of prediction."""
        held_out = self.first.test or self.first.validation or self.first.train
        count = min(self.config.documents, len(held_out))
        return random.Random(0).sample(list(held_out.texts), count)


def read_material(config: CompareConfig, data: Any = None) -> Material:
    """Read and split what a comparison is of.

    Raises:
        DataError: the table cannot be used, or all that is trained on is of one class.
        OptionError: no budget, or no table, where the candidates bring none.
    """
    preset = PRESETS.get(config.candidates)
    packaged = data is None and not config.data
    if packaged and (preset is None or preset.fractions is None):
        raise OptionError(
            "no table named: expected DATA, a file of texts and labels. Only --candidates "
            "everything-small comes with texts."
        )
    if config.budget is None:
        if preset is None or preset.budget is None:
            raise OptionError(
                "no budget named. Every candidate gets the same: add --budget-examples N, "
                "--budget-steps N or --budget-minutes M."
            )
        config = dataclasses.replace(
            config, **{f"budget_{preset.budget.kind}": int(preset.budget.amount)}
        )
    if preset is not None and preset.limit is not None and config.limit is None:
        config = dataclasses.replace(config, limit=preset.limit)
    if packaged and preset is not None and preset.fractions is not None:
        validation, test = preset.fractions
        data = _licences()
        config = dataclasses.replace(
            config, data="licence texts of licensedcode-data", validation_fraction=validation,
            test_fraction=test, text="text", label="label",
        )  # fmt: skip
    return _split(config, data)


def _licences() -> dict[str, Any]:
    examples = read_licenses("category")
    return {"text": examples.texts, "label": examples.labels or []}


def _split(config: CompareConfig, data: Any) -> Material:
    source = config.data if data is None else data
    table = open_table(source, to_train=True)
    notes = list(table.notes)
    splits: dict[int, Splits] = {}
    columns = Columns("", None)
    for seed in config.every_seed:
        examples, columns = read_examples(
            table, text=config.text, label=config.label, label_separator=config.label_separator,
            limit=config.limit, seed=seed,
        )  # fmt: skip
        parts = {
            name: read_examples(
                getattr(config, name), text=columns.text, label=columns.label,
                label_separator=config.label_separator,
            )[0].spelled_like(flat(examples.labels or ()))
            for name in ("validation", "test")
            if getattr(config, name) is not None
        }  # fmt: skip
        splits[seed] = make_splits(
            examples, **parts, validation_fraction=config.validation_fraction,
            test_fraction=config.test_fraction, seed=seed,
        )  # fmt: skip
        LabelSpace.from_labels(splits[seed].train.labels)  # refuses labels with nothing to learn
    notes += columns.guessed
    config = dataclasses.replace(config, text=columns.text, label=columns.label)
    whole = None
    if data is not None:
        whole, _ = read_examples(
            table, text=config.text, label=config.label, label_separator=config.label_separator
        )
    return Material(config, splits, whole, tuple(notes))
