"""One process at a time in a folder: who works there holds a lock, which ends with the process."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from longarc.errors import RunError
from longarc.files import write_json

LOCK, HOLDER = ".lock", ".holder.json"
"""What is locked, and who says that he holds it: a locked file cannot be read everywhere."""


@contextmanager
def held(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a folder while the block lasts; it is made if it is missing, and goes if it stays empty.

    The system ends the lock with the process, also where that is killed. A file system that has no
    locks is written to without one.

    Args:
        folder: where one process is to work.
        wait: seconds to wait for another to end.

    Raises:
        RunError: another process holds it; the message names that one.

    >>> import tempfile
    >>> with held(Path(tempfile.mkdtemp()) / "out"):
    ...     pass
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _locked(folder, wait):
            me = {
                "process": os.getpid(),
                "machine": platform.node(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_json(folder / HOLDER, me)
            try:
                yield
            finally:
                for name in (HOLDER, LOCK):
                    with suppress(OSError):  # where an open file cannot be deleted, it stays
                        (folder / name).unlink()
    finally:
        with suppress(OSError):  # until one that has something in it
            for path in made:
                path.rmdir()


@contextmanager
def _locked(folder: Path, wait: float) -> Iterator[None]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(folder / LOCK).acquire(timeout=wait)
        except Timeout:
            raise RunError(f"{folder} is in use: {_holder(folder)}") from None
        except (OSError, NotImplementedError):  # the second by an older filelock
            lock = nullcontext()
        with lock:
            # A lock on a file that its holder has just deleted is on nothing that others see.
            if isinstance(lock, nullcontext) or (folder / LOCK).exists():
                yield
                return


def is_empty(folder: Path) -> bool:
    """Whether a folder has nothing in it but what holding it leaves there."""
    # The second is what HOLDER is written under before it takes its name.
    begun = f".{Path(HOLDER).stem}-"
    return all(p.name in (LOCK, HOLDER) or p.name.startswith(begun) for p in folder.iterdir())


def clear(folder: Path) -> None:
    """Delete all that is in a folder but what holding it leaves there.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "old").mkdir()
    >>> with held(folder):
    ...     clear(folder)
    >>> is_empty(folder)
    True
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LOCK, HOLDER):
            path.unlink()


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        who = f"process {found['process']} on {found['machine']} works there since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process works there"
    return f"{who}. Wait until it has ended, stop it, or name another folder with --out."
