"""``longarc lr`` and ``--learning-rate auto``: searched once, written down, drawn, refused."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file

import longarc as package
from longarc.cli.main import main

COMMON = (
    "--text", "body", "--label", "topic", "--device", "cpu", "--epochs", "2", "--precision", "fp32",
)  # fmt: skip
RECORD = {
    "recommended", "why", "range", "stability", "start", "candidates", "validation", "run_steps",
    "cost_steps", "cost",
}  # fmt: skip


@pytest.fixture(scope="module")
def auto(tickets, tiny_model, tmp_path_factory):
    """A whole run that searched its learning rate, with its checkpoints kept."""
    out = tmp_path_factory.mktemp("auto") / "run"
    command = [
        "train", tickets, *COMMON, "--model", tiny_model, "--learning-rate", "auto", "--out", out,
        "--no-baseline", "--keep-checkpoints",
    ]  # fmt: skip
    assert main([str(word) for word in command]) == 0
    return out


def recipe(run):
    return json.loads((run / "recipe.json").read_text())["learning_rate"]


def test_lr_prints_and_writes_what_it_found(longarc, tickets, tiny_model, tmp_path):
    table = tmp_path / "<b>&.csv"
    shutil.copy(tickets, table)
    out = tmp_path / "rates"
    command = ("lr", table, *COMMON, "--model", tiny_model, "--candidates", 1, "--out", out)
    status, printed, err = longarc(*command, "--json")
    assert status == 0
    found = json.loads(printed)
    assert set(found) == RECORD | {"seconds"}
    assert "worth trying" in err
    assert {path.name for path in out.iterdir()} == {"lr.html", "learning_rate.json"}
    assert json.loads((out / "learning_rate.json").read_text()) == found
    assert len(found["candidates"]) == 1
    assert found["recommended"] in [row["learning_rate"] for row in found["candidates"]]
    page = (out / "lr.html").read_text()
    assert page.count("<svg") == 6
    assert "&lt;b&gt;&amp;.csv" in page
    assert "<b>" not in page
    assert "<script" not in page
    status, _, err = longarc(*command)
    assert status == 1
    assert "holds a search" in err
    assert "--overwrite" in err


def test_a_folder_that_is_no_search_is_never_replaced(longarc, trained, tickets, tiny_model):
    status, _, err = longarc(
        "lr", tickets, *COMMON, "--model", tiny_model, "--out", trained, "--overwrite"
    )
    assert status == 1
    assert "never overwritten" in err


def test_without_json_a_table_and_the_next_command_are_shown(
    longarc, trained, tiny_model, tmp_path, monkeypatch
):
    """The options may come from a run's config.yaml, the table among them."""
    monkeypatch.setenv("COLUMNS", "80")
    config = yaml.safe_load((trained / "config.yaml").read_text()) | {"head_learning_rate": 0.01}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    status, out, err = longarc(
        "lr", config["data"], "--config", tmp_path / "config.yaml", "--candidates", 1
    )
    assert (status, err) == (0, "")
    # The rate that was found is the head's too, which the command must say against the file.
    assert out.rstrip().endswith("--head-learning-rate null")
    assert "recommended" in out
    assert "Range: " in out
    assert "Cost: " in out
    assert f"longarc train {config['data']}" in out
    assert max(map(len, out.split("learning rate, ")[-1].split("train   ")[0].splitlines())) <= 80


def test_train_auto_writes_down_what_was_chosen_and_why(auto, tickets):
    found = recipe(auto)
    assert set(found) == RECORD
    config = yaml.safe_load((auto / "config.yaml").read_text())
    assert config["learning_rate"] == found["recommended"]
    log = [json.loads(line) for line in (auto / "log.jsonl").read_text().splitlines()]
    rates = [r["learning_rate"] for r in log if r["event"] == "train"]
    assert 0.7 * found["recommended"] < max(rates) <= found["recommended"]
    assert json.loads((auto / "metrics.json").read_text())["seconds"]["learning_rate"] > 0
    page = (auto / "report.html").read_text()
    assert "found by a search" in page
    assert "was chosen by a search before the training" in page
    for row in found["candidates"]:
        assert f"{row['macro_f1']:.3f}" in page


def test_its_config_repeats_it_without_a_search(longarc, auto, tmp_path):
    out = tmp_path / "again"
    status, printed, err = longarc(
        "train", "--config", auto / "config.yaml", "--out", out, "--no-keep-checkpoints"
    )
    assert (status, err) == (0, "")
    assert "worth trying" not in printed
    assert not (out / "recipe.json").exists()
    one, two = (load_file(run / "model" / "model.safetensors") for run in (auto, out))
    assert all(bool((one[name] == two[name]).all()) for name in one)


