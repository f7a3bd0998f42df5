"""What the dataclasses of options share: fields with help texts, and checks of their values.

Free of torch. An option is called by its flag, ``--batch-size``, in every message.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import field
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from longarc.errors import OptionError, close_matches

_EXPECTED = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a string",
    dict: "a mapping, such as {'tau': 0.5}",
    list: "a list, such as ['fgm', {'flooding': {'level': 0.1}}]",
}  # fmt: skip


def option(default: Any, help: str) -> Any:  # noqa: A002
    """A dataclass field whose help text the command line shows."""
    return field(default=default, metadata={"help": help})


def flag(name: str) -> str:
    """An option as it is typed.

    >>> flag("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def check_kinds(config: Any) -> None:
    """Raise OptionError for a value that is not of its field's type."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        if (value is None and NoneType in kinds) or get_origin(hint) is Literal:
            continue
        words = [word for part in kinds if get_origin(part) is Literal for word in get_args(part)]
        if value in words:
            continue
        kind = kinds[0]
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            expected = " or ".join([_EXPECTED[kind], *words])
            raise OptionError(f"{flag(name)} is {value!r}: expected {expected}.")


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float | None]]) -> None:
    """Raise OptionError for a number outside its (low, high); None for high is no bound."""
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise OptionError(f"{flag(name)} is {value!r}: expected a finite number.")
        if not low <= value <= (high if high is not None else float("inf")):
            bound = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise OptionError(f"{flag(name)} is {value}: expected {bound}.")


def check_split(config: Any) -> None:
    """Raise OptionError for fractions that leave nothing, and for a separator that is none."""
    parts = {
        flag(f"{name}_fraction"): getattr(config, f"{name}_fraction")
        for name in ("validation", "test")
        if getattr(config, name) is None
    }
    given = " and ".join(f"{name} {part}" for name, part in parts.items())
    if len(parts) == 2 and not any(parts.values()):
        raise OptionError(
            f"{' and '.join(parts)} are both 0, so nothing would be measured. Leave a part of the "
            "table for one of them, or name a table with --validation or --test."
        )
    if sum(parts.values()) >= 1:
        raise OptionError(f"{given} leave nothing to train on. Expected a sum below 1.")
    if config.label_separator is not None and not config.label_separator.strip(" "):
        raise OptionError(
            "--label-separator is empty or a space. Expected a character such as ';'."
        )


def check_choices(config: Any) -> None:
    """Raise OptionError for a value that is none of its field's choices, with the close ones."""
    for name, hint in get_type_hints(type(config)).items():
        value, choices = getattr(config, name), get_args(hint)
        if get_origin(hint) is Literal and value not in choices:
            raise OptionError(f"{flag(name)} is '{value}'. {close_matches(str(value), choices)}")


def check_only_with(config: Any, rules: Mapping[str, tuple[str, tuple[Any, ...]]]) -> None:
    """Raise OptionError for an option that another's value leaves without effect.

    ``rules`` has for each name the other option and the values that it is for.
    """
    for name, (other, needed) in rules.items():
        if getattr(config, name) != getattr(type(config), name):
            found = getattr(config, other)
            if found not in needed:
                raise OptionError(
                    f"{flag(name)} is for {flag(other)} {' or '.join(map(str, needed))}, and "
                    f"{flag(other)} is {found or 'not given'}. Add that, or drop this."
                )


def check_out(config: Any) -> None:
    """Raise OptionError unless ``out`` names a folder, and resume and overwrite go together."""
    if config.resume and config.overwrite:
        raise OptionError("--resume keeps the run and --overwrite deletes it. Drop one of them.")
    if not config.out:
        raise OptionError("no run folder named. Add --out runs/NAME.")


def check_names(function: str, options: Mapping[str, Any], kind: type) -> None:
    """Raise OptionError for a keyword that is no field of the dataclass ``kind``."""
    known = [f.name for f in dataclasses.fields(kind)]
    for name in options:
        if name not in known:
            raise OptionError(f"{function} has no option '{name}'. {close_matches(name, known)}")


def differing(config: Any, other: Any, free: set[str]) -> dict[str, tuple[Any, Any]]:
    """Options but for ``free`` ones that differ, as name → (this, other)."""
    mine, theirs = dataclasses.asdict(config), dataclasses.asdict(other)
    return {k: (mine[k], theirs[k]) for k in mine if k not in free and mine[k] != theirs[k]}
