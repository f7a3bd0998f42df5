"""The demo through the command line. A file of its own: it takes minutes, beside other tests."""

from __future__ import annotations

import pytest

import longarc as package


@pytest.mark.real
def test_the_quick_demo(longarc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = longarc("demo", "--quick", "--out", "runs/demo", "--overwrite")
    assert status == 0, err
    assert "Try next" in out
    metrics = package.open_run("runs/demo").metrics["test"]
    assert metrics["model"]["accuracy"]["value"] > 0.6
    assert metrics["model"]["macro_f1"]["value"] > 0.4
    assert metrics["baselines"]["tfidf-svm"]["n"] == metrics["model"]["n"] > 100
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size < 3_000_000
