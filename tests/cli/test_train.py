"""The main job through the command line: a real process, a real table, a real (tiny) encoder."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

import longarc as package
from longarc.cli.main import main

COMMON = ("--text", "body", "--label", "topic", "--device", "cpu", "--no-baseline")


def weights(run: Path) -> dict:
    return load_file(run / "model" / "model.safetensors")


def same_weights(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(bool((one[k] == two[k]).all()) for k in one)


def test_the_run_folder_holds_what_its_schema_says(trained):
    files = {p.name for p in trained.iterdir()}
    assert files == {
        "config.yaml", "labels.json", "check.json", "model", "metrics.json",
        "predictions.parquet", "log.jsonl", "report.html",
    }  # fmt: skip
    for path in trained.rglob("*"):
        if path.is_file():
            assert path.suffix not in {".bin", ".pt", ".pth", ".pkl"}
            assert path.read_bytes()[:4] != b"PK\x03\x04", f"{path} is a zip, as torch.save writes"
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert (config["text"], config["label"], config["max_length"]) == ("body", "topic", 64)
    assert len(config["provenance"]["data_sha256"]) == 64
    metrics = json.loads((trained / "metrics.json").read_text())
    for split in ("validation", "test"):
        assert set(metrics[split]["baselines"]) == {"tfidf-svm", "frozen-probe"}
        for name, baseline in metrics[split]["baselines"].items():
            gap = metrics[split]["model"]["macro_f1"]["value"] - baseline["macro_f1"]["value"]
            found = metrics[split]["differences"][name]["macro_f1"]
            assert found["value"] == pytest.approx(gap, abs=1e-12)
        figure = metrics[split]["model"]["macro_f1"]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    table = pq.read_table(trained / "predictions.parquet").to_pydict()
    assert set(table["split"]) == {"validation", "test"}
    names = [c["name"] for c in json.loads((trained / "labels.json").read_text())["labels"]]
    for prediction, confidence, chances in zip(
        table["prediction"], table["confidence"], table["probabilities"], strict=True
    ):
        assert prediction == names[chances.index(max(chances))]
        assert confidence == pytest.approx(max(chances))
        assert sum(chances) == pytest.approx(1, abs=1e-5)
    events = [
        json.loads(line)["event"] for line in (trained / "log.jsonl").read_text().splitlines()
    ]
    assert events[:2] == ["probe", "start"]
    assert events.count("probe") == events.count("start") == 1
    assert events[-1] == "end"
    assert events.count("validation") == 3  # the start and two epochs
    assert "</html>" in (trained / "report.html").read_text()
    assert (trained / "model" / "README.md").read_text().startswith("---\n")


def test_predictions_name_the_rows_of_the_users_file(trained, tickets):
    texts = [line.split(",") for line in tickets.read_text().splitlines()[1:]]
    table = pq.read_table(trained / "predictions.parquet").to_pydict()
    for row, excerpt, label in zip(table["row"], table["excerpt"], table["label"], strict=True):
        assert texts[row - 1][1:] == [excerpt, label]


def test_config_yaml_repeats_the_run_bit_for_bit(longarc, trained, tmp_path):
    out = tmp_path / "again"
    status, _, err = longarc("train", "--config", trained / "config.yaml", "--out", out)
    assert (status, err) == (0, "")
    assert same_weights(trained, out)
    first, second = (json.loads((r / "metrics.json").read_text()) for r in (trained, out))
    assert first["test"] == second["test"]


def test_json_goes_to_stdout_alone(longarc, tickets, tiny_model, tmp_path):
    status, out, _ = longarc(
        "train", tickets, *COMMON, "--model", tiny_model, "--freeze", "--out", tmp_path / "r",
        "--json",
    )  # fmt: skip
    assert status == 0
    assert json.loads(out)["test"]["model"]["n"] > 0
    assert not (tmp_path / "r" / "log.jsonl").exists()  # nothing was fine-tuned


def test_an_existing_run_is_never_overwritten_unasked(longarc, trained, tickets, tiny_model):
    before = (trained / "metrics.json").read_bytes()
    command = ("train", tickets, *COMMON, "--model", tiny_model, "--freeze", "--out", trained)
    status, _, err = longarc(*command)
    assert status == 1
    assert "holds a complete run" in err
    assert "--overwrite" in err
    assert (trained / "metrics.json").read_bytes() == before


def test_overwrite_replaces_a_run_and_spares_other_folders(
    longarc, trained, tickets, tiny_model, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    command = ("train", tickets, *COMMON, "--model", tiny_model, "--freeze", "--overwrite")
    assert longarc(*command, "--out", run)[0] == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["freeze"] is True
    mine = tmp_path / "holiday-pictures"
    mine.mkdir()
    (mine / "beach.jpg").write_bytes(b"sand")
    status, _, err = longarc(*command, "--out", mine)
    assert status == 1
    assert "never overwritten" in err
    assert (mine / "beach.jpg").exists()


def test_a_model_with_cls_pooling_opens_in_plain_transformers(
    longarc, tickets, tiny_model, tmp_path
):
    run = tmp_path / "cls"
    assert longarc(
        "train", tickets, *COMMON, "--model", tiny_model, "--pooling", "cls", "--precision", "fp32",
        "--freeze",
        "--out", run,
    )[0] == 0  # fmt: skip
    script = (
        "import sys, torch, transformers as t\n"
        "m = t.AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()\n"
        "k = t.AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "x = k(['oil leak of the pump'], return_tensors='pt')\n"
        "print(m.config.id2label[int(m(**x).logits.argmax())], 'longarc' in sys.modules)\n"
    )
    plain = subprocess.run(
        [sys.executable, "-c", script, str(run / "model")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = package.open_run(run).predict(["oil leak of the pump"])[0]
    assert plain.stdout.split() == [expected, "False"]


@pytest.fixture(scope="module")
def long_run(tickets, tiny_model):
    """A command that trains for long enough to be stopped in its midst."""
    return (
        "train", tickets, *COMMON, "--model", tiny_model, "--epochs", "16", "--patience", "0",
        "--learning-rate", "1e-3", "--batch-size", "4",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(long_run, tmp_path_factory):
    """The run that nothing stopped."""
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    assert main([*map(str, long_run), "--out", str(out)]) == 0
    return out


def wait_for_step(run: Path, process: subprocess.Popen, event: str = "train") -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        log = run / "log.jsonl"
        if log.is_file() and f'"event": "{event}"' in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"no {event} was logged: {process.communicate()[1][-2000:]}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_resumes_to_the_same_weights(
    start, longarc, long_run, undisturbed, tmp_path, number
):
    broken = tmp_path / "broken"
    process = start(*long_run, "--out", broken)
    wait_for_step(broken, process, "checkpoint" if number == signal.SIGKILL else "train")
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert not (broken / "metrics.json").exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        saved = int(re.search(r"stopped after step (\d+)", err)[1])
        assert (broken / "checkpoints" / f"checkpoint-{saved}").is_dir()
        assert "--resume" in err
    else:
        assert process.returncode == -signal.SIGKILL
    status, _, err = longarc("train", "--out", broken, "--resume")
    assert status == 0, err
    assert same_weights(undisturbed, broken)
    whole, resumed = (json.loads((r / "metrics.json").read_text()) for r in (undisturbed, broken))
    for split in ("validation", "test"):
        assert whole[split] == resumed[split]
    steps = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    train = [r["step"] for r in steps if r["event"] == "train"]
    assert train == sorted(set(train)), "the resumed log repeats or misses steps"
    resumed = [r["resumed_from"] for r in steps if r["event"] == "start" and r["resumed_from"]]
    assert resumed == [saved] if number == signal.SIGINT else resumed


def test_resuming_with_other_options_or_other_data_is_refused(longarc, trained, tickets, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    status, _, err = longarc("train", "--out", run, "--resume")
    assert status == 1
    assert "is complete" in err
    (run / "metrics.json").unlink()
    status, _, err = longarc("train", "--out", run, "--resume", "--learning-rate", "1")
    assert status == 1
    assert "learning_rate: 0.003 then, 1.0 now" in err
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("processes: 1", "processes: 2"))
    status, _, err = longarc("train", "--out", run, "--resume")
    assert status == 1
    assert "started with 2 processes" in err
    moved = tmp_path / "tickets.csv"
    moved.write_text(tickets.read_text() + "999,one more row,pump\n")
    (run / "config.yaml").write_text(config.replace(str(tickets), str(moved)))
    status, _, err = longarc("train", "--out", run, "--resume")
    assert status == 1
    assert "have changed since" in err


def test_two_processes_train_together_and_write_once(start, longarc, tickets, tiny_model, tmp_path):
    out = tmp_path / "pair"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(
        "train", tickets, *COMMON, "--model", tiny_model, "--epochs", "2", "--batch-size", "4",
        "--learning-rate", "3e-3", "--out", out, launcher=launcher,
    )  # fmt: skip
    printed, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-3000:]
    assert printed.count("report ") == 1
    starts = [r for r in (out / "log.jsonl").read_text().splitlines() if '"start"' in r]
    assert len(starts) == 1
    single = tmp_path / "single"
    assert longarc(
        "train", tickets, *COMMON, "--model", tiny_model, "--epochs", "2", "--batch-size", "8",
        "--learning-rate", "3e-3", "--out", single,
    )[0] == 0  # fmt: skip
    steps = [
        json.loads(r)["steps"]
        for r in (starts[0], (single / "log.jsonl").read_text().splitlines()[1])
    ]
    assert steps[0] == steps[1]
    assert json.loads((out / "metrics.json").read_text())["test"]["model"]["n"] == 18


def test_several_labels(longarc, tiny_model, tmp_path):
    table = tmp_path / "several.jsonl"
    rows = [
        {"text": f"{a} {b} {i}", "tags": sorted({a, b})}
        for i in range(20)
        for a, b in [("pump", "oil"), ("invoice", "tax"), ("court", "law"), ("pump", "pump")]
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    status, _, err = longarc(
        "train", table, "--model", tiny_model, "--epochs", "2", "--device", "cpu", "--out", run
    )
    assert status == 0, err
    opened = package.open_run(run)
    assert opened.config.loss == "binary-cross-entropy"
    assert opened.labels.multi_label
    assert "value" in opened.metrics["test"]["model"]["mean_average_precision"]
    assert all(isinstance(labels, list) for labels in opened.predict(["pump oil", "tax"]))


def test_a_full_disk_is_refused_before_work_and_named_during_it(
    start, longarc, tickets, tiny_model, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    try:
        common = (
            "train",
            tickets,
            *COMMON,
            "--epochs",
            "12",
            "--patience",
            "0",
            "--batch-size",
            "4",
        )
        status, _, err = longarc(
            *common, "--model", "minilm", "--max-length", "16", "--out", disk / "big"
        )
        assert status == 1
        assert "GB free" in err
        assert not (disk / "big").exists()
        process = start(*common, "--model", tiny_model, "--out", disk / "small")
        wait_for_step(disk / "small", process, "checkpoint")
        free = shutil.disk_usage(disk).free
        with (disk / "filler").open("wb") as filler:
            filler.write(b"x" * max(0, free - 150_000))
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1, err[-2000:]
        assert "no space left" in err
        assert "is whole" in err
        (disk / "filler").unlink()
        status, _, err = longarc("train", "--out", disk / "small", "--resume")
        assert status == 0, err
    finally:
        subprocess.run(["umount", disk], check=False)
