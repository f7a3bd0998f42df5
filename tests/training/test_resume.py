"""Stopped in whatever way and gone on with, a run ends as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from longarc.training.callbacks import RunLog
from longarc.training.checkpoint import last_checkpoint

KILL, INTERRUPT = int(signal.SIGKILL), int(signal.SIGINT)

# 40 documents in batches of 8: 5 steps an epoch, 15 in all.
STOPPED = {
    # name: (options of the job, checkpoint to go on from, what ended the process)
    "mid-epoch": ({"signal": [7, "step", KILL]}, 5, -KILL),
    "epoch-end": ({"signal": [5, "save", KILL]}, 5, -KILL),
    "first-epoch": ({"signal": [3, "step", KILL]}, 0, -KILL),
    "after-timed": ({"minutes": 0, "signal": [7, "save", KILL]}, 7, -KILL),
    "while-saving": ({"minutes": 0, "kill_while_saving": 7}, 6, -KILL),
    "epoch-end-timed": ({"minutes": 0, "signal": [10, "evaluate", KILL]}, 9, -KILL),
    "interrupted": ({"interruption": True, "signal": [7, "step", INTERRUPT]}, 7, 0),
    "interrupted-at-epoch-end": ({"interruption": True, "signal": [10, "step", INTERRUPT]}, 10, 0),
    "terminated": ({"interruption": True, "signal": [12, "step", int(signal.SIGTERM)]}, 12, 0),
}
VARIANTS = {
    "random-order": ({"train_sampling_strategy": "random"}, 7),
    "accumulated": (
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "rows": 38}, 7,
    ),
    "drawn": ({"sampler": "class-balanced"}, 7),
    "drawn-at-random": ({"sampler": "square-root", "train_sampling_strategy": "random"}, 7),
    "sgd": ({"optim": "sgd", "learning_rate": 0.05}, 7),
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped(run_worker, tmp_path_factory):
    """Every stopped run's folder, and what ended it."""
    root = tmp_path_factory.mktemp("stopped")
    jobs = {name: options for name, (options, _, _) in STOPPED.items()}
    for name, (training, step) in VARIANTS.items():
        jobs[name] = {"minutes": 0, "signal": [step, "save", KILL], "training": training}
    return root, run_worker(root, jobs)


class StopAfterEpoch(TrainerCallback):
    def on_save(self, args, state, control, **_):
        control.should_training_stop = True


def finish(tiny, out, *, resume=False, **options):
    weights = tiny.Weights()
    make = tiny.resume if resume else tiny.make_resumable
    trainer = make(out, callbacks=(weights, RunLog(out / "log.jsonl")), **options)
    if not resume:
        trainer.train()
    return trainer, weights.last


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    torch.set_num_threads(1)
    return finish(tiny, tmp_path_factory.mktemp("whole"))


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def history(trainer):
    """The log without its clock readings."""
    volatile = ("runtime", "per_second", "flos", "train_loss")
    return [
        {k: v for k, v in record.items() if not any(word in k for word in volatile)}
        for record in trainer.state.log_history
    ]


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_run_ends_as_if_nothing_had_happened(tiny, stopped, whole, name):
    root, codes = stopped
    folder = root / name
    _, step, code = STOPPED[name]
    assert codes[name] == code
    assert last_checkpoint(folder) == folder / f"checkpoint-{step}"
    trainer, last = finish(tiny, folder, resume=True)
    expected, expected_last = whole
    assert same_weights(last, expected_last)
    assert same_weights(trainer.model.state_dict(), expected.model.state_dict()), "best weights"
    assert trainer.state.best_metric == expected.state.best_metric
    assert trainer.state.best_global_step == expected.state.best_global_step
    assert history(trainer) == history(expected)
    assert not list(folder.glob(".checkpoint-*")), "leftovers of the killed process"


@pytest.mark.parametrize("name", STOPPED)
def test_the_log_file_has_each_record_once(stopped, whole, name):
    folder = stopped[0] / name

    def records(path):
        lines = map(json.loads, (path / "log.jsonl").read_text().splitlines())
        kept = [r for r in lines if r["event"] in ("train", "validation")]
        return [{k: v for k, v in r.items() if k != "time"} for r in kept]

    expected = records(Path(whole[0].args.output_dir))
    assert len(expected) == 15 + 4
    assert records(folder) == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_other_orders_batches_and_optimizers(tiny, stopped, tmp_path, name):
    root, codes = stopped
    training, step = VARIANTS[name]
    assert codes[name] == -KILL
    assert last_checkpoint(root / name).name == f"checkpoint-{step}"
    _, expected = finish(tiny, tmp_path, **training)
    _, last = finish(tiny, root / name, resume=True, **training)
    assert same_weights(last, expected)


def test_what_the_loss_has_gathered_goes_on(tiny, tmp_path):
    loss = {"statistics": "running", "momentum": 0.5}
    options = {"rows": 24, "num_train_epochs": 2, "loss": "f1-weighted", "loss_options": loss}

    tiny.make_resumable(tmp_path / "a", callbacks=(StopAfterEpoch(),), **options).train()
    shutil.copytree(tmp_path / "a", tmp_path / "old")
    _, expected = finish(tiny, tmp_path / "whole", **options)
    _, last = finish(tiny, tmp_path / "a", resume=True, **options)
    assert same_weights(last, expected)
    # A checkpoint of a release that did not keep it: the statistics start anew.
    (tmp_path / "old" / "checkpoint-3" / "loss-0.safetensors").unlink()
    trainer, last = finish(tiny, tmp_path / "old", resume=True, **options)
    assert trainer.state.global_step == 6
    assert not same_weights(last, expected)


def test_a_repeat_is_identical_and_another_seed_is_not(tiny, whole, tmp_path):
    _, again = finish(tiny, tmp_path / "again")
    _, other = finish(tiny, tmp_path / "other", seed=1)
    assert same_weights(again, whole[1])
    assert not same_weights(other, whole[1])


def test_early_stopping_keeps_its_patience(tiny, tmp_path):
    """A rate of nearly 0 never improves on the start: patience 2 ends the run after epoch 2."""
    options = {"learning_rate": 1e-12, "patience": 2, "num_train_epochs": 5}
    whole = tiny.make_resumable(tmp_path / "whole", **options)
    whole.train()
    assert whole.state.global_step == 10

    first = tiny.make_resumable(tmp_path / "run", callbacks=(StopAfterEpoch(),), **options)
    first.train()
    assert first.state.global_step == 5
    resumed = tiny.resume(tmp_path / "run", **options)
    assert resumed.state.global_step == 10
    counters = [
        callback.early_stopping_patience_counter
        for callback in resumed.callback_handler.callbacks
        if isinstance(callback, EarlyStoppingCallback)
    ]
    assert counters == [2]


def test_a_run_that_stopped_early_makes_no_further_step(tiny, tmp_path):
    """Killed after its last step, while it was evaluated: what is left is to choose the best."""
    options = {"learning_rate": 1e-12, "patience": 2, "num_train_epochs": 5}
    whole = tiny.make_resumable(tmp_path, **options)
    whole.train()
    resumed = tiny.resume(tmp_path, **options)
    assert resumed.state.global_step == whole.state.global_step == 10
    assert resumed.state.best_global_step == whole.state.best_global_step
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict())