@pytest.mark.parametrize("again", [(), ("--learning-rate", "auto")])
def test_resuming_never_searches_again(longarc, auto, tmp_path, again):
    run = tmp_path / "run"
    shutil.copytree(auto, run)
    (run / "metrics.json").unlink()
    for name in ("model", "path"):
        shutil.rmtree(run / name, ignore_errors=True)
    status, printed, err = longarc("train", "--resume", "--out", run, *again)
    assert (status, err) == (0, "")
    assert "worth trying" not in printed
    assert recipe(run) == recipe(auto)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["learning_rate"] == recipe(auto)["recommended"]
    assert package.open_run(run).metrics["test"]["model"]["n"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--freeze",), "--freeze takes no training steps"),
        (("--epochs", 0), "--epochs 0 takes no training steps"),
        (("--head-learning-rate", 0.1), "one is searched for all"),
        (("--validation-fraction", 0), "no documents to choose on"),
    ],
)
def test_what_leaves_nothing_to_search_is_refused(longarc, tmp_path, words, said):
    status, _, err = longarc(
        "train", "no-such.csv", "--learning-rate", "auto", *words, "--out", tmp_path / "r"
    )
    assert status == 1
    assert said in err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--fraction", 2), 1, "fraction is 2"),
        (("--candidates", 0), 1, "candidates must be a whole number"),
        (("--candidates", "x"), 2, "--candidates is x"),
        (("--fractions", 0.3), 2, "Did you mean --fraction"),
        (("--validation-fraction", 0), 1, "no documents to choose on"),
        (("--candidate", 3), 2, "no option --candidate. Did you mean --candidates"),
        (("--recipe-taus", 3), 2, "no option --recipe-taus. Did you mean --recipe-tau"),
        (("--patience", "x"), 2, "--patience is x. Expected a whole number.\n"),
        (("--patience", -1), 1, "--patience is -1: expected at least 0"),
        (("--path-budget", 3), 1, "--path-budget is for --record-path"),
        ((), 1, "no-such.csv"),
    ],
)
def test_wrong_options_of_lr_say_what_was_expected(longarc, words, status, said):
    found, _, err = longarc("lr", "no-such.csv", *words)
    assert found == status
    assert said in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--freeze",), "lr needs training steps, and --freeze takes none: drop --freeze."),
        (("--epochs", 0), "lr needs training steps, and --epochs is 0"),
        (("--learning-rate", "1e-3"), "lr takes no --learning-rate: it is what is searched for."),
        (("--learning-rate=auto",), "lr takes no --learning-rate: it is what is searched for."),
        (("--head-learning-rate", 0.1), "lr takes no --head-learning-rate: one rate is searched"),
        (("--resume",), "lr takes no --resume"),
        (("--validation-fraction", 0), "no documents to choose on"),
        (("--calibrate", "--no-baseline", "--hybrid", 8), "no-such.csv"),
    ],
)
def test_lr_speaks_of_what_was_typed(longarc, words, said):
    """What does not matter to a search is taken, as a training's command has it."""
    status, _, err = longarc("lr", "no-such.csv", *words)
    assert status == 1
    assert said in err
    assert "auto" not in err


def test_lr_of_a_frozen_run_is_refused(longarc, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("learning_rate: 3.0e-3\nresume: true\nfreeze: true\n")
    command = ("lr", "no-such.csv", "--config", file)
    assert "drop --freeze" in longarc(*command)[2]
    assert "no-such.csv" in longarc(*command, "--no-freeze")[2]


@pytest.mark.parametrize("given", ["fast", "1e-4x"])
def test_a_rate_that_is_none_is_refused(longarc, tmp_path, given):
    status, _, err = longarc("train", "t.csv", "--learning-rate", given, "--out", tmp_path / "r")
    assert status == 2
    assert f"--learning-rate cannot be read: '{given}'" in err
    assert "or auto" in err
    with pytest.raises(package.errors.OptionError, match="expected a number or auto"):
        package.fit({"text": [], "label": []}, out=tmp_path / "r", learning_rate=given)


def test_a_rate_in_a_file_is_read_as_on_the_command_line(longarc, tickets, tiny_model, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("learning_rate: 3.0e-3\nfreeze: true\n")
    out = tmp_path / "r"
    command = ("train", tickets, *COMMON, "--model", tiny_model, "--config", file, "--no-baseline")
    assert longarc(*command, "--out", out)[0] == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["learning_rate"] == 3e-3
