from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

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
