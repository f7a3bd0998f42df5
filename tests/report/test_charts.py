import re
from xml.etree import ElementTree

import altair as alt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.report import charts, recall_chart, training_charts
from longarc.report.drawing import data_of, panel
from longarc.report.measures import ACCURACY, MACRO_F1, Figure
from longarc.report.step_size_charts import CAPTIONS, step_size_curves

HOSTILE = '</text></svg><script>alert(1)</script>&"\x00\ud800'


def texts(svg: str) -> list[str]:
    """What the drawing says; parsing it also shows that it is well formed."""
    root = ElementTree.fromstring(str(svg))
    assert not [e for e in root.iter() if e.tag.endswith("script")]
    return [e.text or "" for e in root.iter() if e.tag.endswith("}text")]


def class_row(label, count, support, recall):
    group = "head" if count >= 100 else "mid" if count >= 20 else "tail"
    return {
        "label": label, "group": group, "train_count": count, "support": support, "recall": recall,
    }  # fmt: skip


def test_names_from_the_data_are_text_in_every_chart():
    by_class = recall_chart.recall_by_count([class_row(HOSTILE, 30, 9, 0.5)])
    by_run = charts.intervals_of_runs(ACCURACY, {HOSTILE: Figure(0.5, 0.4, 0.6)}, set())
    by_system = charts.intervals([(ACCURACY, {HOSTILE: Figure(0.5, 0.4, 0.6)})])
    for drawn in (by_class, by_run, by_system):
        for svg in (drawn.wide, drawn.narrow):
            assert any("</text></svg><s" in text for text in texts(svg))


def test_names_cover_neither_each_other_nor_a_mark():
    rows = [
        class_row(f"class {i}", 3 + 7 * i % 400, 1 + i % 9, (i * 37 % 101) / 100)
        for i in range(150)
    ]
    values = recall_chart._marks(rows)
    placed = recall_chart._place_names(values, (800, 340), 500, most=18)
    assert 5 < len(placed) <= 18
    drawn = recall_chart.recall_by_count(rows)
    names = [t for t in texts(drawn.wide) if t.startswith("class ")]
    assert sorted(names) == sorted(v["label"] for v, _ in placed)


def test_classes_at_one_place_share_a_mark_that_says_how_many():
    rows = [class_row(f"rare {i}", 2, 1, 0.0) for i in range(40)] + [class_row("big", 500, 90, 0.9)]
    marks = {m["label"]: m for m in recall_chart._marks(rows)}
    assert marks["40 classes"]["support"] == 40
    assert marks["big"]["recall"] == pytest.approx(0.9)
    assert marks["big"]["count"] == pytest.approx(500)
    assert "40 classes" in texts(recall_chart.recall_by_count(rows).wide)


def test_classes_without_documents_are_not_drawn():
    assert (
        recall_chart.recall_by_count([class_row("a", 5, 0, 0.0), class_row("b", 5, 3, None)])
        is None
    )


