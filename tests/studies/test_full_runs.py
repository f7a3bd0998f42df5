"""The full runs kept in docs/studies/: what the list and the gallery say is what they found."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from longarc.studies.full_runs import KEPT, full_runs
from longarc.studies.registry import STUDIES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "studies"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_installed_digest_is_that_of_the_kept_runs(gallery):
    assert KEPT.read_text(encoding="utf-8") == gallery.digest_text(gallery.kept())
    assert len(full_runs()) >= 4


def test_the_gallery_is_written_from_the_kept_runs(gallery):
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert page == gallery.page(gallery.kept())
    for image in re.findall(r"\]\(([^)]+\.svg)\)", page):
        assert (FOLDER / image).is_file()


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_says_what_was_claimed_and_by_whom(name):
    info = STUDIES[name]
    assert len(info.claim) > 20
    assert not info.claim.endswith(".")
    assert info.source
    assert info.references


@pytest.mark.parametrize("name", full_runs())
def test_a_kept_run_is_a_full_one_with_three_sentences(name):
    study = json.loads((FOLDER / name / "study.json").read_text(encoding="utf-8"))
    assert study["run"]["quick"] is False
    assert study["run"]["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", study["run"]["date"])
    claimed, came_out, depends = study["conclusion"]
    held = sum(finding["holds"] for finding in study["findings"])
    assert came_out.startswith(f"{held} of {len(study['findings'])} claims hold: ")
    assert all(sentence.endswith(".") for sentence in (claimed, depends))
    assert "depends" in depends
