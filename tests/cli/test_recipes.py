"""Recipes through the command line after fine-tuning: resumed, in two processes, refused."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file

import longarc as package

AUTO = (
    "--text", "body", "--label", "topic", "--device", "cpu", "--no-baseline", "--recipe", "auto",
    "--epochs", "2", "--learning-rate", "3e-3", "--sampler", "square-root",
)  # fmt: skip


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def same(a, b):
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(bool((one[k] == two[k]).all()) for k in one)


@pytest.fixture(scope="module")
def finished(tickets, tiny_model, tmp_path_factory):
    """A whole run with its checkpoints kept."""
    from longarc.cli.main import main

    out = tmp_path_factory.mktemp("auto") / "run"
    command = ["train", tickets, *AUTO, "--model", tiny_model, "--keep-checkpoints", "--out", out]
    assert main([str(word) for word in command]) == 0
    return out


def without_timings(recipe):
    return {
        stage: {**found, "trials": [row | {"seconds": 0} for row in found["trials"]]}
        for stage, found in recipe.items()
    }


def test_the_record_and_the_config_say_what_was_done(finished):
    recipe = json.loads((finished / "recipe.json").read_text())
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["loss"] == recipe["loss"]["chosen"] != "auto"
    stage = recipe["second_stage"]
    assert [row["name"] for row in stage["trials"]] == ["none", "post-hoc", "tau-norm", "crt"]
    metrics = json.loads((finished / "metrics.json").read_text())
    (chosen,) = (row for row in stage["trials"] if row["name"] == stage["chosen"])
    assert metrics["validation"]["model"]["macro_f1"]["value"] == pytest.approx(
        chosen["macro_f1"], abs=0.1
    )  # bfloat16 may turn a close decision
    assert metrics["seconds"]["second_stage"] > 0


def test_a_run_stopped_after_the_second_stage_does_nothing_twice(longarc, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "model")
    (run / "metrics.json").unlink()
    before = (run / "recipe.json").read_bytes()
    status, printed, err = longarc("train", "--resume", "--out", run)
    assert status == 0, err
    assert (run / "recipe.json").read_bytes() == before
    assert "second stage:" not in printed
    assert same(run, finished)


def test_a_run_stopped_before_it_makes_up_for_it(longarc, finished, tickets, tiny_model, tmp_path):
    """Resumed by the whole command, in which the loss is still auto."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "model")
    (run / "metrics.json").unlink()
    (run / "checkpoints" / "head.safetensors").unlink()
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({"loss": recipe["loss"]}))
    status, printed, err = longarc(
        "train", tickets, *AUTO, "--model", tiny_model, "--resume", "--out", run
    )
    assert status == 0, err
    assert "loss: " not in printed, "the losses are not tried again"
    assert "second stage: " in printed
    again = json.loads((run / "recipe.json").read_text())
    assert again["loss"] == recipe["loss"]
    assert without_timings(again) == without_timings(recipe)
    assert same(run, finished)


def test_a_run_stopped_before_its_loss_was_settled_tries_them(longarc, finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = yaml.safe_load((finished / "config.yaml").read_text()) | {"loss": "auto"}
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"keep_checkpoints": False}))
    status, printed, err = longarc("train", "--resume", "--out", run)
    assert status == 0, err
    assert "loss: " in printed
    assert yaml.safe_load((run / "config.yaml").read_text())["loss"] != "auto"
    assert not (run / "checkpoints").exists()
    assert same(run, finished)


def test_two_processes_agree_on_the_loss(start, tickets, tiny_model, tmp_path):
    run = tmp_path / "pair"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(
        "train", tickets, *AUTO, "--calibrate", "--model", tiny_model, "--batch-size", "4",
        "--out", run, launcher=launcher,
    )  # fmt: skip
    printed, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-3000:]
    assert printed.count("second stage: ") == printed.count("loss: ") == 1
    opened = package.open_run(run)
    assert opened.config.loss == opened.folder.recipe()["loss"]["chosen"]
    assert opened.predict(["pump oil leak"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--freeze", "--sampler", "class-balanced"], ["--freeze", "--sampler", "--recipe crt"]),
        (["--recipe-minutes", "-1"], ["--recipe-minutes is -1", "at least 0"]),
        (
            ["--recipe-minutes", "1"],
            ["--recipe-minutes is for --recipe auto", "--recipe is none"],
        ),
        (["--freeze", "--head-learning-rate", "0.1"], ["--freeze", "--head-learning-rate"]),
        (["--freeze", "--accumulation", "2"], ["--freeze", "--accumulation"]),
    ],
)
def test_options_that_do_not_fit_are_refused(
    longarc, tickets, tiny_model, tmp_path, words, expected
):
    status, _, err = longarc(
        "train", tickets, "--model", tiny_model, *words, "--out", tmp_path / "run"
    )
    assert status == 1
    for part in expected:
        assert part in err
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_is_wrong_usage(longarc, tickets, tmp_path):
    status, _, err = longarc("train", tickets, "--recipe", "posthoc", "--out", tmp_path / "run")
    assert status == 2
    assert "post-hoc" in err
