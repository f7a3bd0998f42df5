"""The page of a comparison under one budget: front, sentence, table, chart, and what is escaped."""

from __future__ import annotations

import copy
import csv
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from longarc.report.page import render
from longarc.report.trade_off import (
    chart_of,
    context_of,
    pareto_front,
    print_trade_off,
    sentence_of,
    start_note,
    table_of,
    write_trade_off,
)
from longarc.report.trade_off_chart import LARGEST, legend_values, ticks

SCRIPT = "<script>alert(1)</script>"


def candidate(name: str, quality: float, speed: float, memory: float, **more) -> dict:
    return {
        "name": name, "options": {"attention": name}, "why": None,
        "macro_f1": {"value": quality, "low": quality - 0.05, "high": quality + 0.04},
        "by_seed": [quality],
        "accuracy": {"value": quality, "low": quality - 0.05, "high": quality + 0.04},
        "against_best": None, "training_documents_per_second": 3.5,
        "prediction_documents_per_second": {
            "median": speed, "min": 0.9 * speed, "max": 1.1 * speed, "n": 5
        },
        "training_peak_mib": memory, "prediction_peak_mib": memory / 2, "parameters": 22_713_216,
        "steps": 20, "minutes": 1.25, "runs": [], "front": False, **more,
    }  # fmt: skip


@pytest.fixture
def found() -> dict:
    less = {"value": -0.1, "low": -0.17, "high": -0.02}
    rows = [
        candidate("exact", 0.8, 5.0, 1000.0, front=True),
        candidate("linear", 0.7, 20.0, 500.0, front=True, against_best=less),
        candidate("slow", 0.6, 4.0, 250.0, against_best=less),
        {**candidate("broken", 0, 1, 1), "why": "no memory", "macro_f1": None, "accuracy": None,
         "prediction_documents_per_second": None, "training_peak_mib": None},
    ]  # fmt: skip
    return {
        "data": "tickets.csv", "documents": {"train": 100, "validation": 20, "test": 30},
        "classes": 3, "multi_label": False, "split": "test",
        "budget": {"kind": "examples", "amount": 320}, "seeds": [0],
        "speed": {"documents": 30, "repeats": 5},
        "machine": {"machine": "P", "cores": 2, "memory_gib": 8.0, "system": "Linux", "load": 1.0,
                    "load_after": 2.0, "device": "cpu", "threads": 1, "torch": "2",
                    "transformers": "5", "longarc": "0"},
        "baseline": {"name": "TF-IDF + linear SVM", "value": 0.75, "low": 0.7, "high": 0.8},
        "candidates": rows, "sentence": "",
    }  # fmt: skip


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.tuples(st.integers(0, 6), st.integers(0, 6)),
        min_size=1,
    )
)
def test_the_front_is_what_a_sweep_from_the_fastest_on_finds(points):
    """Independently: by falling speed, a point is on it if its quality is more than all before."""
    expected, best = set(), -1.0
    for speed in sorted({s for s, _ in points.values()}, reverse=True):
        top = max(q for s, q in points.values() if s == speed)
        if top > best:
            expected |= {n for n, (s, q) in points.items() if (s, q) == (speed, top)}
            best = top
    assert pareto_front(points) == expected


def test_a_circles_area_is_its_memory(found):
    """Radii as the SVG has them; the largest is of the size that the legend is drawn to."""
    svg = str(chart_of(found).wide)
    radii = sorted({float(r) for r in re.findall(r'd="M([\d.]+),0A', svg)}, reverse=True)
    assert math.pi * radii[0] ** 2 == pytest.approx(LARGEST, rel=0.02)
    areas = [math.pi * r**2 / LARGEST * 1000 for r in radii]
    for memory in (1000, 500, 250, *legend_values(1000)):
        assert any(area == pytest.approx(memory, rel=0.02) for area in areas), memory


def test_the_drawing_names_all_and_joins_the_front(found):
    panel = chart_of(found)
    for name in ("exact", "linear", "slow", "TF-IDF + linear SVM 0.750"):
        assert f">{name}<" in str(panel.wide)
        assert f">{name}<" in str(panel.narrow)
    assert "broken" not in str(panel.wide)
    assert "exact: macro-F1 0.800, 5 documents a second, 1,000 MiB, on the front" in (
        panel.description
    )
    for svg, limit in ((panel.wide, 880), (panel.narrow, 360)):
        assert int(re.search(r'width="(\d+)"', str(svg))[1]) <= limit


def test_without_memory_or_spread_it_is_drawn_all_the_same(found):
    for row in found["candidates"]:
        row["training_peak_mib"] = None
    found["baseline"] = None
    assert ">linear<" in str(chart_of(found).wide)
    for row in found["candidates"]:
        row["prediction_documents_per_second"] = None
    assert chart_of(found) is None


def test_a_figure_may_have_no_interval(found, tmp_path, capsys):
    """No resample of the test split has a labelled document."""
    found["candidates"][1]["macro_f1"] |= {"low": None, "high": None}
    found["candidates"][1]["against_best"] = None
    found["sentence"] = sentence_of(found)
    print_trade_off(found, Console(width=100))
    assert "0.700 (–)" in capsys.readouterr().out
    assert "0.700" in write_trade_off(found, tmp_path).read_text(encoding="utf-8")


