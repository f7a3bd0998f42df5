"""Two processes with half the batch each take the steps of one process."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longarc.training.batches import Documents

JOBS = {
    "weighted": {"rows": 24, "loss": "class-weighted",
                 "training": {"train_sampling_strategy": "group_by_length"}},
    "accumulated": {"rows": 24, "loss": "logit-adjusted",
                    "training": {"train_sampling_strategy": "group_by_length",
                                 "gradient_accumulation_steps": 2}},
    "drawn": {"rows": 24, "loss": "cross-entropy", "sampler": "class-balanced",
              "training": {"train_sampling_strategy": "group_by_length"}},
    "drawn-at-random": {"rows": 24, "loss": "cross-entropy", "sampler": "square-root",
                        "training": {"train_sampling_strategy": "random"}},
    "multi-hot": {"rows": 24, "loss": "binary-cross-entropy", "multi_hot": True, "training": {}},
}  # fmt: skip
BATCH = {"weighted": 8, "accumulated": 4, "drawn": 8, "drawn-at-random": 8, "multi-hot": 8}


@pytest.fixture(scope="module")
def runs(run_worker, tiny, tmp_path_factory):
    """The same jobs with one process (here) and with two (under torchrun)."""
    torch.set_num_threads(1)
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    halved = {}
    for name, job in JOBS.items():
        (one / name).mkdir()
        size = {"per_device_train_batch_size": BATCH[name]}
        tiny.train_in_parallel(one / name, job | {"training": job["training"] | size})
        size = {"per_device_train_batch_size": BATCH[name] // 2}
        halved[name] = job | {"training": job["training"] | size}
    run_worker(two, halved, processes=2)
    return one, two


@pytest.mark.parametrize("name", JOBS)
def test_weights(runs, tiny, name):
    one, two = runs
    expected = load_file(one / name / "weights-0.safetensors")
    start = tiny.make_model().state_dict()
    assert max((expected[n] - start[n]).abs().max() for n in expected) > 1e-2
    for rank in (0, 1):
        found = load_file(two / name / f"weights-{rank}.safetensors")
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=2e-6, msg=key)


@pytest.mark.parametrize("name", JOBS)
def test_order(runs, name):
    """Batch by batch, the ranks' documents one after the other are the one process's."""
    one, two = runs
    alone = json.loads((one / name / "seen-0.json").read_text())
    ranks = [json.loads((two / name / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    together = [first + second for first, second in zip(*ranks, strict=True)]
    assert together == alone
    flat = [tuple(ids) for batch in alone[: len(alone) // 3] for ids in batch]
    assert len(flat) == 24


@pytest.mark.parametrize("name", JOBS)
def test_checkpoints_are_written_once(runs, name):
    folder = runs[1] / name
    assert sorted(p.name for p in folder.glob("*checkpoint-*")) == [
        "checkpoint-3", "checkpoint-6", "checkpoint-9"
    ]  # fmt: skip
    files = {p.name for p in (folder / "checkpoint-9").iterdir()}
    assert {"random-0.safetensors", "random-1.safetensors", "model.safetensors"} <= files
    last = load_file(folder / "checkpoint-9" / "model.safetensors")
    final = load_file(folder / "weights-0.safetensors")
    assert all(torch.equal(last[name], final[name]) for name in last)


def test_the_tables_are_as_the_tests_need_them(tiny, tokenizer):
    texts, target = tiny.make_table(24)
    assert len(np.unique(target)) == 3
    assert len(set(Documents(texts, tokenizer, 48).lengths)) > 8
