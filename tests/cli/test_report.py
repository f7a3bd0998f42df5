"""``longarc report``: what it writes over, which it says before it reads a run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two folders of runs that cannot be read, and pages that stand where others would go."""
    monkeypatch.chdir(tmp_path)
    for name in ("one/report.html", "one/diagnosis.html", "page.html", "comparison.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["one", "other"],
        ["one", "--out", "page.html"],
        ["one", "--out", "one/diagnosis.html"],
        ["one", "other", "--out", "one/report.html"],
    ],
)
def test_no_page_is_replaced_unasked(longarc, folder, words):
    status, _, err = longarc("report", *words)
    assert status == 1
    assert "exists. Name another file, or replace it with --overwrite." in " ".join(err.split())
    status, _, err = longarc("report", *words, "--overwrite")
    assert (status, "exists" in err) == (1, False)  # the folders are no runs
    assert "run" in err


@pytest.mark.parametrize("words", [["one"], ["one", "--out", "one/report.html"]])
def test_a_runs_own_page_is_written_again(longarc, folder, words):
    status, _, err = longarc("report", *words)
    assert (status, "--overwrite" in err) == (1, False)
    assert "run" in err
