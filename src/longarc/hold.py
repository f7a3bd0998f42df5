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

from longarc.errors import LongarcError, RunError
from longarc.files import BEGUN, sweep, write_json

LOCK, HOLDER = ".lock", ".holder.json"
"""What is locked, and who says that he holds it: a locked file cannot be read everywhere."""

ASIDE = ".replaced"
"""Where what a folder had lies until it is known whether it is to be replaced: on the same disk."""

KEPT = (LOCK, HOLDER, ASIDE)


@contextmanager
def held(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold a folder while the block lasts; it is made if it is missing, and goes if it stays empty.

    The system ends the lock with the process, also where that is killed; what it had begun to write
    is deleted then. A file system that has no locks is written to without one.

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
        with _locked(folder, wait) as alone:
            me = {
                "process": os.getpid(),
                "machine": platform.node(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            if alone:
                sweep(folder)
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
def _locked(folder: Path, wait: float) -> Iterator[bool]:
    """Yields whether no other process can be there: False where a file system has no locks."""
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
            alone = not isinstance(lock, nullcontext)
            if not alone or (folder / LOCK).exists():
                yield alone
                return


def is_empty(folder: Path) -> bool:
    """Whether a folder has nothing in it but what holding it leaves there."""
    return all(p.name in (LOCK, HOLDER) or BEGUN.fullmatch(p.name) for p in folder.iterdir())


def clear(folder: Path) -> None:
    """Delete all that is in a folder but what holding it, or setting aside, leaves there.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "old").mkdir()
    >>> with held(folder):
    ...     clear(folder)
    >>> is_empty(folder)
    True
    """
    for path in folder.iterdir():
        if path.name in KEPT:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Empty a folder for the block, and put back what was in it where the block is refused.

    Refused is: it raises a LongarcError. After any other end what was set aside is deleted.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "run"
    >>> folder.mkdir()
    >>> (folder / "old").touch()
    >>> try:
    ...     with restored(folder):
    ...         (folder / "new").touch()
    ...         raise RunError("no")
    ... except RunError:
    ...     [path.name for path in folder.iterdir()]
    ['old']
    """
    aside = folder / ASIDE
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    old = [path for path in folder.iterdir() if path.name not in KEPT]

    def put_back() -> None:
        for path in aside.iterdir():
            path.replace(folder / path.name)
        aside.rmdir()

    if old:
        aside.mkdir()
    try:
        for path in old:
            path.replace(aside / path.name)
    except BaseException:
        put_back()
        raise
    try:
        yield
    except LongarcError:
        with suppress(OSError):  # Windows deletes no file that is still mapped
            clear(folder)
        if old:
            put_back()
        raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _holder(folder: Path) -> str:
    try:
        found = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        who = f"process {found['process']} on {found['machine']} works there since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process works there"
    return f"{who}. Wait until it has ended, stop it, or name another folder with --out."
