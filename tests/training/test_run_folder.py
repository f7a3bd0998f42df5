from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from longarc.errors import OptionError, RunError
from longarc.training.arguments import training_arguments
from longarc.training.config import TrainConfig
from longarc.training.run_folder import (
    RunFolder,
    create_run_folder,
    describe_origin,
    hash_texts,
    open_run_folder,
    refuse_existing,
)

ORIGIN = {"data_sha256": "abc", "longarc": "0"}


def config(out, **options):
    return TrainConfig(data="tickets.csv", out=str(out), **options)


def finish(path):
    (path / "model").mkdir()
    (path / "metrics.json").write_text("{}")


def test_a_new_or_an_empty_folder_is_free(tmp_path):
    refuse_existing(config(tmp_path / "new"))
    refuse_existing(config(tmp_path))


def test_a_file_is_in_the_way(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunError, match=r"is a file.*--out"):
        refuse_existing(config(tmp_path / "run"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"not a run folder.*never overwritten"):
        refuse_existing(config(tmp_path, overwrite=overwrite))


@pytest.mark.parametrize(("complete", "state"), [(False, "unfinished"), (True, "complete")])
def test_a_run_is_refused_unless_overwritten(tmp_path, complete, state):
    create_run_folder(config(tmp_path / "run"), ORIGIN)
    if complete:
        finish(tmp_path / "run")
    with pytest.raises(RunError, match=rf"{state} run.*--resume.*--overwrite"):
        refuse_existing(config(tmp_path / "run"))
    refuse_existing(config(tmp_path / "run", overwrite=True))


def test_resuming(tmp_path):
    with pytest.raises(RunError, match="no run folder at"):
        refuse_existing(config(tmp_path / "none", resume=True))
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match=r"not a run folder: expected config\.yaml.*found nothing"):
        refuse_existing(config(tmp_path / "other", resume=True))
    create_run_folder(config(tmp_path / "run"), ORIGIN)
    refuse_existing(config(tmp_path / "run", resume=True))
    finish(tmp_path / "run")
    with pytest.raises(RunError, match="complete: nothing is left to resume"):
        refuse_existing(config(tmp_path / "run", resume=True))


def test_a_resumed_run_must_have_its_options(tmp_path):
    first = config(tmp_path / "run", learning_rate=1e-4, epochs=4)
    create_run_folder(first, ORIGIN)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    changed = config(tmp_path / "run", learning_rate=3e-4, epochs=2, resume=True)
    with pytest.raises(RunError) as error:
        create_run_folder(changed, ORIGIN)
    assert "learning_rate: 0.0001 then, 0.0003 now" in str(error.value)
    assert "epochs: 4 then, 2 now" in str(error.value)
    assert "batch_size" not in str(error.value)
    free = dataclasses.replace(first, resume=True, checkpoint_minutes=1, keep_checkpoints=True)
    assert create_run_folder(free, ORIGIN).path == tmp_path / "run"
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_resumed_run_must_have_its_data(tmp_path):
    create_run_folder(config(tmp_path / "run"), ORIGIN)
    again = config(tmp_path / "run", resume=True)
    create_run_folder(again, ORIGIN)
    with pytest.raises(RunError, match=r"texts or labels of tickets\.csv have changed"):
        create_run_folder(again, {"data_sha256": "xyz"})


def test_overwriting_removes_what_was_there(tmp_path):
    create_run_folder(config(tmp_path / "run"), ORIGIN)
    finish(tmp_path / "run")
    create_run_folder(config(tmp_path / "run", overwrite=True), ORIGIN)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]
    # or replaying the run's own config.yaml would delete it
    assert RunFolder(tmp_path / "run").config().overwrite is False


def test_what_cannot_be_written_down_costs_no_earlier_run(tmp_path):
    create_run_folder(config(tmp_path / "run"), ORIGIN)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    odd = {"loss_options": {"gamma": object()}}
    with pytest.raises(OptionError, match=r"config\.yaml cannot hold"):
        create_run_folder(config(tmp_path / "run", overwrite=True, **odd), ORIGIN)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    with pytest.raises(OptionError, match=r"config\.yaml cannot hold"):
        create_run_folder(config(tmp_path / "new", **odd), ORIGIN)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_warm_up_is_a_share_of_the_steps(tmp_path, share):
    args = training_arguments(config(tmp_path, warmup=share), torch.device("cpu"), 100)
    assert [args.get_warmup_steps(steps) for steps in (10, 1000)] == [10 * share, 1000 * share]


def test_the_config_replays_the_run(tmp_path):
    made = config(
        tmp_path / "run", loss="logit-adjusted", loss_options={"tau": 0.5}, text="Überschrift",
        label_separator="|", epochs=0.5, max_length=128,
    )  # fmt: skip
    folder = create_run_folder(made, ORIGIN)
    assert folder.config() == made
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert set(values) == {f.name for f in dataclasses.fields(TrainConfig)} | {"provenance"}
    assert folder.provenance() == ORIGIN


def test_options_of_another_version_are_passed_over(tmp_path):
    folder = create_run_folder(config(tmp_path / "run"), ORIGIN)
    with (tmp_path / "run" / "config.yaml").open("a") as file:
        file.write("option_of_tomorrow: 3\n")
    assert folder.config().data == "tickets.csv"


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [1\n"])
def test_a_damaged_config(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RunError, match=r"config\.yaml"):
        RunFolder(tmp_path).config()


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    create_run_folder(TrainConfig(data="my tickets.csv", out=str(tmp_path / "a run")), ORIGIN)
    with pytest.raises(RunError, match=r"has no model/.*train --resume --out '.*a run'"):
        open_run_folder(tmp_path / "a run")
    (tmp_path / "a run" / "model").mkdir()
    with pytest.raises(RunError, match=r"has no metrics\.json"):
        open_run_folder(tmp_path / "a run")
    (tmp_path / "a run" / "metrics.json").write_text('{"test": 1}')
    assert open_run_folder(tmp_path / "a run").metrics() == {"test": 1}


def test_where_a_run_came_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/usr/bin/longarc", "train", "my tickets.csv"])
    origin = describe_origin("abc", encoder="BertModel", parameters=3)
    assert set(origin) == {
        "longarc", "torch", "transformers", "python", "platform", "created", "command", "git",
        "data_sha256", "encoder", "parameters",
    }  # fmt: skip
    assert origin["command"] == "longarc train 'my tickets.csv'"
    assert json.loads(json.dumps(origin)) == origin


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_of_the_folder_the_command_ran_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_origin("abc")["git"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run(["git", *command], check=True)
    assert len(describe_origin("abc")["git"]) == 40


def test_no_git_and_a_git_that_hangs(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    def hanging(*_, **__):
        raise subprocess.TimeoutExpired("git", 5)

    for failure in (missing, hanging):
        monkeypatch.setattr(subprocess, "run", failure)
        assert describe_origin("abc")["git"] is None


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_lists_that_differ_have_different_hashes(one, other):
    assert (hash_texts(one) == hash_texts(other)) == (one == other)


def test_hashes_keep_boundaries_and_odd_characters():
    assert hash_texts(["ab", "c"]) != hash_texts(["a", "bc"])
    assert hash_texts(["1:a"]) != hash_texts(["", "a"])
    assert len(hash_texts(["\ud800"])) == 64  # a lone surrogate, as broken files yield
