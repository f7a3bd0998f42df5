"""Every option of a comparison, with its default and the reason for it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longarc.comparison.budget import Budget
from longarc.errors import OptionError
from longarc.options import check_whole
from longarc.training.option_fields import (
    check_choices,
    check_kinds,
    check_out,
    check_ranges,
    check_split,
    option,
)


@dataclass
class CompareConfig:
    """The options of ``longarc compare`` and :func:`longarc.compare`.

    >>> CompareConfig(data="tickets.csv", candidates="attention", out="runs/compare").repeats
    5
    """

    data: str | None = option(
        None,
        "table of texts and labels, as for longarc train; without one, and with --candidates "
        "everything-small, the packaged licence texts",
    )
    candidates: str = option(
        "",
        "YAML file of candidates, the same in one line, or a preset: attention, tail or "
        "everything-small",
    )
    out: str = option("", "folder to write")
    options: dict | None = option(
        None,
        "options of longarc train for every candidate that does not name them, e.g. "
        "'{\"max_length\": 256}'",
    )
    budget_steps: int | None = option(None, "updates that each candidate is trained for")
    budget_examples: int | None = option(
        None, "documents that each candidate is trained on, repetitions counted"
    )
    budget_minutes: float | None = option(
        None, "minutes of steps that each candidate gets, by its speed before the training"
    )
    text: str | None = option(None, "column of texts; guessed when not named")
    label: str | None = option(None, "column of labels; guessed when not named")
    label_separator: str | None = option(
        None, "the label column holds several labels joined by this"
    )
    validation: str | None = option(None, "table to validate on, instead of a part of DATA")
    test: str | None = option(None, "table to test on, instead of a part of DATA")
    validation_fraction: float = option(
        0.15, "part of DATA to validate on when no table is named; 0 for none"
    )
    test_fraction: float = option(
        0.15, "part of DATA to test on when no table is named; 0 for none"
    )
    limit: int | None = option(None, "use only this many rows of DATA, drawn at random")
    seeds: list | None = option(
        None,
        "seeds of split, head, order and dropout; each candidate is trained with each; default: 0",
    )
    documents: int = option(64, "held-out documents that the speed of prediction is measured on")
    repeats: int = option(5, "turns of each candidate that the speed of prediction is measured in")
    device: Literal["auto", "cpu"] = option("auto", "auto: a GPU where there is one")
    resume: bool = option(False, "go on with the comparison in --out, with its options")
    overwrite: bool = option(False, "replace an earlier comparison")

    def validate(self) -> None:
        """Refuse values of the wrong kind or out of range, before any work: OptionError."""
        check_kinds(self)
        check_ranges(
            self,
            {
                "budget_steps": (1, None), "budget_examples": (1, None), "budget_minutes": (0, None),
                "validation_fraction": (0, 0.9), "test_fraction": (0, 0.9), "limit": (1, None),
                "documents": (1, None), "repeats": (1, None),
            },
        )  # fmt: skip
        check_split(self)
        check_choices(self)
        for seed in self.every_seed:
            check_whole("--seeds", seed, at_most=2**32 - 1)
        if len(set(self.every_seed)) < len(self.every_seed):
            raise OptionError(
                f"--seeds names one twice: {self.every_seed}. Expected different ones."
            )
        if self.budget_minutes == 0:
            raise OptionError("--budget-minutes is 0: expected more than that.")
        if not self.candidates:
            raise OptionError(
                "no candidates named. Add --candidates FILE, or attention, tail or "
                "everything-small."
            )
        check_out(self)
        _ = self.budget

    @property
    def every_seed(self) -> list[int]:
        """The seeds, 0 where none is named."""
        return [0] if self.seeds is None else list(self.seeds)

    @property
    def budget(self) -> Budget | None:
        """What is named of the three; OptionError for more than one."""
        named = {
            "steps": self.budget_steps,
            "examples": self.budget_examples,
            "minutes": self.budget_minutes,
        }
        given = {kind: amount for kind, amount in named.items() if amount is not None}
        if len(given) > 1:
            flags = " and ".join(f"--budget-{kind}" for kind in given)
            raise OptionError(f"{flags} exclude each other: name one budget.")
        return next((Budget(kind, amount) for kind, amount in given.items()), None)  # pyright: ignore[reportArgumentType]

    @property
    def folder(self) -> Path:
        """The comparison's folder as a path."""
        return Path(self.out).expanduser()
