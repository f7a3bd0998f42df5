"""Whether there is room for a run, asked before hours of work rather than after."""

from __future__ import annotations

import shutil
from pathlib import Path

from longarc.errors import RunError

CHECKPOINTS = 3 * 3
"""Copies of the weights in them: weights and two moments; best, last, next."""


def free_space(folder: Path) -> tuple[Path, int]:
    """The nearest folder above that exists, and the bytes that are free there."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place, shutil.disk_usage(place).free


def refuse_full_disk(run: Path, parameters: int, copies: int, path: int = 0) -> None:
    """Raise RunError where a run folder's disk cannot hold a run.

    Args:
        run: the folder.
        parameters: of the model, four bytes each.
        copies: of them, at most at once.
        path: bytes of a recorded path.
    """
    place, free = free_space(run)
    needed = 4 * parameters * copies + path
    if free < needed:
        what = "checkpoints and the training path" if path else "checkpoints"
        raise RunError(
            f"{place} has {free / 1e9:.2f} GB free, and this run needs up to "
            f"{needed / 1e9:.2f} GB for {what}. Free some, or name a folder on another "
            "disk with --out."
        )


def is_full_disk(error: Exception) -> bool:
    """Whether an error says that the disk is full; safetensors has its own words for it."""
    return "No space left on device" in str(error) or "os error 28" in str(error)
