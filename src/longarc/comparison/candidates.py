"""The candidates of a comparison: named options of ``longarc train``, checked before any runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longarc.comparison.presets import PRESETS
from longarc.comparison.scratch_names import SCRATCH
from longarc.errors import LongarcError, OptionError, close_matches
from longarc.models.attention.registry import ATTENTIONS, check_attention_options
from longarc.models.loading import resolve_model
from longarc.models.recurrent.options import CELLS
from longarc.objectives.losses.registry import LOSSES, check_loss_options
from longarc.objectives.regularizers.registry import (
    REGULARIZERS,
    build_regularizers,
    check_regularizers,
)
from longarc.training.config import TrainConfig
from longarc.training.reading_length import reading_length

ALL = "all"
"""In a file, the name of the options that every candidate gets."""

SHARED = (
    "data", "text", "label", "label_separator", "validation", "test", "validation_fraction",
    "test_fraction", "limit", "device",
)  # fmt: skip
"""Options that are the comparison's own, because its candidates have them in common."""

SETTLED = {
    "seed": "give --seeds to longarc compare",
    "epochs": "the budget says how long a candidate is trained",
    "out": "the comparison says where its runs are",
    "resume": "longarc compare --resume goes on with all of them",
    "overwrite": "longarc compare --overwrite replaces all of them",
    "baseline": "the linear baseline is fitted once",
    "record_path": "it would be measured too",
    "path_budget": "it is for --record-path, which is not for a comparison",
    "unlabelled": "the budget counts texts with labels",
}
"""Options that no candidate can name, and why."""

OPTIONS = [f.name for f in dataclasses.fields(TrainConfig) if f.name not in (*SHARED, *SETTLED)]

DEFAULTS: dict[str, Any] = {"patience": 0, "monitors": False}
"""What differs from ``longarc train``: the budget is used up, and nothing else is measured."""


@dataclass(frozen=True)
class Candidate:
    """A name, and the options of ``longarc train`` that make it what it is."""

    name: str
    options: dict[str, Any]

    def config(self, **shared: Any) -> TrainConfig:
        """Its options as those of a training; ``shared`` are the comparison's."""
        return TrainConfig(**{**DEFAULTS, **self.options, **shared})


def in_a_file(source: str) -> bool:
    """Whether a file names the candidates: not a preset, nor the line itself.

    >>> in_a_file("attention"), in_a_file("{exact: {}}"), in_a_file("mine.yaml")
    (False, False, True)
    """
    return source not in PRESETS and not source.lstrip().startswith("{")


