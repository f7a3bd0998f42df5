"""A study's folder: what is in it, that it is whole, and that nothing of a user's is replaced."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from longarc.errors import OptionError, RunError
from longarc.report.drawing import data_of, panel
from longarc.studies.registry import STUDIES, run_study
from longarc.studies.study import Finding, StudyFigure, StudyResult, write_study

HOSTILE = "<script>alert(1)</script>&\x00"


@pytest.fixture(scope="module")
def result() -> StudyResult:
    import altair as alt

    def make(width):
        rows = data_of([{"x": 0, "y": 1}, {"x": 1, "y": 2}])
        return alt.Chart(rows).mark_line().encode(x="x:Q", y="y:Q").properties(width=width)

    return StudyResult(
        title=f"Sums {HOSTILE}",
        text=["What was claimed.", HOSTILE],
        findings=[
            Finding("Two and two are four.", 4, 4.0, holds=True, how="Counted on fingers."),
            Finding(HOSTILE, "five", 2 / 3, holds=False, how=HOSTILE),
        ],
        table=[{"sum": "2 + 2", "value": 4.0}, {"sum": "a, b\n" + HOSTILE, "value": 1 / 3}],
        figures=[StudyFigure("line", "A line.", panel("Line", "It rises.", make))],
        source="folklore",
        conclusion=("All add up.", "1 of 2 claims hold: one does.", "It depends on fingers."),
    )


def test_the_folder(result, tmp_path):
    page = write_study(result, tmp_path / "deep" / "sums")
    folder = page.parent
    names = ["line.svg", "study.html", "study.json", "table.csv"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert [p.name for p in folder.parent.iterdir()] == ["sums"]  # no leftovers beside it
    saved = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    assert saved["findings"][1] == {
        "claim": HOSTILE, "expected": "five", "measured": 2 / 3, "holds": False, "how": HOSTILE,
    }  # fmt: skip
    assert saved["figures"] == ["line.svg"]
    assert saved["conclusion"] == list(result.conclusion)
    assert saved["run"] == {}
    assert saved["table"] == list(result.table)
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sum"] for row in rows] == [row["sum"] for row in result.table]
    assert [float(row["value"]) for row in rows] == [4.0, 1 / 3]
    assert (folder / "line.svg").read_text(encoding="utf-8") == str(result.figures[0].panel.wide)


def test_the_page_says_what_failed_and_runs_nothing(result, tmp_path):
    page = write_study(result, tmp_path / "sums").read_text(encoding="utf-8")
    assert "1 of 2 claims hold" in page
    assert "It depends on fingers." in page
    assert "✓ holds" in page
    assert "✗ does not" in page
    assert "Expected five; measured 0.667." in page
    assert "<script" not in page
    assert "://" not in page.replace("http://www.w3.org/", "")  # names of SVG's dialect
    assert page.count("<svg") == 2
    assert 'aria-label="It rises."' in page


def test_an_earlier_study_is_replaced_only_on_demand(result, tmp_path):
    folder = tmp_path / "sums"
    write_study(result, folder)
    with pytest.raises(RunError, match=r"holds a study.*--overwrite"):
        write_study(result, folder)
    (folder / "table.csv").write_text("old", encoding="utf-8")
    write_study(result, folder, overwrite=True)
    assert (folder / "table.csv").read_text(encoding="utf-8").startswith("sum,value")


def test_a_users_folder_is_never_replaced(result, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    write_study(result, folder)  # empty: nothing to lose
    other = tmp_path / "photos"
    other.mkdir()
    (other / "1.jpg").write_bytes(b"1")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="holds no study, so it is never overwritten"):
            write_study(result, other, overwrite=overwrite)
    assert [p.name for p in other.iterdir()] == ["1.jpg"]


def test_files_and_links_in_the_way(result, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for place in ("file", "file/below"):
        with pytest.raises(RunError, match="is a file"):
            write_study(result, tmp_path / place)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(RunError, match="is a link"):
        write_study(result, tmp_path / "link", overwrite=True)


def test_an_unknown_study(tmp_path):
    with pytest.raises(OptionError, match=r"no study 'imbalence'\. Did you mean imbalance\?"):
        run_study("imbalence", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_refused_before_anything_is_run(tmp_path, monkeypatch):
    info = STUDIES["imbalance"]
    monkeypatch.setitem(STUDIES, "slow", type(info)("no.such.module:run", "x", 999))
    (tmp_path / "note").write_text("x", encoding="utf-8")
    with pytest.raises(RunError, match="holds no study"):
        run_study("slow", tmp_path)


def test_the_names_cost_no_torch():
    program = "import sys, longarc.studies.registry; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
