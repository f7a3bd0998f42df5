import io
import json
import re

import pytest
from rich.console import Console

from longarc.report.terminal import print_metrics


def printed(metrics: dict, width: int = 80, color: bool = False) -> str:
    file = io.StringIO()
    system = "truecolor" if color else None
    print_metrics(
        metrics, Console(file=file, width=width, color_system=system, force_terminal=color)
    )
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_and_nothing_is_cut(run_folder, multi_label_run, width):
    for folder in (run_folder, multi_label_run):
        metrics = json.loads((folder / "metrics.json").read_text())
        text = printed(metrics, width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        for split in ("test", "validation"):
            f1 = metrics[split]["model"]["macro_f1"]
            assert f"{f1['value']:.3f}" in text
            assert f"{f1['low']:.3f}–{f1['high']:.3f}".replace("0.", ".") in text
        assert text.index("test, ") < text.index("validation, ")
        assert "The model’s macro-F1" in text


def test_perfect_figures_fit_too():
    one = {"value": 1.0, "low": 1.0, "high": 1.0}
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "recall_tail", "calibration_error")
    model = {"n": 5, **dict.fromkeys(keys, one)}
    text = printed({"test": {"model": model, "baselines": {"tfidf-svm": model}}})
    assert text.count("1–1") == 10
    assert "Calibration" in text


def test_the_best_is_bold_and_the_other_is_not():
    def system(value):
        return {"n": 5, "accuracy": {"value": value, "low": value, "high": value}}

    text = printed(
        {"test": {"model": system(0.5), "baselines": {"tfidf-svm": system(0.75)}}}, color=True
    )
    assert re.search(r"\x1b\[1m *0\.750", text)
    assert not re.search(r"\x1b\[1m *0\.500", text)


def test_names_are_not_read_as_rich_markup():
    model = {"n": 5, "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    text = printed({"test": {"model": model, "baselines": {"[red]odd[/red]": model}}})
    assert "[red]odd[/red]" in text


def test_without_any_split_nothing_is_printed():
    assert printed({"seconds": {"training": 3.0}}) == ""
