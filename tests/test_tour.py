"""The tour of docs/: what it shows is what its commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from longarc.cli.main import VERBS, main

TOUR = (Path(__file__).parents[1] / "docs" / "tour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TOUR, re.MULTILINE | re.DOTALL)


def test_the_check_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is made as the tour makes it, and looked at as the tour does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds[:3] == ["python", "sh", "text"]
    exec(compile(BLOCKS[0][1], "tour", "exec"), {"__name__": "tour"})
    assert main(shlex.split(BLOCKS[1][1])[1:]) == 0
    printed = capsys.readouterr()
    lines = {" ".join(line.split()) for line in (printed.out + printed.err).splitlines()}
    shown = [" ".join(line.split()) for line in BLOCKS[2][1].splitlines()]
    assert [line for line in shown if line not in lines] == []


def test_every_command_is_one_of_longarcs_and_its_options_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = [shlex.split(block.replace("\\\n", " ")) for kind, block in BLOCKS if kind == "sh"]
    assert [words[1] for words in commands] == ["check", "train", "explain", "cite"]
    for program, verb, *words in commands:
        assert program == "longarc"
        assert verb in VERBS
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
        assert {word for word in words if word.startswith("--")} <= known