def test_the_sentence_says_what_is_settled(found):
    assert sentence_of(found) == (
        "exact has the best macro-F1, 0.800. The fastest on the front, linear, predicts 4.0 times "
        "as many documents a second, with 0.100 less macro-F1 (95 % interval of the difference "
        "−0.170 to −0.020)."
    )
    open_question = copy.deepcopy(found)
    open_question["candidates"][1]["against_best"]["high"] = 0.01
    assert "which these documents do not settle" in sentence_of(open_question)
    untimed = copy.deepcopy(found)  # a better one failed to be timed
    untimed["candidates"][0]["against_best"] = {"value": -0.1, "low": -0.15, "high": -0.05}
    untimed["candidates"][1]["against_best"]["value"] = -0.2
    said = sentence_of(untimed)
    assert said.startswith("Of those that were timed, exact has the best macro-F1, 0.800.")
    assert said.endswith("with 0.100 less macro-F1.")
    found["candidates"][1]["front"] = False
    for row in found["candidates"][1:3]:
        row["against_best"] = {"value": -0.1, "low": -0.2, "high": -0.02}
    assert sentence_of(found).endswith("predicts fastest (5 documents a second).")
    found["candidates"][1]["against_best"]["high"] = 0.0
    assert sentence_of(found).endswith("these documents do not tell it from linear.")


def test_the_folder_has_page_chart_and_table(found, tmp_path: Path):
    found["data"] = f"{SCRIPT.replace('/', '')}.csv"
    found["candidates"][1]["name"] = "a & b <i>"
    found["candidates"][3]["why"] = f"broken by {SCRIPT}"
    found["candidates"][0]["runs"] = ["candidates/exact #1/run"]
    (tmp_path / "candidates/exact #1/run").mkdir(parents=True)
    (tmp_path / "candidates/exact #1/run/report.html").touch()
    page = write_trade_off(found, tmp_path).read_text(encoding="utf-8")
    assert {p.name for p in tmp_path.iterdir()} == {
        "candidates", "chart.png", "chart.svg", "compare.html", "table.csv"
    }  # fmt: skip
    assert "<script" not in page
    assert "<i>" not in page
    assert "broken by &lt;script&gt;" in page
    assert "a &amp; b &lt;i&gt;" in page
    assert 'href="candidates/exact%20%231/run/report.html"' in page
    assert "320 training examples for each candidate" in page
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "chart.svg").read_text(encoding="utf-8").startswith("<svg")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == ["exact", "a & b <i>", "slow", "broken"]
    assert float(rows[1]["macro_f1_low"]) == pytest.approx(0.65)
    assert rows[3]["macro_f1"] == ""
    assert rows[3]["failed"] == f"broken by {SCRIPT}"
    assert list(rows[0]) == list(table_of(found)[0])


def test_a_baseline_that_failed_is_a_row_that_says_why(found, tmp_path, capsys):
    found["baseline"] = {"name": "TF-IDF + linear SVM", "why": "no <i>words</i>"}
    page = render("trade_off.html.j2", context_of(found, tmp_path))
    assert "<bdi>TF-IDF + linear SVM</bdi></strong>: no &lt;i&gt;words&lt;/i&gt;" in page
    assert page.count("TF-IDF") == 1
    print_trade_off(found, Console(width=100))
    assert "TF-IDF + linear SVM failed: no <i>words</i>" in capsys.readouterr().out


def test_the_page_says_how_the_turns_were_taken(found, tmp_path):
    page = render("trade_off.html.j2", context_of(found, tmp_path))
    assert "in a process that stayed alive" in page
    found["speed"]["alone"] = True
    page = render("trade_off.html.j2", context_of(found, tmp_path))
    assert "stayed alive" not in page
    assert "each turn had a process of its own" in page


def test_a_training_that_was_discarded_is_marked(found, tmp_path, capsys):
    page = render("trade_off.html.j2", context_of(found, tmp_path))
    assert "was kept" not in page
    found["candidates"][1]["start_kept"] = 1
    page = render("trade_off.html.j2", context_of(found, tmp_path))
    assert "<bdi>linear</bdi> *<" in page
    assert "<bdi>exact</bdi> *" not in page
    assert "* No epoch of its training beat the start on the validation split" in page
    print_trade_off(found, Console(width=100))
    printed = capsys.readouterr().out
    assert re.search(r"^ *linear \*  ", printed, re.MULTILINE)
    assert "* No epoch of its training" in printed
    assert [row["start_kept"] for row in table_of(found)] == [0, 1, 0, 0]
    found["seeds"] = [0, 1, 2]
    assert "(linear with 1 of 3 seeds)" in str(start_note(found))


def test_the_terminals_table_fits(found, capsys):
    print_trade_off(found, Console(width=100))
    printed = capsys.readouterr().out
    assert "broken failed: no memory" in printed
    assert "front" in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize("most", [4, 6, 10])
@given(low=st.floats(1e-3, 1e3), factor=st.floats(1.3, 1e4))
def test_there_are_ticks_and_not_too_many(most, low, factor):
    found = ticks(low, low * factor, most)
    assert found == sorted(found)
    assert all(low <= tick <= low * factor for tick in found)
    assert len(found) <= 2 * most
    if factor >= 10:
        assert len(found) >= 1
