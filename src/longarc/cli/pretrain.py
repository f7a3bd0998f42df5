"""``longarc pretrain``: a table of texts becomes an encoder that is adapted to them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from longarc.cli.parser import Parser, add_options, help_of, shown_command, with_saved_config
from longarc.training.pretraining.config import PretrainConfig
from longarc.training.pretraining.folder import PretrainFolder
from longarc.training.run_folder import refuse_existing


def run(words: Sequence[str]) -> int:
    """Parse, pretrain, print the figures before and after."""
    options = _parse(words)
    as_json = options.pop("json")
    config = PretrainConfig(**options)
    # What needs neither torch nor the data is refused in an instant; the job checks it again.
    config.validate()
    refuse_existing(config, PretrainFolder)
    from longarc.api import run_pretraining
    from longarc.cli.terminal import quiet_libraries, terminal
    from longarc.report.terminal import print_pretraining

    quiet_libraries()
    console = terminal(to_stderr=as_json)
    finished = run_pretraining(config, console=console)
    if as_json:
        print(json.dumps(finished.metrics, ensure_ascii=False))
        return 0
    print_pretraining(finished.metrics, console)
    plain: dict[str, Any] = {"markup": False, "soft_wrap": True}
    console.print(f"report   {finished.path / 'report.html'}", **plain)
    command = shown_command(
        "longarc", "train", "LABELLED.csv", "--model", finished.model, "--out", "runs/NAME"
    )
    console.print(f"train    {command}", **plain)
    return 0


def _parse(words: Sequence[str]) -> dict:
    parser = Parser(
        "pretrain",
        "Adapt an encoder to texts without labels, before a classifier is trained on few.",
        "longarc pretrain tickets.csv --text body --objective simcse --out runs/adapted",
    )
    parser.add_argument("data", type=str, help=help_of(PretrainConfig, "data"))
    parser.add_argument(
        "--config", action="config", help="YAML file of options; a run's config.yaml repeats it"
    )
    names = [f.name for f in dataclasses.fields(PretrainConfig) if f.name != "data"]
    add_options(parser, PretrainConfig, names)
    # A run's config.yaml also says where it came from; the options are read past it.
    parser.add_argument("--provenance", type=dict | None, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = parser.parse_args(with_saved_config(list(words)))
    options = {name: getattr(chosen, name) for name in [*names, "data"]} | {"json": chosen.json}
    if not options["out"]:
        parser.error("no --out: name a folder for the run, e.g. --out runs/adapted")
    return options
