"""Files and folders appear whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from contextlib import suppress

import pytest

from longarc.files import sweep, whole_file, whole_folder, write_json, write_text
from longarc.training.checkpoint import publish

KILLED = """
import os, signal, sys
from longarc.files import whole_file
with whole_file(sys.argv[1]) as temporary:
    with temporary.open("w") as file:
        file.write("half of the new")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "metrics.json", "old")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "metrics.json")]
    assert subprocess.run(command, check=False).returncode == -9
    assert (tmp_path / "metrics.json").read_text() == "old"
    write_text(tmp_path / "metrics.json", "new")
    assert (tmp_path / "metrics.json").read_text() == "new"


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path):
    mine = [".vscode-insiders", ".env-a1b2c3d4.txt", "notes.begun-a1b2c3d4.md", "metrics.json"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "metrics.json")]
    subprocess.run(command, check=False)
    folder = whole_folder(tmp_path / "model")
    (folder.__enter__() / "part").touch()
    assert len(list(tmp_path.iterdir())) == len(mine) + 2
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(mine)


def test_what_is_flushed_may_be_written_to_as_windows_asks(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    flush, modes = os.fsync, []

    def fsync(handle):
        modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "new")
    with whole_folder(tmp_path / "b") as temporary:
        (temporary / "c.txt").write_text("new")
        (temporary / "locked.txt").write_text("new")
        (temporary / "locked.txt").chmod(0o444)
    publish(tmp_path / "b", tmp_path / "c")
    assert len(modes) == 5
    allowed = {os.O_RDWR} if os.access(tmp_path / "c" / "locked.txt", os.W_OK) else {0, os.O_RDWR}
    assert set(modes) <= allowed
    assert modes.count(os.O_RDWR) >= 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")
    with suppress(error), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_missing_folder_is_told_by_the_name_asked_for(tmp_path):
    wanted = tmp_path / "nowhere" / "a.csv"
    with pytest.raises(FileNotFoundError) as caught, whole_file(wanted):
        pass
    assert caught.value.filename == str(wanted)


def test_readers_never_see_a_part(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with whole_file(tmp_path / "a.txt") as temporary:
        assert temporary.parent == tmp_path, "a rename is whole on one file system only"
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_files_and_folders_have_the_permissions_of_ordinary_ones(tmp_path):
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
        with whole_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "model") as temporary:
            (temporary / f"{text}.txt").write_text(text)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new.txt"]
    with suppress(ValueError), whole_folder(tmp_path / "model") as temporary:
        (temporary / "half").write_text("half")
        raise ValueError
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["new.txt"]


def test_json(tmp_path):
    value = {"label": "Überweisung", "value": 0.1 + 0.2, "none": None}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert "Überweisung" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
