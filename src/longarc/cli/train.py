"""``longarc train``: a table of texts and labels becomes a trained, evaluated run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from longarc.cli.parser import parse_job, shown_command
from longarc.data.table import refuse_missing
from longarc.objectives.losses.registry import check_loss_options
from longarc.objectives.regularizers.registry import check_regularizers
from longarc.training.config import TrainConfig
from longarc.training.run_folder import refuse_existing


def run(words: Sequence[str]) -> int:
    """Parse, train, print the figures."""
    config, as_json = parse_job(
        "train",
        "Train, evaluate and report a text classifier.",
        "longarc train tickets.csv --text body --label topic --loss logit-adjusted "
        "--out runs/tickets",
        TrainConfig,
        words,
    )
    # What needs neither torch nor the data is refused in an instant; training checks it again.
    config.validate()
    if config.loss != "auto":
        check_loss_options(config.loss)
    check_regularizers(config.regularizers)
    refuse_existing(config)
    refuse_missing(config.data, config.validation, config.test, config.unlabelled)
    from longarc.api import run_training
    from longarc.cli.terminal import quiet_libraries, terminal
    from longarc.report.terminal import print_metrics
    from longarc.training.trainer import is_main_process

    quiet_libraries()
    console = terminal(to_stderr=as_json)
    finished = run_training(config, console=console)
    if not is_main_process():
        return 0
    if as_json:
        print(json.dumps(finished.metrics, ensure_ascii=False))
        return 0
    print_metrics(finished.metrics, console)
    plain: dict[str, Any] = {"markup": False, "soft_wrap": True}
    console.print(f"report   {finished.path / 'report.html'}", **plain)
    command = shown_command(
        "longarc", "predict", finished.path, "NEW.csv", "--out", "predicted.csv"
    )
    console.print(f"predict  {command}", **plain)
    return 0
