from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longarc.cli.main import main

WORKER = Path(__file__).parent.parent / "training" / "worker.py"


def _worker():
    spec = importlib.util.spec_from_file_location("longarc_cli_test_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def worker():
    return _worker()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, worker) -> Path:
    """A random BERT of two small layers with a real tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    encoder = worker.BertModel(worker.make_config(dropout=0.1))
    encoder.save_pretrained(folder)
    worker.make_tokenizer().save_pretrained(folder)
    return folder


NAMES = ("pump", "invoice", "contract")


@pytest.fixture(scope="session")
def tickets(tmp_path_factory, worker) -> Path:
    """A table of 120 texts with the columns id, body and topic."""
    path = tmp_path_factory.mktemp("data") / "tickets.csv"
    texts, target = worker.make_table(120)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "body", "topic"])
        out.writerows(
            [i, f"{text} {i}", NAMES[y]]
            for i, (text, y) in enumerate(zip(texts, target, strict=True))
        )
    return path


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums run in the same order in every run and process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def longarc(capsys):
    """Run the command line in this process: (exit status, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def start():
    """Start the command line in a process of its own."""

    def begin(*words: object, launcher: tuple[str, ...] = (), **options) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "longarc", *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options,
        )  # fmt: skip

    return begin


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tickets, tiny_model) -> Path:
    """A finished run, made by the command line."""
    out = tmp_path_factory.mktemp("runs") / "tickets"
    status = main(
        [
            "train", str(tickets), "--text", "body", "--label", "topic", "--model", str(tiny_model),
            "--epochs", "2", "--learning-rate", "3e-3", "--out", str(out), "--loss",
            "logit-adjusted", "--device", "cpu",
        ]
    )  # fmt: skip
    assert status == 0
    return out


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
