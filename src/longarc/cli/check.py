"""``longarc check``: what is wrong or noteworthy with a table before training."""

from __future__ import annotations

import json
from collections.abc import Sequence

from longarc.cli.parser import Parser, add_options, shown_command
from longarc.data.table import refuse_missing
from longarc.training.config import TrainConfig
from longarc.training.option_fields import flag

OPTIONS = (
    "text", "label", "label_separator", "validation", "test", "validation_fraction",
    "test_fraction", "limit", "model", "model_options", "embeddings", "positions",
    "position_alpha", "max_length", "seed", "trust_remote_code",
)  # fmt: skip


def run(words: Sequence[str]) -> int:
    """Parse, read, split, check, print; exit 1 when training would refuse the table."""
    parser = Parser(
        "check",
        "Read a table as training would, and say what is wrong or noteworthy.",
        "longarc check tickets.csv --text body --label topic",
    )
    parser.add_argument("data", type=str, help="table of texts and labels")
    add_options(parser, TrainConfig, OPTIONS)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    chosen = parser.parse_args(list(words))
    options = {name: getattr(chosen, name) for name in OPTIONS}
    config = TrainConfig(data=chosen.data, out="(none)", **options)
    config.validate()
    refuse_missing(chosen.data, chosen.validation, chosen.test)
    from longarc.cli.terminal import quiet_libraries, terminal
    from longarc.data.terminal import print_check
    from longarc.training.preparation import prepare
    from longarc.training.progress import Reporter

    quiet_libraries()
    console = terminal(to_stderr=chosen.json)
    found = prepare(config, Reporter(console), refuse=False).check
    if chosen.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        print_check(found, console)
        if not found.errors:
            named = [
                word
                for name, value in options.items()
                if value != getattr(TrainConfig, name)
                for word in ([flag(name)] if value is True else [flag(name), value])
            ]
            command = shown_command("longarc", "train", chosen.data, *named, "--out", "runs/NAME")
            console.print(f"train    {command}", markup=False, soft_wrap=True)
    return 1 if found.errors else 0
