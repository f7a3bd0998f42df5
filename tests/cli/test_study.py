"""``longarc study``: the list, a study in a process of its own, and what is refused."""

from __future__ import annotations

import json

import pytest

from longarc.studies.registry import STUDIES, StudyInfo

ONE_FILE = """
from longarc.studies.study import Finding, StudyResult

SAID = ("It is flat.", "0 of 1 claims hold: it is round.", "It depends on where one looks.")

def flat(quick: bool = False):
    finding = Finding("The earth is flat [bold].", "flat", "round", holds=False, how="Looked.")
    table = [{"body": "earth", "km": 6371.0}]
    return StudyResult("The earth", ["A claim."], [finding], table, [], "folklore", SAID)
"""


@pytest.fixture
def flat(tmp_path, monkeypatch):
    """A study whose one claim does not hold: one file, one line in the registry."""
    (tmp_path / "flat_earth.py").write_text(ONE_FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STUDIES, "flat-earth", StudyInfo("flat_earth:flat", "is it flat?", 1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list(longarc):
    status, out, _ = longarc("study", "list")
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(STUDIES)
    assert "imbalance  confirmed: 18 of 18 claims hold" in lines
    for info in STUDIES.values():
        assert f"  claim   {info.claim}" in lines
        assert f"  source  {info.source}" in lines
    status, out, _ = longarc("study", "list", "--json")
    assert status == 0
    said = json.loads(out)
    assert said.keys() == STUDIES.keys()
    assert said["rnn"]["verdict"] == "depends"
    assert (said["rnn"]["holding"], said["rnn"]["claims"]) == (25, 37)
    assert "AMD EPYC" in said["rnn"]["run"]["machine"]


def test_a_study_without_a_full_run_is_listed_without_a_verdict(longarc, flat):
    status, out, _ = longarc("study", "list")
    assert status == 0
    assert "flat-earth  no full run kept" in out.splitlines()
    status, out, _ = longarc("study", "list", "--json")
    assert json.loads(out)["flat-earth"]["verdict"] is None


def test_a_study_in_a_process_of_its_own(start, tmp_path):
    process = start("study", "imbalance", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    saved = json.loads((tmp_path / "studies/imbalance/study.json").read_text(encoding="utf-8"))
    assert out.count("✓ holds") == len(saved["findings"])
    assert "page     studies/imbalance/study.html" in out
    for row in saved["table"]:
        assert row["loss"] in out
    assert "…" not in out  # nothing of the table is cut


def test_a_claim_that_does_not_hold_is_a_finding(longarc, flat):
    status, out, err = longarc("study", "flat-earth")
    assert (status, err) == (0, "")
    assert "✗ does not hold: The earth is flat [bold]." in out
    assert "expected flat, measured round" in out
    assert "0 of 1 claims hold." in out
    assert "It depends on where one looks." in out
    assert "6,371" in out
    assert (flat / "studies/flat-earth/study.html").is_file()


def test_a_quick_run_says_what_it_is_worth(longarc, flat):
    for words in ((), ("--quick", "--overwrite")):
        status, out, _ = longarc("study", "flat-earth", *words)
        page = (flat / "studies/flat-earth/study.html").read_text(encoding="utf-8")
        assert status == 0
        assert ("say nothing" in out) == ("say nothing" in page) == bool(words)


def test_json_and_out(longarc, flat):
    status, out, _ = longarc("study", "flat-earth", "--out", flat / "here", "--json")
    assert status == 0
    said = json.loads(out)
    kept = json.loads((flat / "here" / "study.json").read_text(encoding="utf-8"))
    assert kept["run"]["quick"] is False
    assert {"machine", "cores", "seconds", "longarc", "torch", "date"} <= kept["run"].keys()
    assert said["path"] == str(flat / "here" / "study.html")
    assert [finding["holds"] for finding in said["findings"]] == [False]


def test_what_is_refused(longarc, flat):
    status, out, err = longarc("study", "imbalanse")
    assert (status, out) == (1, "")
    assert "no study 'imbalanse'. Did you mean imbalance?" in err
    assert longarc("study", "flat-earth")[0] == 0
    status, _, err = longarc("study", "flat-earth")
    assert status == 1
    assert "--overwrite" in err
    assert longarc("study", "flat-earth", "--overwrite")[0] == 0
    assert longarc("study")[0] == 2
