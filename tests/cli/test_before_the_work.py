"""What can be known to fail is said before the work, and work that is stopped says so."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

NOWHERE = Path("/proc/longarc")
"""Where no file can be made, not even by root."""

closed = pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")


def refused_before_torch(words: Sequence[object], folder: Path) -> str:
    """What the command line says that exits with 1, in a process of its own and without torch."""
    script = (
        "import sys; from longarc.cli.main import main; status = main(sys.argv[1:]); "
        "sys.exit(9 if 'torch' in sys.modules else status)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr or "torch was imported"
    assert not ended.stdout
    return ended.stderr


@closed
@pytest.mark.parametrize(
    "words",
    [
        ("train", "TABLE", "--out", NOWHERE / "run"),
        ("pretrain", "TABLE", "--objective", "simcse", "--out", NOWHERE / "run"),
        ("lr", "TABLE", "--out", NOWHERE / "rates"),
        ("compare", "TABLE", "--candidates", "{a: {}, b: {pooling: cls}}", "--budget-steps", "2",
         "--out", NOWHERE / "compare"),
        ("predict", "RUN", "TABLE", "--out", "/proc/predicted.csv"),
        ("explain", "RUN", "--text", "a pump", "--out", NOWHERE / "page.html"),
        ("explain", "RUN", "--text", "a pump", "--out", "/proc/all.csv"),
        ("diagnose", "RUN", "TABLE", "--out", NOWHERE / "page.html"),
        ("report", "RUN", "--out", NOWHERE / "page.html"),
        ("study", "imbalance", "--quick", "--out", NOWHERE / "study"),
    ],
)  # fmt: skip
def test_a_place_that_takes_no_files_is_refused_first(trained, tickets, tmp_path, words):
    named = {"TABLE": tickets, "RUN": trained}
    err = refused_before_torch([named.get(word, word) for word in words], tmp_path)
    assert f"cannot write {words[-1]}: /proc takes no files" in err
    assert "Name another --out." in err
    assert len(err.splitlines()) == 1, "something was done before"


@pytest.mark.parametrize("verb", ["train", "lr", "report"])
def test_a_file_on_the_way_is_named(longarc, trained, tickets, tmp_path, verb):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "page.html"
    status, _, err = longarc(verb, trained if verb == "report" else tickets, "--out", out)
    assert status == 1
    assert f"{tmp_path / 'file'} is a file" in err


def test_a_missing_table_costs_no_import_of_torch(tmp_path):
    (tmp_path / "here.csv").write_text("text,label\na,b\n")
    for words in (
        ("train", "t.csv", "--out", "run"),
        ("train", "here.csv", "--validation", "t.csv", "--out", "run"),
        ("pretrain", "t.csv", "--out", "run"),
        ("lr", "t.csv"),
        ("check", "t.csv"),
        ("diagnose", "bert", "t.csv"),
        ("compare", "t.csv", "--candidates", "tail", "--out", "compared"),
        ("study", "realformer", "--tables", "here.csv", "t.csv", "--out", "study"),
    ):
        err = refused_before_torch(words, tmp_path)
        assert "t.csv does not exist. Did you mean here.csv?" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", "RUN", "--text", "x", "--of", "los"), "There is no measure 'los'"),
        (("train", "TABLE", "--label-separator=", "--out", "r"), "--label-separator is empty"),
        (
            ("check", "TABLE", "--validation-fraction", ".6", "--test-fraction", ".6"),
            "a sum below 1",
        ),
    ],
)
def test_what_the_folder_and_the_options_say_costs_none_either(
    trained, tickets, tmp_path, words, said
):
    named = {"TABLE": tickets, "RUN": trained}
    assert said in refused_before_torch([named.get(word, word) for word in words], tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to send")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_verb_says_so(start, tickets, tiny_model, number):
    process = start(
        "lr", tickets, "--text", "body", "--label", "topic", "--model", tiny_model,
        "--epochs", 4000, "--device", "cpu",
    )  # fmt: skip
    assert process.stdout.readline(), "it ended before it had begun"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("longarc: stopped")
    assert "Traceback" not in err


def test_a_wrong_column_is_answered_with_the_verbs_own_option(longarc, trained, tickets, tmp_path):
    """``--text`` of longarc explain is a text."""
    command = ("explain", trained, tickets, "--column", "bdy")
    status, _, err = longarc(*command)
    assert status == 1
    assert "no column 'bdy'. Did you mean body?" in err
    assert err.rstrip().endswith("Name the column with --column.")
    out = tmp_path / "p.csv"
    _, _, err = longarc("predict", trained, tickets, "--text", "bdy", "--out", out)
    assert err.rstrip().endswith("Name the column with --text.")
