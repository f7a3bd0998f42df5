"""Whether there is room for a run, asked before hours of work rather than after."""

from __future__ import annotations

import shutil

from longarc.errors import RunError
from longarc.training.config import TrainConfig


def refuse_full_disk(config: TrainConfig, parameters: int) -> None:
    """Raise RunError where the run folder's disk cannot hold its checkpoints."""
    place = config.run.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    copies = 1 if config.freeze else 1 + 3 * 3  # weights and two moments; best, last, next
    needed = 4 * parameters * copies
    if free < needed:
        raise RunError(
            f"{place} has {free / 1e9:.2f} GB free, and this run needs up to "
            f"{needed / 1e9:.2f} GB for checkpoints. Free some, or name a folder on another "
            "disk with --out."
        )
