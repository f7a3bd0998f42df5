"""A folder that one process holds: against another one, after its death, and without a trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longarc.comparison.config import CompareConfig
from longarc.comparison.folder import CompareFolder, cleared
from longarc.comparison.hold import HOLDER, LOCK, held
from longarc.comparison.job import run_comparison
from longarc.errors import OptionError, RunError
from longarc.files import write_text

PROGRAM = """
import sys
from pathlib import Path
from longarc.comparison.hold import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path / "out"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def comparison(out: Path, **options) -> CompareConfig:
    candidates = "{a: {}, b: {pooling: cls}}"
    return CompareConfig(candidates=candidates, out=str(out), budget_steps=1, **options)


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path, holder):
    """For a start in the folder, for a start over it, and for going on."""
    out = tmp_path / "out"
    write_text(out / "kept.txt", "")
    named = rf"is in use: process {holder.pid} on "
    with pytest.raises(RunError, match=named), held(out):
        pass
    folder = CompareFolder(out)
    folder.write_settings(comparison(out), [], {"sha256": ""})
    for options in ({"overwrite": True, "data": "no.csv"}, {"resume": True}):
        with pytest.raises(RunError, match=named):
            run_comparison(comparison(out, **options))
    assert (out / "kept.txt").is_file()
    holder.kill()
    holder.wait()
    assert (out / HOLDER).is_file()  # it had no time to tidy up
    with held(out), pytest.raises(RunError, match="is in use"), held(out):
        pass
    with held(out, wait=5):
        pass
    assert {path.name for path in out.iterdir()} == {"kept.txt", "compare.yaml", LOCK}


def test_waiting_outlasts_one_that_ends(tmp_path, holder):
    write_text(tmp_path / "out" / "kept.txt", "")
    holder.stdin.close()
    with held(tmp_path / "out", wait=30):
        assert f'"process": {holder.pid}' not in (tmp_path / "out" / HOLDER).read_text()


def test_what_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(OptionError, match="no table named"):
        run_comparison(comparison(tmp_path / "runs" / "out"))
    assert not list(tmp_path.iterdir())


def test_starting_over_keeps_the_lock(tmp_path):
    """Deleted, it would leave the folder to a second process that makes a new one."""
    out = tmp_path / "out"
    config = comparison(out, overwrite=True)
    with held(out):
        folder = cleared(config)
        folder.write_settings(config, [], {})
        write_text(out / "data.parquet", "")
        folder.models.mkdir()
        assert {path.name for path in cleared(config).path.iterdir()} == {LOCK, HOLDER}
        with pytest.raises(RunError, match="is in use"), held(out):
            pass
