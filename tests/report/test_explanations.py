"""The page of explanations: its waterfall closes, its texts are escaped."""

from __future__ import annotations

from itertools import pairwise

import pytest

from longarc.errors import OptionError
from longarc.report.explanations import CLASSES, bars, write_explanations


@pytest.fixture
def entry():
    found = {
        "text": "<script>alert(1)</script>", "name": "logit of <i>x</i>", "initial": -0.5,
        "final": 1.25, "contributions": 1.5, "decay": -0.1, "elsewhere": 0.0, "afterwards": 0.3,
        "residual": 0.05, "relative_residual": 0.01,
        "supporting": [{"document": 0, "label": "<i>", "value": 2.0, "text": "a & b"}],
        "opposing": [{"document": 1, "label": None, "value": -0.5, "text": None}],
    }  # fmt: skip
    return found | {"by_class": {f"class {i}": (-1.0) ** i * i for i in range(10)}}


def test_each_bar_begins_where_the_one_before_ended(entry):
    entry["by_class"] = {f"class {i}": 0.15 for i in range(10)}
    found = bars(entry)
    assert found[0]["to"] == entry["initial"]
    for before, after in pairwise(found[:-1]):
        assert after["from"] == before["to"]
    assert found[-2]["to"] == pytest.approx(found[-1]["to"])
    assert found[-1]["to"] == entry["final"]
    assert len(found) == 2 + CLASSES + 1 + 3
    assert "4 other classes" in [bar["name"] for bar in found]


def test_every_text_is_escaped(entry, tmp_path):
    path = write_explanations(tmp_path / "e.html", [entry, entry], title="T <u>")
    page = path.read_text()
    for raw in ("<script", "<i>", "<u>"):
        assert raw not in page
    assert "a &amp; b" in page
    assert "document 1" in page


def test_what_came_after_the_training_is_no_documents(entry, tmp_path):
    """A hybrid's linear classifier learned from the documents, too, and is not divided."""
    entry |= {"supporting": [], "opposing": []}
    assert "after the training" in [bar["name"] for bar in bars(entry)]
    page = write_explanations(tmp_path / "e.html", [entry], title="T").read_text()
    assert "+0.300 came after the training" in page
    assert "No document moved the encoder" in page
    page = write_explanations(
        tmp_path / "e.html", [entry | {"afterwards": 0.0}], title="T"
    ).read_text()
    assert "after the training," not in page
    assert "No document moved it" in page


def test_another_kind_of_file_is_refused(entry, tmp_path):
    with pytest.raises(OptionError, match=r"e\.html"):
        write_explanations(tmp_path / "e.pdf", [entry], title="T")
