"""``--config``: what is typed counts more, and a file that cannot be read says why."""

from __future__ import annotations

import subprocess

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.cli.parser import parse_job
from longarc.training.config import TrainConfig

TYPED = ("a.csv", ("--epochs", "2"), ("--out", "mine"), "--freeze", ("--loss=focal",))
IN_FILE = {"data": "b.csv", "epochs": 7.0, "out": "other", "seed": 3, "loss": "dice"}


@pytest.fixture(scope="module")
def options_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "options.yaml"
    path.write_text(yaml.safe_dump(IN_FILE))
    return path


@settings(deadline=None, max_examples=40)  # a parser of all options is built each time
@given(st.permutations(TYPED), st.integers(0, len(TYPED)), st.booleans())
def test_what_is_typed_counts_more_wherever_the_file_stands(options_file, typed, place, joined):
    file = [f"--config={options_file}"] if joined else ["--config", str(options_file)]
    groups = [[each] if isinstance(each, str) else list(each) for each in typed]
    words = [word for group in [*groups[:place], file, *groups[place:]] for word in group]
    chosen, _ = parse_job("train", "", "longarc train t.csv --out x", TrainConfig, words)
    assert (chosen.data, chosen.epochs, chosen.out, chosen.freeze) == ("a.csv", 2, "mine", True)
    assert (chosen.loss, chosen.seed) == ("focal", 3)


@pytest.mark.parametrize("verb", ["train", "lr"])
def test_an_option_before_the_file_that_lacks_its_value_takes_no_other_word(
    longarc, options_file, verb
):
    status, _, err = longarc(verb, "--text", "--config", options_file, "t.csv", "--out", "x")
    assert (status, "--text: expected one argument" in err) == (2, True)
    status, _, err = longarc(verb, "--config", "--config", options_file, "t.csv", "--out", "x")
    assert (status, "--config: expected one argument" in err) == (2, True)


def test_options_come_from_a_pipe_and_from_the_line_itself(start, tmp_path):
    """A pipe can be read once."""
    for words in (("--config", "/dev/stdin"), ("--config", "{epochs: 0}")):
        process = start("lr", "t.csv", *words, stdin=subprocess.PIPE)
        _, err = process.communicate("epochs: 0", timeout=60)
        assert "--epochs is 0" in err


@pytest.mark.parametrize("verb", ["train", "pretrain"])
def test_resuming_where_there_is_no_run_says_so(longarc, tmp_path, verb):
    out = tmp_path / "ticktes"
    status, _, err = longarc(verb, "--resume", "--out", out)
    assert status == 1
    assert f"there is no {out / 'config.yaml'}. Start it without --resume." in err


def test_the_file_with_the_wrong_value_is_blamed(longarc, tmp_path):
    """Files are read first, so a wrong value is found there even where another counts more."""
    bad, good = tmp_path / "bad.yaml", tmp_path / "good.yaml"
    bad.write_text("epochs: x\n")
    good.write_text("epochs: 2\n")
    for words in (
        ("--config", bad, "--config", good),
        ("--config", bad, "--epochs", 3),
        ("--config", bad, "--label", "epochs"),
    ):
        status, _, err = longarc("train", "t.csv", "--out", "x", *words)
        assert status == 2
        assert err.startswith(f"longarc train: --config {bad}: --epochs is x.")
    bad.write_text("learning_rate: fast\n")
    status, _, err = longarc("train", "t.csv", "--config", bad)
    assert err.startswith(f"longarc train: --config {bad}: --learning-rate cannot be read")
    bad.write_text("config: null\nepochs: x\n")
    status, _, err = longarc("train", "t.csv", "--config", bad)
    assert "--epochs is x" in err


def test_a_typed_option_is_not_blamed_on_the_file(longarc, options_file):
    status, _, err = longarc("train", "--config", options_file, "--epochs", "x")
    assert status == 2
    assert err.startswith("longarc train: --epochs is x.")


def test_of_two_files_the_later_counts_more(options_file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("seed: 5\n")
    words = ["--config", str(options_file), "--out", "mine", "--config", str(other)]
    chosen, _ = parse_job("train", "", "longarc train t.csv --out x", TrainConfig, words)
    assert (chosen.data, chosen.seed, chosen.out) == ("b.csv", 5, "mine")


def test_another_run_is_never_replaced_by_a_word_order(longarc, trained, tickets, tmp_path):
    """``--overwrite`` is for the ``--out`` that was typed, not for that of the file."""
    before = sorted(path.name for path in trained.iterdir()), (trained / "log.jsonl").read_bytes()
    mine = tmp_path / "mine"
    status, _, err = longarc(
        "train", tickets, "--epochs", 1, "--out", mine, "--config", trained / "config.yaml",
        "--overwrite",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert yaml.safe_load((mine / "config.yaml").read_text())["epochs"] == 1
    after = sorted(path.name for path in trained.iterdir()), (trained / "log.jsonl").read_bytes()
    assert before == after


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file. Expected a YAML file of options"),
        (b"\xff\xfe\x00", "it is not UTF-8 at byte 0."),
        (b"a: [1\nb: }", "it is not valid YAML: while parsing a flow sequence"),
        (b"- 1\n", "it holds no options. Expected lines such as 'epochs: 3'."),
        (b"", "it holds no options."),
        (b"epohcs: 3", "FILE: no option --epohcs. Did you mean --epochs"),
        (b"foo:\n  bar: 1", "FILE: no option --foo.bar."),
        (b"epochs: x", "FILE: --epochs is x. Expected a number"),
        (b"config: b.yaml", "it names another file, config. Copy that one's options into it."),
    ],
)
def test_a_file_that_cannot_be_read_says_why(longarc, tmp_path, content, said):
    file = tmp_path / "options.yaml"
    if content is not None:
        file.write_bytes(content)
    for verb in ("train", "pretrain", "lr"):
        status, _, err = longarc(verb, "t.csv", "--config", file, "--out", tmp_path / "run")
        assert status == 2
        assert said.replace("FILE", f"--config {file}") in err
        assert "Traceback" not in err
    status, _, err = longarc("check", "t.csv", "--config", file)
    assert (status, "no option --config" in err) == (2, True)
    status, _, err = longarc("train", "t.csv", "--config", "nowhere: [1")
    assert (status, "it is not valid YAML" in err) == (2, True)
    status, _, err = longarc("train", "t.csv", "--config", tmp_path)
    assert status == 2
    assert "it is a folder" in err
    status, _, err = longarc("train", "t.csv", "--out", "x", "--config")
    assert status == 2
    assert "--config: expected one argument" in err
