"""Predicting and evaluating tables with a finished run."""

from __future__ import annotations

import csv
import gzip
import json
import re

import pandas as pd
import pyarrow.parquet as pq
import pytest

import longarc as package


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_keep_their_order_and_columns(longarc, trained, tickets, tmp_path, suffix):
    out = tmp_path / f"predicted.{suffix}"
    status, printed, err = longarc("predict", trained, tickets, "--out", out, "--json")
    assert status == 0, err
    assert json.loads(printed) == {"rows": 120, "path": str(out)}
    if suffix == "parquet":
        rows = pq.read_table(out).to_pylist()
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    else:
        with out.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if suffix == "tsv" else ","))
    with tickets.open(encoding="utf-8", newline="") as file:
        given = list(csv.DictReader(file))
    assert [{k: r[k] for k in ("id", "body", "topic")} for r in rows] == given
    run = package.open_run(trained)
    chances = run.predict_proba([r["body"] for r in given])
    for row, p in zip(rows, chances, strict=True):
        assert row["prediction"] == run.labels.names[p.argmax()]
        assert float(row["confidence"]) == pytest.approx(p.max(), abs=1e-4)
        for name, value in zip(run.labels.names, p, strict=True):
            assert float(row[f"p({name})"]) == pytest.approx(value, abs=1e-4)


def test_a_table_larger_than_a_chunk_is_streamed_in_order(longarc, trained, tmp_path):
    rows = package.open_run(trained).predictor.batch_size * 64 + 7
    table = tmp_path / "many.csv.gz"
    with gzip.open(table, "wt", encoding="utf-8") as file:
        file.write("body\n" + "".join(f"pump {i}\n" for i in range(rows)))
    out = tmp_path / "out.csv"
    assert longarc("predict", trained, table, "--out", out, "--no-probabilities")[0] == 0
    with out.open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [r["body"] for r in found] == [f"pump {i}" for i in range(rows)]
    assert list(found[0]) == ["body", "prediction", "confidence"]


def test_empty_texts_are_told_of(longarc, trained, tmp_path):
    table = tmp_path / "inbox.csv"
    table.write_text('id,body\n1,pump leak\n2,\n3,"  "\n4,a refund\n')
    status, out, err = longarc("predict", trained, table, "--out", tmp_path / "p.csv", "--json")
    assert status == 0, err
    assert json.loads(out)["rows"] == 4
    assert "2 empty texts (rows 2, 3)" in err
    status, _, err = longarc("predict", trained, table, "--out", tmp_path / "p.csv")
    assert (status, "exists" in err) == (1, True)