def read_candidates(source: str | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Names and options from a file, from one line of YAML, or as they are.

    Raises:
        OptionError: no such file, no mapping of names to options, or a name that comes twice.

    >>> read_candidates("{mean: {}, cls: {pooling: cls}}")
    {'mean': {}, 'cls': {'pooling': 'cls'}}
    """
    if isinstance(source, Mapping):
        found: Any = dict(source)
        where = "candidates"
    elif source.lstrip().startswith("{"):
        where = "--candidates"
        found = _parsed(source, where)
    else:
        path = Path(source).expanduser()
        where = str(path)
        if not path.is_file():
            raise OptionError(
                f"--candidates is {source!r}: there is no such file. Expected a YAML file of names "
                f"and options, or a preset. {close_matches(source, PRESETS)}"
            )
        try:
            found = _parsed(path.read_text(encoding="utf-8"), where)
        except UnicodeDecodeError as error:
            raise OptionError(f"{where} is not UTF-8 at byte {error.start}.") from None
    if not isinstance(found, dict) or not found:
        raise OptionError(
            f"{where} holds no candidates: expected lines such as 'performer: {{attention: "
            "performer}', a name and its options each."
        )
    for name, options in found.items():
        if options is not None and not isinstance(options, Mapping):
            raise OptionError(
                f"candidate {name!r} in {where} is {options!r}: expected options of longarc train, "
                "such as {attention: performer}."
            )
    return {str(name): dict(options or {}) for name, options in found.items()}


def make_candidates(
    found: Mapping[str, Mapping[str, Any]], everywhere: Mapping[str, Any] | None = None
) -> list[Candidate]:
    """Candidates whose options exist and fit each other.

    Args:
        found: options by name; those under ``all`` are every candidate's that lacks them.
        everywhere: the same from the command line, which come before those.

    Raises:
        OptionError: an unknown option, one that is the comparison's, a value that does not fit, a
            name that can be no folder, fewer than two candidates. It names the candidate.

    >>> make_candidates({"a": {"atention": "linear"}, "b": {}})
    Traceback (most recent call last):
    longarc.errors.OptionError: candidate 'a' has an option 'atention', and longarc train has none such. Did you mean attention or attention_options?
    """  # noqa: E501
    common = {**found.get(ALL, {}), **(everywhere or {})}
    for name in common:
        _check_option("every candidate", name)
    made = []
    for name, options in found.items():
        if name == ALL:
            continue
        _check_name(name)
        for option in options:
            _check_option(f"candidate {name!r}", option)
        made.append(Candidate(name, {**common, **options}))
        _check_values(made[-1])
    if len(made) < 2:
        raise OptionError(
            f"{len(made)} candidate{'s were' if len(made) != 1 else ' was'} named: expected at "
            "least two to compare."
        )
    folders = [candidate.name.casefold() for candidate in made]
    twice = next((c.name for c in made if folders.count(c.name.casefold()) > 1), None)
    if twice is not None:
        raise OptionError(f"candidate {twice!r} comes twice, as some disks see it. Rename one.")
    return made


def check_lengths(candidates: Sequence[Candidate]) -> None:
    """Raise OptionError for a candidate to read more tokens than its model has positions for.

    >>> check_lengths([Candidate("mean", {"max_length": 512})])
    """
    for candidate in candidates:
        config = candidate.config(data="-", out="-")
        if config.model in SCRATCH:  # made for any length
            continue
        try:
            reading_length(config)
        except LongarcError as error:
            raise _of_candidate(candidate, error) from None


def what_differs(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, how candidates differ from those that a comparison began with; empty if not at all.

    >>> what_differs({"a": {}, "b": {"loss": "focal"}}, {"b": {"loss": "dice"}, "c": {}})
    "a is gone, c is new; b: loss 'focal' then, 'dice' now"
    """

    def said(options: Mapping[str, Any], name: str) -> str:
        return repr(options[name]) if name in options else "not named"

    moved = [f"{name} is gone" for name in then if name not in now]
    moved += [f"{name} is new" for name in now if name not in then]
    changed = []
    for name in then:
        mine, other = then[name], now.get(name, then[name])
        pairs = {o: (said(mine, o), said(other, o)) for o in dict.fromkeys([*mine, *other])}
        told = [f"{o} {was} then, {is_} now" for o, (was, is_) in pairs.items() if was != is_]
        if told:
            changed.append(f"{name}: {', '.join(told)}")
    return "; ".join(part for part in (", ".join(moved), *changed) if part)


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-3`` is a number without a point, as on the command line."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def _parsed(text: str, where: str) -> Any:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            return None if node is None else loader.construct_document(node)
        names = [key.value for key, _ in node.value]
        # A name stays as it was typed: 1e-3 and 0.001 are two.
        found = [loader.construct_object(value, deep=True) for _, value in node.value]
    except yaml.YAMLError as error:
        raise OptionError(f"{where} is not valid YAML: {error}") from None
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(f"candidate {twice!r} comes twice in {where}. Rename one.")
    return dict(zip(names, found, strict=True))


def _check_name(name: str) -> None:
    """A name is a folder's too, and a label in a drawing."""
    odd = [c for c in name if c in '/\\:*?"<>|' or not c.isprintable()]
    if odd or not name.strip(" .") or name != name.strip() or name[0] == "." or len(name) > 40:
        raise OptionError(
            f"candidate {name!r}: expected a name of at most 40 characters that can be a folder's, "
            "such as performer-64."
        )


def _check_option(owner: str, option: str) -> None:
    if option in OPTIONS:
        return
    if option in SHARED:
        raise OptionError(
            f"{owner} has an option {option!r}, which is the same for all: give it to longarc "
            "compare itself."
        )
    if option in SETTLED:
        raise OptionError(f"{owner} has an option {option!r}: drop it, {SETTLED[option]}.")
    guess = close_matches(str(option), OPTIONS).partition(" Known:")[0]
    hint = f" {guess}" if guess.startswith("Did") else " longarc train --help lists them."
    raise OptionError(f"{owner} has an option {option!r}, and longarc train has none such.{hint}")


def in_a_comparison(message: str) -> str:
    """A message about options of longarc train, with where they are named in a comparison.

    >>> in_a_comparison("--max-length is 9, of 8.")
    '--max-length is 9, of 8. Here it is max_length: among the options of the candidate, or in --options for all.'
    """  # noqa: E501
    named = [flag[2:].replace("-", "_") for flag in re.findall(r"--[a-z][a-z-]*[a-z]", message)]
    if not (own := [name for name in dict.fromkeys(named) if name in OPTIONS]):
        return message
    words = f"it is {own[0]}" if len(own) == 1 else f"they are {', '.join(own[:-1])} and {own[-1]}"
    return f"{message} Here {words}: among the options of the candidate, or in --options for all."


def _check_known_to_all(config: TrainConfig) -> None:
    """Raise OptionError for a part that was registered in this Python process.

    A candidate's own process knows longarc's parts alone.
    """
    named: list[tuple[str, str, Any]] = [("loss", config.loss, LOSSES)]
    named += [("regularizer", n, REGULARIZERS) for n, _ in check_regularizers(config.regularizers)]
    named.append(("attention", config.attention or "", ATTENTIONS))
    for kind, name, registry in named:
        if name in registry and not registry[name].path.startswith("longarc."):
            raise OptionError(
                f"{kind} {name} was registered in this Python process, and a candidate is trained "
                f"in one of its own, which knows {kind}s of longarc alone. Train with it by "
                "longarc.fit, and put the runs side by side with longarc report; or add it to "
                "longarc's own, as docs/extending.md says."
            )


def _check_values(candidate: Candidate) -> None:
    try:
        config = candidate.config(data="-", out="-")
        if config.model in SCRATCH:
            config.model = "minilm"
        config.validate()
        if config.loss != "auto":
            check_loss_options(config.loss, config.loss_options)
        if config.attention is not None:
            check_attention_options(config.attention, config.attention_options)
        _check_known_to_all(config)
        build_regularizers(config.regularizers)  # the constructors know the ranges
        if config.model not in CELLS:
            resolve_model(config.model)
    except LongarcError as error:
        raise _of_candidate(candidate, error) from None


def _of_candidate(candidate: Candidate, error: LongarcError) -> LongarcError:
    return type(error)(f"candidate {candidate.name!r}: {in_a_comparison(str(error))}")
