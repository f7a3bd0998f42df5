"""``longarc pretrain``: a table of texts becomes an encoder that is adapted to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from longarc.cli.parser import parse_job, shown_command
from longarc.data.table import refuse_missing
from longarc.training.pretraining.config import PretrainConfig
from longarc.training.pretraining.folder import PretrainFolder
from longarc.training.run_folder import refuse_existing


def run(words: Sequence[str]) -> int:
    """Parse, pretrain, print the figures before and after."""
    config, as_json = parse_job(
        "pretrain",
        "Adapt an encoder to texts without labels, before a classifier is trained on few.",
        "longarc pretrain tickets.csv --text body --objective simcse --out runs/adapted",
        PretrainConfig,
        words,
    )
    # What needs neither torch nor the data is refused in an instant; the job checks it again.
    config.validate()
    refuse_existing(config, PretrainFolder)
    refuse_missing(config.data)
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