def test_ten_thousand_classes_make_few_marks_and_lose_no_document():
    rows = [class_row(f"c{i}", 1 + i * i // 7000, 1 + i % 50, (i % 50) / 50) for i in range(10_000)]
    marks = recall_chart._marks(rows)
    assert len(marks) <= recall_chart.MAX_MARKS
    assert sum(m["support"] for m in marks) == sum(r["support"] for r in rows)


def test_calibration_error_is_not_among_the_dots():
    from longarc.report.measures import CALIBRATION

    drawn = charts.intervals(
        [(m, {"Model": Figure(0.5, 0.4, 0.6)}) for m in (ACCURACY, MACRO_F1, CALIBRATION)]
    )
    assert {"Accuracy", "Macro-F1"} <= set(texts(drawn.wide))
    assert "Calibration error" not in texts(drawn.wide)
    assert charts.intervals([(CALIBRATION, {"Model": Figure(0.1, None, None)})]) is None


def test_reliability_leaves_empty_bins_out():
    empty = {"low": 0.0, "high": 0.5, "n": 0, "confidence": None, "accuracy": None}
    full = {"low": 0.5, "high": 1.0, "n": 7, "confidence": 0.8, "accuracy": 0.6}
    assert charts.reliability([empty]) == []
    accuracy, counts = charts.reliability([empty, full])
    assert "0.60 (7 predictions)" in accuracy.description
    assert "count" in texts(counts.wide)


def test_training_curves_take_the_later_record_of_a_step():
    log = [
        {"event": "train", "step": 1, "loss": 9.0, "learning_rate": 1e-4},
        {"event": "train", "step": 2, "loss": 8.0, "learning_rate": 1e-4},
        {"event": "start", "resumed_from": 1},
        {"event": "train", "step": 2, "loss": 1.0, "learning_rate": 1e-4},
        {"event": "train", "step": 3, "loss": float("nan"), "learning_rate": 1e-4},
        {"event": "end", "step": 3, "best_step": 2},
    ]
    loss, rate = training_charts.training_curves(log)
    assert loss.description == "Loss by training step: training from 9 to 1."
    assert rate.title == "Learning rate"
    assert training_charts.training_curves([{"event": "start"}]) == []


def test_step_size_curves_draw_what_the_monitors_wrote():
    ratios = {"head": 1e-4, "layer 0": 5e-4, "embeddings": 3e-5}
    log = [
        {"event": "train", "step": 1, "loss": 2.0, "learning_rate": 0.0},  # 2 / 0 is left out
        {"event": "train", "step": 2, "loss": 2.0, "learning_rate": 1e-4},
        {"event": "train", "step": 9, "loss": 1.0, "learning_rate": 1e-5},
        {"event": "update", "step": 1, "update_ratio": 0.0, "implicit_share": 0.0},
        {"event": "update", "step": 2, "update_ratio": 2e-4, "update_ratios": ratios,
         "implicit_penalty": 0.1, "implicit_share": 0.05},
        {"event": "sharpness", "step": 2, "critical_sharpness": 3e3, "learning_rate": 1e-4},
        {"event": "sharpness", "step": 5, "critical_sharpness": None},
        {"event": "monitor", "step": 9, "name": "sharpness", "share": 0.01},
    ]  # fmt: skip
    sharpness, sizes, penalty = step_size_curves(log)
    assert sharpness.description == (
        "Sharpness by training step: 2 / learning rate from 2e+04 to 2e+05; "
        "critical sharpness from 3e+03 to 3e+03."
    )
    assert "head from 0.0001 to 0.0001; embeddings from 3e-05" in sizes.description
    assert "share from 0.05 to 0.05" in penalty.description
    assert {"1e+3", "1e+6"} <= set(texts(sharpness.wide))
    assert step_size_curves([r for r in log if r["event"] == "train"]) == []
    short = step_size_curves([r for r in log if r["event"] != "sharpness"])
    assert [panel.title for panel in short] == list(CAPTIONS)[1:]
    assert [panel.title for panel in (sharpness, sizes, penalty)] == list(CAPTIONS)


def test_a_long_label_may_be_cut_anywhere():
    """Between the halves of an emoji too, as UTF-16 has it."""
    drawn = 0
    for before in range(8):
        text = "x" * before + "😀" * 40

        def make(width, text=text):
            y = alt.Y("name:N", axis=alt.Axis(labelLimit=130))
            return alt.Chart(data_of([{"name": text, "n": 1}])).mark_bar().encode(x="n:Q", y=y)

        drawn += len(panel("title", "told", make).narrow) > 0
    assert drawn == 8


@given(
    st.lists(st.tuples(st.integers(0, 9999), st.floats(0, 10)), max_size=2000), st.integers(1, 300)
)
@settings(max_examples=50, deadline=None)
def test_thinning_keeps_the_last_step_and_the_mean(points, most):
    thinned = training_charts.thin(points, most)
    assert len(thinned) <= most
    if points:
        assert thinned[-1][0] == points[-1][0]
        stretch = -(-len(points) // most)
        sizes = [len(points[i : i + stretch]) for i in range(0, len(points), stretch)]
        total = sum(size * value for size, (_, value) in zip(sizes, thinned, strict=True))
        assert total == pytest.approx(sum(v for _, v in points))


def test_lengths_mark_the_limit_and_the_bars_beyond_it():
    histogram = [
        {"low": low, "high": 2 * low, "count": i + 1} for i, low in enumerate([32, 64, 128, 256])
    ]
    drawn = training_charts.lengths(histogram, 128).wide
    assert "max_length 128" in texts(drawn)
    assert {"32", "512"} <= set(texts(drawn))
    assert len(re.findall("#0072B2", drawn)) == 2
    assert len(re.findall("#E69F00", drawn)) == 2
    unlimited = training_charts.lengths(histogram, None).wide
    assert "#E69F00" not in unlimited
    assert training_charts.lengths([], 128) is None


def test_many_length_bins_are_merged_and_lose_no_document():
    histogram = [{"low": 32 * i, "high": 32 * i + 32, "count": i} for i in range(1000)]
    drawn = training_charts.lengths(histogram, 512)
    assert drawn.description.startswith(f"{sum(range(1000)):,} documents")
    assert len(re.findall("#0072B2|#E69F00", drawn.wide)) <= training_charts.MAX_BINS


@pytest.mark.parametrize("low", [0.0, 0.5, 0.9, 0.985])
def test_no_two_ticks_read_alike(low):
    """However narrow the part in use is."""
    drawn = charts.intervals([(ACCURACY, {"Model": Figure(1.0, low, 1.0)})])
    for svg in (drawn.wide, drawn.narrow):
        ticks = [t for t in texts(svg) if re.fullmatch(r"[\d.]+", t)]
        assert len(ticks) >= 3
        assert len(set(ticks)) == len(ticks), ticks


def test_counts_have_whole_ticks():
    full = {"low": 0.5, "high": 1.0, "n": 2, "confidence": 0.8, "accuracy": 0.5}
    _, counted = charts.reliability([full])
    assert texts(counted.wide).count("2") == 1
