"""``longarc lr``: a learning rate for a training, with the evidence for it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from longarc.cli.parser import Parser, add_options, as_typed, help_of, shown_command
from longarc.data.table import refuse_missing
from longarc.errors import OptionError
from longarc.objectives.losses.registry import check_loss_options
from longarc.objectives.regularizers.registry import check_regularizers
from longarc.training.config import TrainConfig
from longarc.training.learning_rate.options import CANDIDATES, FRACTION, check_search

_OF_NO_MATTER = (
    "learning_rate", "head_learning_rate", "out", "resume", "overwrite", "freeze", "hybrid",
    "calibrate", "recipe_tau", "record_path", "path_budget", "monitors", "checkpoint_minutes",
    "keep_checkpoints", "baseline", "patience",
)  # fmt: skip
"""Options of a training that the search does not look at: a run's config.yaml may have them."""

_ITS_OWN = ("out", "overwrite")
"""Of the search's folder here, not of the run's."""

_REFUSED = {
    "--learning-rate": "it is what is searched for",
    "--head-learning-rate": "one rate is searched for all of the model",
    "--resume": "a search keeps nothing to go on from",
}
"""Refused where they are typed, and why; those of a run's config.yaml are read past."""


def run(words: Sequence[str]) -> int:
    """Parse, search, print the range, what was tried and the recommendation."""
    parser = Parser(
        "lr",
        "Find a learning rate: measure which steps are stable, try a few rates in short runs, and "
        "recommend one. The options are those of the training it is for.",
        "longarc lr tickets.csv --text body --label topic --out runs/rates",
    )
    parser.add_argument("data", type=str, help=help_of(TrainConfig, "data"))
    parser.add_argument(
        "--config", action="config", help="YAML file of options, such as a run's config.yaml"
    )
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name != "data"]
    add_options(parser, TrainConfig, [name for name in names if name not in _ITS_OWN])
    parser.hide([name for name in _OF_NO_MATTER if name not in _ITS_OWN])
    parser.add_argument("--provenance", type=dict | None, default=None, help=argparse.SUPPRESS)
    parser.add_argument(
        "--candidates", type=int, default=CANDIDATES, help="rates to try, each in a short run"
    )
    parser.add_argument(
        "--fraction", type=float, default=FRACTION,
        help="part of the training's steps that each short run has",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=as_typed, default=None, help="folder to write: a page and the figures"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier search there")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(list(words))
    _refuse(chosen, words)
    _check_training(chosen, names)
    options = {n: getattr(chosen, n) for n in [*names, "data"] if n not in _OF_NO_MATTER}
    config = TrainConfig(**options, out="(none)", learning_rate="auto")
    config.validate()
    check_search(chosen.candidates, chosen.fraction)
    if config.loss != "auto":
        check_loss_options(config.loss)
    check_regularizers(config.regularizers)
    refuse_missing(config.data, config.validation, config.test, config.unlabelled)
    from longarc.report.learning_rate import print_search, refuse_existing, write_search

    # A run's config.yaml names the run's folder, which is not for this.
    out = chosen.out if any(word.split("=")[0] == "--out" for word in words) else None
    if out:
        refuse_existing(out, overwrite=bool(chosen.overwrite))
    from longarc.cli.terminal import quiet_libraries, terminal
    from longarc.training.learning_rate.job import find_learning_rate

    quiet_libraries()
    console = terminal(to_stderr=chosen.json)
    found = find_learning_rate(
        config, console=console, candidates=chosen.candidates, fraction=chosen.fraction
    )
    page = write_search(found, out, config.data) if out else None
    if chosen.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    print_search(found, console)
    plain: dict[str, Any] = {"markup": False, "soft_wrap": True}
    if page is not None:
        console.print(f"page     {page}", **plain)
    rate = f"{found['recommended']:g}"
    given = [*of_training(words), "--learning-rate", rate, "--out", "runs/NAME"]
    if chosen.head_learning_rate is not None:  # of --config; the rate found is for the head too
        given += ["--head-learning-rate", "null"]
    console.print(f"train    {shown_command('longarc', 'train', *given)}", **plain)
    return 0


def _check_training(chosen: Any, names: Sequence[str]) -> None:
    """OptionError for options that the training, whose command is printed, would refuse."""
    options = {name: getattr(chosen, name) for name in [*names, "data"]}
    settled = {"out": "(none)", "learning_rate": 1e-5, "resume": False, "overwrite": False}
    TrainConfig(**options | settled).validate()


def _refuse(chosen: Any, words: Sequence[str]) -> None:
    """What leaves nothing to search, said of what was typed: OptionError."""
    for name, why in _REFUSED.items():
        if any(word.split("=")[0] == name for word in words):
            raise OptionError(f"lr takes no {name}: {why}. Drop it.")
    if chosen.freeze:
        raise OptionError("lr needs training steps, and --freeze takes none: drop --freeze.")
    if chosen.epochs == 0:
        raise OptionError("lr needs training steps, and --epochs is 0: expected more, or drop it.")
    if chosen.validation is None and chosen.validation_fraction == 0:
        raise OptionError(
            "--validation-fraction 0 leaves no documents to choose on: drop it, or name a table "
            "with --validation."
        )


def of_training(words: Sequence[str]) -> list[str]:
    """The words of a command that ``longarc train`` takes too.

    >>> of_training(["t.csv", "--candidates", "3", "--json", "--loss=focal", "--out=runs/rates"])
    ['t.csv', '--loss=focal']
    """
    kept: list[str] = []
    values = 0
    for word in words:
        name, _, value = word.partition("=")
        if values:
            values -= 1
        elif name in ("--candidates", "--fraction", "--out"):
            values = 0 if value else 1
        elif name not in ("--overwrite", "--json"):
            kept.append(word)
    return kept