def test_predict_refuses_what_it_would_destroy(longarc, trained, tickets, tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    status, _, err = longarc("predict", trained, tickets, "--out", out)
    assert (status, out.read_text()) == (1, "mine")
    assert "--overwrite" in err
    assert longarc("predict", trained, tickets, "--out", out, "--overwrite")[0] == 0
    status, _, err = longarc("predict", trained, out, "--out", tmp_path / "again.csv")
    assert status == 1
    assert "already has a column 'prediction'" in err
    status, _, err = longarc("predict", trained, tickets, "--out", tmp_path / "out.xlsx")
    assert status == 1
    assert ".parquet" in err


def test_a_row_that_breaks_half_way_leaves_no_output(longarc, trained, tmp_path):
    table = tmp_path / "ragged.csv"
    table.write_text("body,id\n" + "pump,1\n" * 5000 + "pump,1,2\n")
    status, _, err = longarc("predict", trained, table, "--out", tmp_path / "out.csv")
    assert status == 1
    assert "5002" in err
    assert [p.name for p in tmp_path.iterdir()] == ["ragged.csv"]


def test_evaluate_counts_labels_never_seen(longarc, trained, tickets, tmp_path):
    table = tmp_path / "newer.csv"
    lines = tickets.read_text().splitlines()[:31]
    table.write_text("\n".join([*lines, "1000,a comet,astronomy", "1001,a star,astronomy"]) + "\n")
    status, out, _ = longarc("evaluate", trained, table, "--json")
    figures = json.loads(out)
    assert status == 0
    assert figures["n"] == 32
    assert figures["unseen_labels"] == {"astronomy": 2}
    status, out, _ = longarc("evaluate", trained, table)
    assert status == 0
    assert "astronomy" in out
    one = lines[1].rsplit(",", 1)[1]
    table.write_text("\n".join([lines[0], *(r for r in lines[1:] if r.endswith(one))]) + "\n")
    status, out, _ = longarc("evaluate", trained, table)
    assert status == 0
    assert "classes do not occur in it" in " ".join(out.split())


def test_a_table_without_a_known_label_has_no_figures(longarc, trained, tickets, tmp_path):
    table = tmp_path / "loud.csv"
    head, *rows = tickets.read_text().splitlines()[:31]
    table.write_text("\n".join([head, *(row.upper() for row in rows)]) + "\n")
    status, out, err = longarc("evaluate", trained, table)
    assert (status, out) == (1, "")
    there, known = re.search(r"there '(\w+)', in training '(\w+)'", " ".join(err.split())).groups()
    assert there == known.upper()


def test_true_and_3_0_are_the_same_labels_in_csv(tickets, tiny_model, tmp_path):
    """pandas names them so there; a table of them is measured, and one to test on is taken."""
    frame = pd.read_csv(tickets)
    for name, labels in (("bool", frame["id"] % 3 > 0), ("float", frame["id"] % 2 + 1.0)):
        frame[name] = labels
        frame[80:].to_csv(tmp_path / f"{name}.csv", index=False)
        run = package.fit(
            frame[:80], text="body", label=name, test=str(tmp_path / f"{name}.csv"), freeze=True,
            model=str(tiny_model), out=tmp_path / name, baseline=False, verbose=False,
        )  # fmt: skip
        figures = run.evaluate(tmp_path / f"{name}.csv")
        assert figures == run.evaluate(frame[80:]) == run.metrics["test"]["model"]
        assert figures["unseen_labels"] == {}
        assert figures["accuracy"]["value"] > 0.3


def test_evaluating_the_test_split_again_gives_the_runs_own_figures(trained, tickets, tmp_path):
    run = package.open_run(trained)
    kept = pq.read_table(trained / "predictions.parquet").to_pylist()
    rows = [r for r in kept if r["split"] == "test"]
    figures = run.evaluate(
        {"body": [r["excerpt"] for r in rows], "topic": [r["label"] for r in rows]}
    )
    assert figures == run.metrics["test"]["model"]


def test_reports_of_several_runs(longarc, trained, tickets, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert longarc("report", trained)[0] == 0
    other = tmp_path / "probe"
    assert longarc(
        "train", tickets, "--text", "body", "--label", "topic", "--model", tiny_model, "--freeze",
        "--out", other, "--no-baseline",
    )[0] == 0  # fmt: skip
    status, out, err = longarc("report", trained, other, "--json")
    assert status == 0, err
    page = (tmp_path / json.loads(out)["path"]).read_text()
    assert "freeze" in page


def test_a_missing_column_is_named_not_guessed(longarc, trained, tickets, tmp_path):
    table = tmp_path / "renamed.csv"
    table.write_text(tickets.read_text().replace("id,body,topic", "id,bodies,subject"))
    status, _, err = longarc("predict", trained, table, "--out", tmp_path / "out.csv")
    assert status == 1
    assert "no column 'body'" in err
    assert "bodies" in err
    assert "--text" in err
    status, _, err = longarc("evaluate", trained, table, "--text", "bodies")
    assert status == 1
    assert "no column 'topic'" in err
    assert longarc("evaluate", trained, table, "--text", "bodies", "--label", "subject")[0] == 0


def test_cells_are_read_as_in_training(trained, tmp_path):
    run = package.open_run(trained)
    empty = run.predict_proba([""])
    table = {"body": [None, "", float("nan")]}
    out = run.predict_table(table, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for row in rows:
        assert row["confidence"] == pytest.approx(empty.max(), abs=1e-4)
    with pytest.raises(package.DataError, match="row 2"):
        run.predict_table({"body": ["a", ["a", "list"]]}, tmp_path / "list.jsonl")
    with pytest.raises(package.OptionError, match=r"\[text\]"):
        run.predict("one string")
