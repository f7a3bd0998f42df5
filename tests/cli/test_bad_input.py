"""Bad input: one message that names what was found and the fix, exit status, nothing written."""

from __future__ import annotations

import pytest

import longarc as package

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
        (["{data}", "--loss", "binary-cross-entropy"], ["binary-cross-entropy", "label"]),
        (["{data}", "--model", "minilmm"], ["minilmm", "minilm"]),
        (["{data}", "--model", "{dir}"], ["config.json"]),
        (["{data}", "--max-length", "65"], ["65", "64"]),
        (["{data}", "--validation-fraction", "1.5"], ["1.5", "between"]),
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
        (["train", "x.csv", "--pooling", "max", "--out", "r"], "mean"),
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
