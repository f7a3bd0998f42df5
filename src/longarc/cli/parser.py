"""Option parsing for every verb: jsonargparse, with close matches for what it does not know."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

import jsonargparse
from jsonargparse import ActionYesNo

from longarc.errors import OptionError, RunError, close_matches

T = TypeVar("T")


class PlainHelp(jsonargparse.DefaultHelpFormatter):
    """Each option's sentence and its default: Python's types would say less to most readers."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        plain = action.option_strings and "help" not in action.dest
        if plain and action.default not in (None, "", False, argparse.SUPPRESS):
            text += " (default: %(default)s)"
        return text


class Parser(jsonargparse.ArgumentParser):
    """A verb's options; a wrong one is answered with those that come close, and exit status 2."""

    def __init__(
        self, verb: str, description: str, example: str, hints: Mapping[str, str] | None = None
    ):
        super().__init__(
            prog=f"longarc {verb}",
            description=description,
            epilog=f"example: {example}",
            formatter_class=PlainHelp,
            allow_abbrev=False,  # what is typed is printed again, for other verbs to read
        )
        self.hints = hints or {}
        self.files: list[tuple[str, dict[str, Any]]] = []
        """The ``--config`` files and their options, for errors to name the file."""
        self.typed: set[str] = set()
        """The options that are typed, which count more than the files'."""

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **kept: Any) -> Any:
        """Parse, a ``--config`` file before all else: what is typed counts more, wherever it is."""
        words = list(sys.argv[1:] if args is None else args)
        if self._action_of("config"):
            needing = [o for o, a in self._option_string_actions.items() if a.nargs is None]
            files, words = _apart(words, needing)
            for file in files:
                try:
                    self.files.append((file, _options_in(file)))
                except OptionError as problem:
                    self.error(f"--config {file}: {problem}")
            self.typed = {word.split("=")[0] for word in words if word.startswith("--")}
            words = [*(word for file in files for word in ("--config", file)), *words]
        return super().parse_args(words, *others, **kept)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print the message, with close matches for an unknown option, and exit."""
        origin = ""
        unknown = re.search(r"[Uu]nrecognized arguments: (-\S+)", message)
        in_file = re.search(r"Option '(\S+)' is not accepted", message)
        if unknown or in_file:
            known = [s for a in self._actions for s in a.option_strings if s.startswith("--")]
            name = unknown[1] if unknown else f"--{in_file[1].replace('_', '-')}" if in_file else ""
            origin = self._origin_of(in_file[1].split(".")[0]) if in_file else ""
            message = f"no option {name}. {self.hints.get(name) or near(name, known)}"
        wrong = re.search(r"Parser key \"(\w+)\":", message)
        if wrong and (action := self._action_of(wrong[1])):
            given = re.search(r"(?:Got value|Given value|value): (.*)", message)
            found = f" is {given[1].rstrip('.')}" if given else " cannot be read"
            hint = getattr(action, "_typehint", None) or action.type
            kinds = {int: "a whole number", float: "a number"}
            kind = next((kinds[k] for k in (hint, *get_args(hint)) if k in kinds), "")
            chosen = action.choices or "Literal" in str(getattr(action, "_typehint", ""))
            kind = f"one of {self._choices_of(action)}" if chosen else kind
            origin = self._origin_of(wrong[1], given[1].rstrip(".") if given else None)
            message = f"{self._called(wrong[1])}{found}.{_expected(action, kind)}"
        elif unread := re.search(r"argument --([\w-]+): invalid as_\w+ value: (.*)", message):
            action = self._action_of(unread[1].replace("-", "_"))
            expected = _expected(action) if action else ""
            message = f"--{unread[1]} cannot be read: {unread[2]}.{expected}"
        missing = re.search(r"arguments are required: (.+)", message)
        if missing:
            names = [self._called(name) for name in missing[1].split(", ")]
            message = f"missing {' and '.join(names)}. {self.epilog}"
        print(f"{self.prog}: {origin}{message}\nTry: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def hide(self, names: Sequence[str]) -> None:
        """Leave options out of the help; they are read as the others are."""
        for action in self._actions:
            if action.dest in names:
                action.help = argparse.SUPPRESS

    def _origin_of(self, option: str, value: str | None = None) -> str:
        """The ``--config`` file that an option is from, for the start of an error; else nothing.

        A file is read before what is typed and what later files say, so its value is found wrong
        even where that counts more: the file is known by the value, if the error has one.
        """
        for file, options in self.files:
            if option in options and (
                str(options[option]) == value if value else self._called(option) not in self.typed
            ):
                return f"--config {file}: "
        return ""

    def _action_of(self, name: str) -> argparse.Action | None:
        return next((a for a in self._actions if a.dest == name), None)

    def _choices_of(self, action: argparse.Action) -> str:
        return ", ".join(
            map(str, get_args(getattr(action, "_typehint", None)) or action.choices or ())
        )

    def _called(self, name: str) -> str:
        """An option as it is typed, a positional argument in capitals."""
        typed = [a.option_strings[0] for a in self._actions if a.dest == name and a.option_strings]
        return typed[0] if typed else name.upper()


def _expected(action: argparse.Action, kind: str = "") -> str:
    """The end of an error: of what kind a value is, and what it means unless that is hidden."""
    meaning = action.help if action.help != argparse.SUPPRESS else None
    told = ": ".join(part for part in (kind, meaning) if part)
    return f" Expected {told}." if told else ""


def near(option: str, known: Sequence[str]) -> str:
    """The close matches alone: a verb has too many options to list them all in an error."""
    guess, _, _ = close_matches(option.split("=")[0], known).partition(" Known:")
    return guess if guess.startswith("Did you mean") else ""


def add_options(parser: Parser, config: type, names: Sequence[str]) -> None:
    """Add fields of a dataclass of options, with their types, defaults and help."""
    types = get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name not in names:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        text = field.metadata["help"]
        if types[field.name] is bool:
            yes_no = ActionYesNo(yes_prefix="", no_prefix="no-")
            parser.add_argument(flag, action=yes_no, default=default, help=text)
        else:
            kind = _READERS.get(types[field.name], types[field.name])
            parser.add_argument(flag, type=kind, default=default, help=text)


def help_of(config: type, name: str) -> str:
    """The help text of one option."""
    return next(f.metadata["help"] for f in dataclasses.fields(config) if f.name == name)


def parse_job(
    verb: str, description: str, example: str, config: type[T], words: Sequence[str]
) -> tuple[T, bool]:
    """The options of a verb that makes a run of a table, and whether ``--json`` was given."""
    parser = Parser(verb, description, example)
    parser.add_argument("data", type=str, help=help_of(config, "data"))
    parser.add_argument(
        "--config", action="config", help="YAML file of options; a run's config.yaml repeats it"
    )
    names = [f.name for f in dataclasses.fields(cast(Any, config)) if f.name != "data"]
    add_options(parser, config, names)
    # A run's config.yaml also says where it came from; the options are read past it.
    parser.add_argument("--provenance", type=dict | None, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(_with_saved_config(list(words)))
    if not chosen.out:
        parser.error(f"no --out: name a folder for the run, e.g. --out {example.split()[-1]}")
    return config(**{name: getattr(chosen, name) for name in [*names, "data"]}), chosen.json


def _with_saved_config(words: list[str]) -> list[str]:
    """``--resume --out RUN`` alone goes on with the options the run was started with."""
    if (
        "--resume" not in words
        or "--overwrite" in words
        or any(word.split("=")[0] == "--config" for word in words)
    ):
        return words
    for i, word in enumerate(words):
        out = word.partition("=")[2] if word.startswith("--out=") else None
        if word == "--out" and i + 1 < len(words):
            out = words[i + 1]
        if out:
            saved = Path(out).expanduser() / "config.yaml"
            if not saved.is_file():
                raise RunError(
                    f"no run folder to go on with: there is no {saved}. Start it without --resume."
                )
            return ["--config", str(saved), *words]
    return words


def _apart(words: Sequence[str], needing: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files named by ``--config``, and the other words in their order.

    One that follows an option in ``needing``, which lacks its value, stays where it is, and so does
    one without a file: for the parser to say so.

    >>> _apart(["t.csv", "--epochs", "2", "--config", "c.yaml", "--json"], ["--epochs"])
    (['c.yaml'], ['t.csv', '--epochs', '2', '--json'])
    >>> _apart(["--epochs", "--config", "c.yaml"], ["--epochs"])
    ([], ['--epochs', '--config', 'c.yaml'])
    """
    files: list[str] = []
    others: list[str] = []
    i = 0
    while i < len(words) and words[i] != "--":
        name, equals, value = words[i].partition("=")
        file = value if equals else next(iter(words[i + 1 : i + 2]), "--")
        lacking = bool(others) and others[-1] in needing
        if name == "--config" and not file.startswith("--") and not lacking:
            files.append(file)
            i += 1 if equals else 2
        else:
            others.append(words[i])
            i += 1
    return files, [*others, *words[i:]]


