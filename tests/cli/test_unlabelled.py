"""Texts without labels beside the labelled ones, for the regularizers that need none."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

OPTIONS = (
    "--text", "body", "--label", "topic", "--device", "cpu", "--no-baseline", "--epochs", "1",
    "--batch-size", "8", "--learning-rate", "3e-3", "--precision", "fp32", "--patience", "0",
    "--head-start", "scratch",
)  # fmt: skip


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory, worker):
    """60 texts, and one that is empty."""
    path = tmp_path_factory.mktemp("more") / "more.csv"
    texts, _ = worker.make_table(60, seed=5)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["body"], *([f"{text} more"] for text in texts), [""]])
    return path


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_vat_learns_from_them(tickets, tiny_model, unlabelled, tmp_path, longarc):
    found = {}
    for name, more in (("without", ()), ("with", ("--unlabelled", unlabelled))):
        out = tmp_path / name
        status, said, _ = longarc(
            "train", tickets, *OPTIONS, "--model", tiny_model, "--regularizers", "vat", *more,
            "--out", out,
        )  # fmt: skip
        assert status == 0
        (start,) = (record for record in log_of(out) if record["event"] == "start")
        found[name] = start["steps"], load_file(out / "model" / "model.safetensors")
        assert ("60 texts without a label, besides 1 that is empty" in said) == bool(more)
    assert found["without"][0] == 11  # 84 documents
    assert found["with"][0] == 18  # 84 + 60
    one, other = (weights for _, weights in found.values())
    assert not all(torch.equal(one[name], other[name]) for name in one)
    config = (tmp_path / "with" / "config.yaml").read_text()
    assert "more.csv" in config
    assert "more.csv" not in (tmp_path / "with" / "model" / "README.md").read_text()


def test_a_rate_is_searched_with_them(tickets, tiny_model, unlabelled, longarc):
    status, said, _ = longarc(
        "lr", tickets, *OPTIONS[:6], "--batch-size", "8", "--epochs", "1",
        "--model", tiny_model, "--regularizers", "vat", "--unlabelled", unlabelled,
        "--candidates", "1", "--json",
    )  # fmt: skip
    assert status == 0
    found = json.loads(said)
    assert found["run_steps"] == 18
    assert found["stability"]["ignorant"] is not None


def test_several_labels_too(tmp_path, tiny_model, unlabelled, tickets, longarc):
    with tickets.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = tmp_path / "several.jsonl"
    table.write_text(
        "".join(
            json.dumps({"body": row["body"], "topic": [row["topic"]][: int(i % 5 > 0)]}) + "\n"
            for i, row in enumerate(rows)
        ),
        encoding="utf-8",
    )
    out = tmp_path / "run"
    status, _, told = longarc(
        "train", table, *OPTIONS, "--model", tiny_model, "--regularizers", "vat, r-drop",
        "--unlabelled", unlabelled, "--out", out,
    )  # fmt: skip
    assert status == 0, told
    losses = [record["loss"] for record in log_of(out) if record["event"] == "train"]
    assert losses
    assert all(0 < loss < 2 for loss in losses)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), ["--regularizers vat or r-drop", "longarc pretrain"]),
        (("--regularizers", "fgm"), ["--regularizers vat or r-drop"]),
        (("--regularizers", "vat", "--sampler", "square-root"), ["--sampler square-root"]),
        (("--regularizers", "vat", "--record-path"), ["--record-path"]),
    ],
)
def test_what_does_not_go_with_them_is_refused(tickets, unlabelled, tmp_path, longarc, more, words):
    out = tmp_path / "run"
    status, _, told = longarc("train", tickets, "--unlabelled", unlabelled, *more, "--out", out)
    assert status == 1
    assert all(word in " ".join(told.split()) for word in words)
    assert not out.exists()


def test_an_overwritten_run_does_not_take_them_along(tickets, unlabelled, tmp_path, longarc):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text("data: x.csv\nout: run\n")
    shutil.copy(unlabelled, out / "more.csv")
    status, _, told = longarc(
        "train", tickets, "--regularizers", "vat", "--unlabelled", out / "more.csv", "--overwrite",
        "--out", out,
    )  # fmt: skip
    assert status == 1
    assert "which --overwrite deletes" in " ".join(told.split())
    assert (out / "more.csv").is_file()
