from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import longarc

HERE = Path(__file__).parent


def _load_worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("longarc_test_worker", HERE / "worker.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/training/worker.py: a tiny BERT, its tokenizer, texts and trainers."""
    return _load_worker()


@pytest.fixture(scope="session")
def tokenizer(tiny):
    return tiny.make_tokenizer()


@pytest.fixture(autouse=True)
def one_thread():
    """As in worker.py, so that sums run in the same order in every process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def run_worker():
    """Run jobs of worker.py in other processes: {name: options} → exit codes of those that died."""

    def run(root: Path, jobs: dict, *, processes: int = 1) -> dict[str, int]:
        file = root / f"jobs-{processes}.json"
        file.write_text(json.dumps(jobs))
        launcher = [] if processes == 1 else [
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)
        ]  # fmt: skip
        command = [sys.executable, *launcher, str(HERE / "worker.py"), str(root), str(file)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # tests/contracts too
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=240, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        codes = root / "codes.json"
        return json.loads(codes.read_text()) if codes.is_file() else {}

    return run


@pytest.fixture(scope="session")
def minilm():
    """The real all-MiniLM-L6-v2: (encoder's folder, tokenizer)."""
    from longarc.models.loading import load_tokenizer, resolve_model

    return resolve_model("minilm"), load_tokenizer("minilm")


@pytest.fixture(scope="session")
def hard_table():
    """70, 25 and 9 texts that are hard to tell apart, so that recipes have something to mend."""
    words = {
        "pump": "pump oil leak motor valve noise bolt gasket",
        "invoice": "invoice payment bank tax refund amount due order",
        "court": "court law clause contract liability notice term party",
    }
    random = np.random.default_rng(0)
    every = " ".join(words.values()).split()
    rows = [
        (" ".join([*random.choice(own.split(), 2), *random.choice(every, 6)]) + f" {i}", name)
        for (name, own), number in zip(words.items(), (70, 25, 9), strict=True)
        for i in range(number)
    ]
    return {"text": [text for text, _ in rows], "label": [name for _, name in rows]}


@pytest.fixture(scope="session")
def fit_frozen(tmp_path_factory):
    """Make a run in a second or two: a probe on the real encoder, unless the options say else."""

    def fit(data, **options):
        given = {"freeze": True, "baseline": False, "max_length": 32, "verbose": False}
        given |= {"precision": "fp32", "device": "cpu"}
        return longarc.fit(data, out=tmp_path_factory.mktemp("run") / "r", **given | options)

    return fit