def _options_in(file: str) -> dict[str, Any]:
    """The options of a ``--config`` file, none of a pipe; OptionError for what cannot be read."""
    path = Path(file).expanduser()
    expected = "Expected a YAML file of options, such as a run's config.yaml."
    if path.is_dir():
        raise OptionError(f"it is a folder. {expected}")
    if path.exists() and not path.is_file():
        return {}  # a pipe can be read once
    try:
        # The parser takes options themselves, too.
        text = path.read_text(encoding="utf-8") if path.exists() else file
        found = jsonargparse.get_loader("yaml")(text)
    except UnicodeDecodeError as error:
        raise OptionError(f"it is not UTF-8 at byte {error.start}.") from None
    except OSError as error:
        raise OptionError(f"it cannot be read, {error.strerror}.") from None
    except Exception as error:
        raise OptionError(f"it is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(found, dict):
        there = "it holds no options. Expected lines such as 'epochs: 3'."
        raise OptionError(there if path.exists() else f"there is no such file. {expected}")
    if found.get("config") is not None:
        raise OptionError("it names another file, config. Copy that one's options into it.")
    return found


def as_typed(value: object) -> str | None:
    """The option as it was typed: read as YAML, a separator ``#`` would be a comment."""
    return None if value is None else str(value)


def as_listed(value: object) -> list | None:
    """A list as it is typed, YAML without the brackets around it; one from a file as it is.

    >>> as_listed("fgm, {sam: {rho: 0.1}}")
    ['fgm', {'sam': {'rho': 0.1}}]
    """
    if not isinstance(value, str):
        return value  # pyright: ignore[reportReturnType]
    read = jsonargparse.get_loader("yaml")
    for text in (value, f"[{value}]"):
        try:
            if isinstance(found := read(text), list):
                return found
        except Exception:
            pass
    raise ValueError(f"no list can be read from {value!r}")


def as_rate(value: object) -> float | str:
    """A number, or the word ``auto``.

    >>> as_rate("3e-4"), as_rate("auto")
    (0.0003, 'auto')
    """
    return "auto" if value == "auto" else float(value)  # pyright: ignore[reportArgumentType]


_READERS: dict[Any, Callable[[object], Any]] = {
    str | None: as_typed,
    list | None: as_listed,
    float | Literal["auto"]: as_rate,
}


def shown_command(*words: object) -> str:
    """A command line a user can paste.

    >>> shown_command("longarc", "report", "runs/my run")
    "longarc report 'runs/my run'"
    """
    return shlex.join(str(word) for word in words)
