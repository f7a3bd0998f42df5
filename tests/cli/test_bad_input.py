"""Bad input: one message that names what was found and the fix, exit status, nothing written."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import longarc as package
from longarc.cli.main import VERBS

BAD_TABLES = {
    "empty file": (b"", ["is empty"]),
    "header only": (b"body,topic\n", ["header", "no rows"]),
    "one class": (
        b"body,topic\n" + b"".join(b"text %d,a\n" % i for i in range(9)),
        ["all labels", "two classes"],
    ),
    "empty texts": (b"body,topic\n,a\n,b\n,a\n,b\n", ["empty"]),
    "missing labels": (b"body,topic\nx,a\ny,\nz,b\n", ["label", "row"]),
    "not UTF-8": ("body,topic\ncafé,a\nx,b\n".encode("latin-1"), ["UTF-8", "row 1", "iconv"]),
    "ragged": (b"body,topic\nx,a\ny,b,c\n", ["line 3", "3", "2"]),
    "NUL": (b"body,topic\nx,a\ny\x00z,b\n", ["NUL", "row 2"]),
    "duplicated columns": (b"body,topic,topic\nx,a,b\n", ["topic", "2 times"]),
}


@pytest.mark.parametrize("name", BAD_TABLES)
@pytest.mark.parametrize("verb", ["train", "check"])
def test_a_bad_table(longarc, tiny_model, tmp_path, name, verb):
    content, expected = BAD_TABLES[name]
    table = tmp_path / "bad.csv"
    table.write_bytes(content)
    out = ("--out", tmp_path / "run") if verb == "train" else ()
    status, printed, err = longarc(
        verb, table, "--text", "body", "--label", "topic", "--model", tiny_model, *out
    )
    said = (err + printed).lower()
    assert status == 1
    assert "traceback" not in said
    for words in expected:
        assert words.lower() in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{dir}/tickts.csv"], ["does not exist", "tickets.csv"]),
        (["{data}", "--text", "bdy"], ["bdy", "body"]),
        (["{data}", "--label", "topics"], ["topics", "topic"]),
        (["{data}", "--loss", "logit-ajusted"], ["logit-ajusted", "logit-adjusted"]),
        (["{data}", "--loss", "logit-adjusted", "--loss-options", "{{tua: 2}}"], ["tua", "tau"]),
        (
            ["{data}", "--loss", "focal", "--loss-options", "{{gamma: -1}}"],
            ["Loss focal: gamma must be", "found -1"],
        ),
        (["{data}", "--regularizers", "[[fgm]]"], ["no regularizer"]),
        (["{data}", "--regularizers", "fgn"], ["fgn", "Did you mean fgm"]),
        (["{data}", "--regularizers", "sam, {{flooding: {{levl: 1}}}}"], ["levl", "level"]),
        (["{data}", "--loss", "binary-cross-entropy"], ["binary-cross-entropy", "label"]),
        (["{data}", "--model", "minilmm"], ["minilmm", "minilm"]),
        (["{data}", "--model", "{dir}"], ["config.json"]),
        (["{data}", "--max-length", "65"], ["65", "64"]),
        (["{data}", "--validation-fraction", "1.5"], ["1.5", "between"]),
        (
            ["{data}", "--validation-fraction", "0.6", "--test-fraction", "0.4"],
            ["--validation-fraction 0.6 and --test-fraction 0.4 leave nothing to train on"],
        ),
        (["{data}", "--label-separator="], ["--label-separator is empty", "such as ';'"]),
        (["{data}", "--seed", "-1"], ["--seed is -1", "between"]),
        (["{data}", "--test", "{dir}/nothing.csv"], ["nothing.csv"]),
        (["{data}", "--freeze", "--head-start", "scratch"], ["--freeze", "scratch"]),
        (["{data}", "--resume", "--overwrite"], ["--resume", "--overwrite"]),
        (["{data}", "--resume"], ["no run folder"]),
    ],
)
def test_a_bad_option_value(longarc, tickets, tiny_model, tmp_path, words, expected):
    filled = [w.format(dir=tickets.parent, data=tickets) for w in words]
    model = () if "--model" in words else ("--model", tiny_model)
    status, printed, err = longarc("train", *filled, *model, "--out", tmp_path / "run")
    assert status == 1, err
    for part in expected:
        assert part in err
    assert printed.count("Traceback") == 0
    assert not (tmp_path / "run").exists()


def test_a_data_set_to_test_on_needs_its_split_named(longarc, tickets, tiny_model, tmp_path):
    """Its train, which a training takes, may be what the model was trained on."""
    part = Dataset.from_csv(str(tickets))
    DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / "saved"))
    more = ("--model", tiny_model, "--out", tmp_path / "run")
    status, _, err = longarc("train", tickets, "--test", tmp_path / "saved", *more)
    assert status == 1
    assert "saved/test" in err
    assert not (tmp_path / "run").exists()
    _, out, _ = longarc("check", tmp_path / "saved", "--test", tmp_path / "saved/test", *more[:2])
    assert "split: train (not read: " in out


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_file_with_the_other_kind_of_labels(longarc, tickets, tiny_model, tmp_path, name):
    lists = tmp_path / "lists.jsonl"
    lists.write_text('{"body": "pump oil", "topic": ["pump"]}\n' * 4)
    run = tmp_path / "run"
    given = ("--model", tiny_model, "--out", run, f"--{name}", lists)
    status, _, err = longarc("train", tickets, "--text", "body", "--label", "topic", *given)
    assert status == 1
    assert "The labels are lists such as ['pump']" in err
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "train"),
        (["train", "x.csv", "--out", "r", "--los-options", "{}"], "--loss-options"),
        (["train", "x.csv", "--max-lenght", "3", "--out", "r"], "--max-length"),
        (["train", "x.csv", "--pooling", "middle", "--out", "r"], "mean, cls, last"),
        (["train", "x.csv", "--epochs", "many", "--out", "r"], "epochs"),
        (["train", "x.csv"], "--out"),
        (["train", "--out", "r"], "DATA"),
        (["predict", "runs/x"], "DATA and --out"),
    ],
)
def test_wrong_usage_has_status_2(longarc, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    status, _, err = longarc(*words)
    assert status == 2
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_a_ten_million_character_document_trains(longarc, tickets, tiny_model, tmp_path):
    table = tmp_path / "long.csv"
    table.write_text(tickets.read_text() + "999," + "pump oil " * 1_111_111 + ",pump\n")
    status, printed, err = longarc(
        "train", table, "--text", "body", "--label", "topic", "--model", tiny_model, "--freeze",
        "--no-baseline", "--device", "cpu", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    assert "1,000,000 characters" in printed


@pytest.mark.parametrize("verb", ["evaluate", "predict", "report"])
def test_verbs_on_what_is_no_run(longarc, tickets, tmp_path, verb):
    words = {
        "evaluate": [tickets], "predict": [tickets, "--out", tmp_path / "p.csv"], "report": [],
    }[verb]  # fmt: skip
    for folder, expected in ((tmp_path / "none", "no run folder"), (tickets.parent, "config.yaml")):
        status, _, err = longarc(verb, folder, *words)
        assert status == 1
        assert expected in err
    assert not (tmp_path / "p.csv").exists()


def test_an_unknown_key_in_a_config_file(longarc, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("data: a.csv\nout: r\nmax_lenght: 3\n")
    status, _, err = longarc("train", "--config", config)
    assert status == 2
    assert "Did you mean --max-length" in err


def test_a_separator_is_taken_as_typed(longarc, tiny_model, tmp_path):
    table = tmp_path / "several.csv"
    rows = "".join(f"pump oil {i},a#b\ntax law {i},c\n" for i in range(20))
    table.write_text("text,tags\n" + rows)
    words = ("--model", tiny_model, "--label-separator", "#", "--json")
    status, printed, err = longarc("check", table, *words)
    assert status == 0, err
    assert '"count": 3' in printed


def test_tables_in_memory_stand_for_data_alone(tiny_model, tmp_path):
    table = {"text": ["a", "b"] * 10, "label": ["x", "y"] * 10}
    with pytest.raises(package.OptionError, match="test is a dict"):
        package.fit(table, test=table, model=tiny_model, out=tmp_path / "run", verbose=False)
    with pytest.raises(package.OptionError, match="Did you mean max_length"):
        package.fit(table, max_lenght=3, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"freeze": "no"}, "--freeze is 'no': expected True or False"),
        ({"batch_size": 1.5}, "--batch-size is 1.5: expected a whole number"),
        ({"epochs": True}, "--epochs is True: expected a number"),
        ({"loss_options": "tau=1"}, "expected a mapping"),
        ({"text": 3}, "--text is 3: expected a string"),
    ],
)
def test_python_options_of_the_wrong_kind(tiny_model, tmp_path, options, expected):
    table = {"text": ["a", "b"] * 10, "label": ["x", "y"] * 10}
    with pytest.raises(package.OptionError, match=re.escape(expected)):
        package.fit(table, **{"model": tiny_model, "out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_numpy_numbers_are_numbers(tiny_model, tmp_path):
    table = {"text": [f"{w} {i}" for i in range(20) for w in "ab"], "label": ["x", "y"] * 20}
    run = package.fit(
        table, model=tiny_model, out=tmp_path / "run", freeze=np.bool_(True), verbose=False,
        seed=np.int64(3), baseline=False, device="cpu",
    )  # fmt: skip
    assert package.open_run(run.path).config.seed == 3


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["same,a", "same,b"] * 9, "are the same"),
        ([f"text {i},class {i}" for i in range(30)], "right label column"),
    ],
)
def test_a_table_that_cannot_be_split_says_why(longarc, tiny_model, tmp_path, rows, expected):
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["body,topic", *rows]))
    words = ("--text", "body", "--label", "topic", "--model", tiny_model, "--out", tmp_path / "r")
    status, _, err = longarc("train", table, *words)
    assert status == 1
    assert expected in err


def test_nothing_of_the_users_is_replaced_unasked(longarc, trained, tickets, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = tmp_path / "kept.csv"
    kept.write_text("mine")
    status, _, err = longarc("predict", trained, tickets, "--out", "~/kept.csv")
    assert status == 1
    assert "--overwrite" in err
    status, _, err = longarc("report", trained, "--out", kept)
    assert status == 1
    assert ".html" in err
    assert kept.read_text() == "mine"
    kept.write_text(tickets.read_text())
    status, _, err = longarc("predict", trained, kept, "--out", kept, "--overwrite")
    assert status == 1
    assert "is the table itself" in err
    assert kept.read_text() == tickets.read_text()
    status, _, err = longarc("train", tickets, "--out", kept / "run")
    assert status == 1
    assert "is a file" in err


def test_control_characters_of_labels_do_not_reach_the_terminal(longarc, tiny_model, tmp_path):
    table = tmp_path / "t.jsonl"
    rows = [{"text": f"oil {i}", "label": ["\x1b[31mred", "\u202eback"][i % 2]} for i in range(30)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, printed, err = longarc("check", table, "--model", tiny_model)
    assert status == 0, err
    assert "red" in printed
    assert "\x1b" not in printed + err
    assert "\u202e" not in printed + err


def test_the_command_that_check_suggests_has_the_options_of_the_check(longarc, tickets, tiny_model):
    words = (tickets, "--label", "topic", "--max-length", 24, "--model", tiny_model)
    status, printed, err = longarc("check", *words)
    assert status == 0, err
    told = "".join(printed.splitlines()[-2:])
    expected = f"longarc train {tickets} --label topic --model {tiny_model} --max-length 24 --out"
    assert expected in told


@pytest.mark.parametrize("verb", VERBS)
def test_help_speaks_of_options_not_of_python(longarc, verb):
    status, printed, _ = longarc(verb, "--help")
    assert status == 0
    assert "example: longarc" in printed
    for word in ("<function", "Literal[", "null", "provenance", "<class"):
        assert word not in printed
