"""``longarc pretrain`` through the command line: real process, real table, a tiny encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from longarc.data.licenses import read_licenses
from longarc.data.table_writer import table_writer

QUICK = (
    "--text", "body", "--batch-size", "8", "--max-length", "24", "--held-out", "12", "--labelled",
    "40", "--evaluations", "1", "--precision", "fp32", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, tickets, tiny_model) -> Path:
    from longarc.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "adapted"
    words = ["pretrain", tickets, "--label", "topic", "--model", tiny_model, *QUICK, "--out", out]
    assert main([str(word) for word in words]) == 0
    return out


def test_the_folder_is_whole(adapted):
    assert {p.name for p in adapted.iterdir()} == {
        "config.yaml", "log.jsonl", "metrics.json", "model", "report.html",
    }  # fmt: skip
    config = yaml.safe_load((adapted / "config.yaml").read_text())
    assert (config["objective"], config["text"], config["precision"]) == ("simcse", "body", "fp32")
    assert len(config["provenance"]["data_sha256"]) == 64


def test_config_yaml_repeats_the_run_bit_for_bit(longarc, adapted, tmp_path):
    out = tmp_path / "again"
    status, printed, err = longarc(
        "pretrain", "--config", adapted / "config.yaml", "--out", out, "--json"
    )
    assert status == 0, err
    metrics = json.loads(printed)
    assert metrics["end"] == json.loads((adapted / "metrics.json").read_text())["end"]
    one, two = (load_file(run / "model" / "model.safetensors") for run in (adapted, out))
    assert all(bool((one[name] == two[name]).all()) for name in one)


def test_the_report_is_written_again(longarc, adapted, tmp_path):
    page = tmp_path / "page.html"
    status, printed, _ = longarc("report", adapted, "--out", page)
    assert (status, printed.strip()) == (0, str(page))
    assert page.read_text() == (adapted / "report.html").read_text()
    status, _, err = longarc("report", adapted, adapted, "--out", tmp_path / "both.html")
    assert status == 1
    assert "is a run of longarc pretrain" in err


def test_train_takes_the_encoder_and_overwrite_the_place(longarc, adapted, tickets, tmp_path):
    status, _, err = longarc(
        "train", tickets, "--text", "body", "--label", "topic", "--model", adapted / "model",
        "--freeze", "--no-baseline", "--device", "cpu", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, err
    status, _, err = longarc("train", tickets, "--model", adapted, "--out", tmp_path / "other")
    assert status == 1
    assert "name its model/" in err
    status, _, err = longarc("predict", adapted, tickets, "--out", tmp_path / "p.csv")
    assert status == 1
    assert "longarc train DATA --model" in err
    status, _, err = longarc("pretrain", tickets, *QUICK, "--out", adapted)
    assert status == 1
    assert "--overwrite" in err
    status, _, err = longarc("pretrain", "--resume", "--out", adapted)
    assert status == 1
    assert "complete" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--objective", "simcsf"), "one of simcse, simsiam, byol, mlm"),
        (("--ema-decay", "0.9"), "--ema-decay is for --objective byol"),
        (("--batchsize", "8"), "no option --batchsize. Did you mean --batch-size"),
        (("--batch-size", "many"), "Expected a whole number"),
    ],
)
def test_a_wrong_option_is_answered_before_torch_is_loaded(start, tickets, words, message):
    process = start("pretrain", tickets, *words, "--out", "nowhere")
    _, err = process.communicate(timeout=60)
    assert process.returncode in (1, 2)
    assert message in err
    assert not Path("nowhere").exists()


@pytest.mark.real
def test_minilm_on_licence_texts(longarc, tmp_path):
    """Thirty short texts and six steps: what is written opens, and has the codes it says."""
    examples = read_licenses("category", include_rules=False)
    rows = sorted(zip(examples.texts, examples.labels or [], strict=True), key=lambda r: len(r[0]))
    table = tmp_path / "licences.parquet"
    with table_writer(table) as write:
        write({"text": [r[0] for r in rows[200:230]], "label": [r[1] for r in rows[200:230]]})
    out = tmp_path / "run"
    status, printed, err = longarc(
        "pretrain", table, "--objective", "mlm", "--batch-size", "4", "--max-length", "32",
        "--held-out", "10", "--evaluations", "1", "--device", "cpu", "--out", out, "--json",
    )  # fmt: skip
    assert status == 0, err
    metrics = json.loads(printed)
    assert metrics["steps"] == 6
    assert metrics["start"]["effective_rank"] > 2
    names = load_file(out / "model" / "model.safetensors").keys()
    assert len(names) == 101  # MiniLM's 103 without its pooler; nothing of the head
    assert "sentence-transformers/all-MiniLM-L6-v2" in (out / "model" / "README.md").read_text()
