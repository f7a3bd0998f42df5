"""``longarc compare``: several encoders, attentions, lengths or losses under one budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from longarc.cli.parser import Parser, add_options, as_typed, help_of
from longarc.comparison.config import CompareConfig
from longarc.comparison.folder import refuse_existing
from longarc.data.table import refuse_missing
from longarc.training.config import TrainConfig
from longarc.training.option_fields import flag


def run(words: Sequence[str]) -> int:
    """Parse, compare, print the table."""
    parser = Parser(
        "compare",
        "Train and measure several candidates under one budget, each in a process of its own: a "
        "chart of quality, speed and memory, and the table behind it.",
        "longarc compare tickets.csv --candidates attention --budget-examples 2000 "
        "--out runs/compare",
        {
            flag(field.name): "It is one of the trainings: --options "
            f"'{{\"{field.name}\": …}}' gives it to all, the candidates file to each."
            for field in dataclasses.fields(TrainConfig)
        },
    )
    parser.add_argument(
        "data", type=as_typed, nargs="?", default=None, help=help_of(CompareConfig, "data")
    )
    names = [f.name for f in dataclasses.fields(CompareConfig) if f.name != "data"]
    add_options(parser, CompareConfig, [name for name in names if name != "seeds"])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=None, help=help_of(CompareConfig, "seeds")
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(list(words))
    if not chosen.out:
        parser.error("no --out: name a folder for the comparison, e.g. --out runs/compare")
    config = CompareConfig(**{name: getattr(chosen, name) for name in [*names, "data"]})
    if not config.resume:  # before what takes seconds to load
        config.validate()
        refuse_existing(config)
        refuse_missing(config.data, config.validation, config.test)
    from longarc.cli.terminal import terminal
    from longarc.comparison.compare import Comparison
    from longarc.comparison.job import run_comparison
    from longarc.report.trade_off import print_trade_off

    console = terminal(to_stderr=chosen.json)
    comparison = Comparison(run_comparison(config, console=console))
    if chosen.json:
        print(json.dumps(comparison.found, ensure_ascii=False))
        return 0
    print_trade_off(comparison.found, console)
    plain: dict[str, Any] = {"markup": False, "soft_wrap": True}
    console.print(f"page     {comparison.page}", **plain)
    return 0
