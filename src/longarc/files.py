"""Files that appear whole or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longarc.errors import OptionError, RunError

BEGUN = re.compile(r"\..+\.begun-[a-z0-9_]{8}(\..+)?")
"""The name of what is not whole yet: no program but this one gives such names."""


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes ``path`` in one rename.

    If the block raises, the temporary file is removed and an older ``path`` stays as it was.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole_file(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("hello")
    >>> [f.name for f in folder.iterdir()]
    ['a.txt']
    """
    path = Path(path)
    # The suffix is kept, because writers such as pyarrow's choose a format by it.
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}.begun-", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:  # a missing or closed folder: the name asked for says more
        raise type(error)(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes the file private
        flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it takes ``path``'s place.

    An existing ``path`` is set aside until the new one stands, then deleted.
    """
    path = Path(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.begun-", dir=path.parent))
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        for written in temporary.rglob("*"):
            if written.is_file():
                flush(written)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sweep(folder: Path) -> None:
    """Delete what processes that were killed had begun to write in a folder and nobody writes now.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / ".metrics.begun-1x_3y56z.json").touch()
    >>> sweep(folder)
    >>> list(folder.iterdir())
    []
    """
    for left in folder.iterdir():
        if BEGUN.fullmatch(left.name):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file to the disk."""
    # Windows flushes only what may be written to, and so leaves read-only files to itself.
    writable = os.access(path, os.W_OK)
    if writable or os.name != "nt":
        with path.open("r+b" if writable else "rb") as written:
            os.fsync(written.fileno())


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole: indented, UTF-8, no NaN (JSON has none)."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def check_place(path: Path, instead: str = "Name another --out.") -> None:
    """Raise RunError unless files can be made where ``path`` is to be, or the folders on its way.

    It is tried with a file that has no name, so nothing is left. ``instead`` ends the message.

    >>> check_place(Path(tempfile.gettempdir()) / "new" / "page.html")
    """
    folder = path.absolute()
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            raise RunError(f"{link} is a link to {link.readlink()}, which is not there. {instead}")
    try:
        folder = next(parent for parent in folder.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except NotADirectoryError:
        raise RunError(f"{folder} is a file, so {path} cannot be. {instead}") from None
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {folder} takes no files ({error.strerror}). {instead}"
        ) from None


def check_page(out: str | Path) -> Path:
    """The path of a page to write; OptionError for one that is no HTML file.

    RunError where none can be written.
    """
    target = Path(out).expanduser()
    if target.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"{target} does not end in .html. Name it {target.with_suffix('.html')}.")
    if target.is_dir():
        raise OptionError(f"{target} is a folder; expected a file, e.g. {target / 'page.html'}.")
    check_place(target)
    return target


def check_unused(out: str | Path, *, overwrite: bool) -> Path:
    """The path of a file to write; OptionError where one is there and is not to be replaced."""
    target = Path(out).expanduser()
    if target.exists() and not overwrite:
        raise OptionError(f"{out} exists. Name another file, or replace it with --overwrite.")
    return target


def refuse_taken(
    folder: Path, kind: str, *, ours: bool, overwrite: bool, resumable: bool = False
) -> None:
    """Raise RunError unless results can be written to ``folder``.

    A folder with files in it is replaced only if it is of the same kind, and only if asked.

    Args:
        kind: what is written, for the message: "study".
        ours: whether the folder holds one.
        overwrite: whether it was asked for.
        resumable: whether one can be gone on with.
    """
    blocked = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if blocked is not None:
        raise RunError(f"{blocked} is a file; a folder is written. Name another --out.")
    if folder.is_symlink():
        raise RunError(f"{folder} is a link: name the folder it leads to, {folder.resolve()}.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not ours:
        raise RunError(
            f"{folder} exists and holds no {kind}, so it is never overwritten. Name another folder "
            "with --out."
        )
    if not overwrite:
        resume = " go on with --resume," if resumable else ""
        raise RunError(
            f"{folder} holds a {kind}. Name another folder with --out,{resume} or replace it with "
            "--overwrite."
        )


def refuse_own_sources(folder: Path, named: Iterable[str | None]) -> None:
    """Raise RunError where something that is to be read lies in a folder that is to be replaced.

    Args:
        folder: what ``--overwrite`` deletes.
        named: paths, Hub ids and names, as given; None for what was not.
    """
    place = folder.resolve()
    for given in filter(None, named):
        file = Path(given).expanduser()
        # The last part of a path may be a split, as in saved/test.
        there = file if file.exists() else file.parent
        # A link in the folder goes with it, and so does what a link elsewhere leads to.
        ways = there.resolve(), there.parent.resolve() / there.name
        within = any(way.is_relative_to(place) and way != place for way in ways)
        if there.exists() and (within or file.resolve() == place):
            raise RunError(
                f"{given} lies in {folder}, which --overwrite deletes. Move it, or name another "
                "--out."
            )
