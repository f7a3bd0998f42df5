"""Option values: as files can hold them, and checks that return one or say why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longarc.errors import OptionError, close_matches


def as_plain(value: Any) -> Any:
    """A value as YAML can hold it: paths as texts, numpy's numbers and arrays as Python's own.

    >>> import numpy as np
    >>> as_plain({"gamma": np.float64(2), "tables": [Path("a.csv")], "seeds": np.arange(2)})
    {'gamma': 2.0, 'tables': ['a.csv'], 'seeds': [0, 1]}
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {as_plain(name): as_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_plain(inner) for inner in value)
    # Of a type that numpy has: importing it to look would slow the command line down.
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return value


def check_number(
    name: str, value: object, *, at_least: float = 0.0, below: float = float("inf")
) -> float:
    """Return ``value`` as a float, or raise OptionError unless at_least ≤ value < below."""
    if isinstance(value, int | float) and not isinstance(value, bool) and at_least <= value < below:
        return float(value)
    bounds = f"at least {at_least:g}" + (f" and below {below:g}" if below < float("inf") else "")
    raise OptionError(
        f"{name} must be a finite number, {bounds}; found {value!r} ({type(value).__name__})."
    )


def check_positive(name: str, value: object) -> float:
    """Return ``value`` as a float, or raise OptionError unless it is a finite number above 0."""
    number = check_number(name, value)
    if number > 0:
        return number
    raise OptionError(f"{name} must be above 0; found {value!r}.")


def check_whole(name: str, value: object, *, at_least: int = 0, at_most: int | None = None) -> int:
    """Return ``value``, or raise OptionError unless it is a whole number of that range."""
    top = float("inf") if at_most is None else at_most
    if isinstance(value, int) and not isinstance(value, bool) and at_least <= value <= top:
        return value
    bounds = f"at least {at_least}" + ("" if at_most is None else f" and at most {at_most}")
    raise OptionError(
        f"{name} must be a whole number, {bounds}; found {value!r} ({type(value).__name__})."
    )


def check_flag(name: str, value: object) -> bool:
    """Return ``value``, or raise OptionError unless it is True or False."""
    if isinstance(value, bool):
        return value
    raise OptionError(f"{name} must be True or False; found {value!r}.")


def check_choice(name: str, value: object, known: Sequence[str]) -> str:
    """Return ``value``, or raise OptionError unless it is one of ``known``."""
    if isinstance(value, str) and value in known:
        return value
    raise OptionError(f"There is no {name} {value!r}. {close_matches(str(value), known)}")


def check_known(owner: str, options: Iterable[object], accepted: Mapping[str, Any]) -> None:
    """Raise OptionError unless ``owner`` has every option; ``accepted`` maps names to defaults.

    >>> check_known("Loss focal", ["gama"], {"gamma": 2.0})
    Traceback (most recent call last):
    longarc.errors.OptionError: Loss focal has no option 'gama'. Did you mean gamma? Known: gamma (default 2.0).
    """  # noqa: E501
    for option in options:
        if option in accepted:
            continue
        guess = close_matches(str(option), accepted).partition("Known: ")[0]
        known = ", ".join(f"{name} (default {value!r})" for name, value in accepted.items())
        told = f"{guess}Known: {known}." if accepted else "It has none."
        raise OptionError(f"{owner} has no option {option!r}. {told}")
