"""The tour of docs/: its table, its commands, and what they print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from longarc.cli.main import main

TOUR = (Path(__file__).parents[1] / "docs" / "tour.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TOUR, re.MULTILINE | re.DOTALL)
COMMANDS = [shlex.split(block.replace("\\\n", " ")) for kind, block in BLOCKS if kind == "sh"]
SHOWN = [block for kind, block in BLOCKS if kind == "text"]
NUMBER = re.compile(r"[+-]?[\d.]+(?:e-\d+)?")


def lines_of(text: str, *, numbers: bool = True) -> list[str]:
    """Lines without their spacing; without figures, a line is what surrounds them."""
    plain = (text if numbers else NUMBER.sub("#", text)).splitlines()
    return [" ".join(re.sub("[─–…]", " ", line).split()) for line in plain]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the table that the tour makes."""
    folder = tmp_path_factory.mktemp("tour")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(BLOCKS[0][1], "tour", "exec"), {"__name__": "tour"})
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "100")


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command of the tour prints."""
    capsys.readouterr()
    assert main(words[1:]) == 0
    streams = capsys.readouterr()
    return streams.out + streams.err


def test_the_blocks_are_a_table_and_four_commands() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python", *["sh", "text"] * 3, "sh"]
    assert [words[:2] for words in COMMANDS] == [
        ["longarc", verb] for verb in ("check", "train", "explain", "cite")
    ]


def test_the_check_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines_of(printed(COMMANDS[0], capsys))
    assert [line for line in lines_of(SHOWN[0]) if line not in found] == []


@pytest.mark.real
def test_the_training_the_explanation_and_the_citations_are_as_shown(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures are those of one machine; what they are of, and that they add up, is not."""
    found = lines_of(printed(COMMANDS[1], capsys), numbers=False)
    shown = lines_of(SHOWN[1], numbers=False)
    comparison = shown.index(next(line for line in shown if line.startswith("The model’s")))
    table, paths = shown[:comparison], shown[comparison + 2 :]  # which is ahead may differ
    assert [line for line in table + paths if line not in found] == []

    explanation = printed(COMMANDS[2], capsys)
    account = next(line for line in explanation.splitlines() if "before training" in line)
    first, documents, decay, residual, last = (float(n) for n in NUMBER.findall(account))
    assert first + documents + decay + residual == pytest.approx(last, abs=2e-3)
    found = lines_of(explanation, numbers=False)
    shown = lines_of(SHOWN[2], numbers=False)
    assert found[found.index(shown[0]) :][:4] == shown[:4]  # down to the heaviest document

    assert "@software{longarc" in printed(COMMANDS[3], capsys)
