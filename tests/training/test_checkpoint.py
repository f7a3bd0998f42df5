"""Checkpoints: data only, exact, whole or not there."""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from longarc.training.checkpoint import (
    last_checkpoint,
    load_optimizer,
    load_random_state,
    publish,
    save_optimizer,
    save_random_state,
)


def looks_like_a_pickle(path):
    start = path.read_bytes()[:2]
    protocol = len(start) == 2 and start[0] == 0x80 and start[1] <= 5
    return zipfile.is_zipfile(path) or protocol or path.suffix in (".bin", ".pt", ".pth", ".pkl")


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    trainer = tiny.make_resumable(out, num_train_epochs=2)
    trainer.train()
    return trainer, last_checkpoint(out)


def test_no_file_is_a_pickle(trained, tmp_path):
    torch.save({"a": 1}, tmp_path / "a")
    assert looks_like_a_pickle(tmp_path / "a"), "the test must know one"
    files = [p for p in trained[1].rglob("*") if p.is_file()]
    names = {p.name for p in files}
    assert {
        "model.safetensors", "config.json", "tokenizer.json", "optimizer.safetensors",
        "optimizer.json", "schedule.json", "random-0.safetensors", "trainer_state.json",
    } <= names  # fmt: skip
    assert [p.name for p in files if looks_like_a_pickle(p)] == []
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".txt"}


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="reads Linux's list of maps")
def test_a_restored_optimizer_lets_go_of_its_file(tmp_path):
    weight = torch.nn.Parameter(torch.ones(10_000))
    optimizer = torch.optim.AdamW([weight])
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    weight.sum().backward()
    optimizer.step()
    save_optimizer(tmp_path, optimizer, scheduler)
    load_optimizer(tmp_path, optimizer, scheduler)
    held = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(tmp_path) not in held
    assert optimizer.state[weight]["exp_avg"].abs().sum() > 0


def test_a_float16_scaler_is_json_too(tiny, trained, tmp_path):
    trainer = tiny.make_resumable(tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer._save_scaler(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["scaler.json"]
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer._load_scaler(str(tmp_path))
    assert trainer.accelerator.scaler.state_dict()["scale"] == 1024.0


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95)),
    "amsgrad": lambda groups: torch.optim.AdamW(groups, amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "sgd-momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, centered=True),
}


def make(kind, dtype):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 2)).to(dtype)
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.1 / 3},
        {"params": list(model[1].parameters()), "weight_decay": 0.1},
    ]
    optimizer = OPTIMIZERS[kind](groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 3))
    return model, optimizer, schedule


def steps(model, optimizer, schedule, number, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        x = torch.randn(6, 5, generator=generator).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_exactly(tmp_path, kind, before, dtype):
    model, optimizer, schedule = make(kind, dtype)
    steps(model, optimizer, schedule, before, seed=1)
    save_optimizer(tmp_path, optimizer, schedule)
    other, other_optimizer, other_schedule = make(kind, dtype)
    other.load_state_dict(model.state_dict())
    load_optimizer(tmp_path, other_optimizer, other_schedule)
    one, two = optimizer.state_dict(), other_optimizer.state_dict()
    assert two["param_groups"] == one["param_groups"]
    for index, state in one["state"].items():
        for name, value in state.items():
            found = two["state"][index][name]
            assert type(found) is type(value)
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(value)), name
    steps(model, optimizer, schedule, 3, seed=2)
    steps(other, other_optimizer, other_schedule, 3, seed=2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert schedule.get_last_lr() == other_schedule.get_last_lr()


def draw():
    return (
        [random.random(), random.gauss(0, 1)],
        np.random.standard_normal(3).tolist(),  # noqa: NPY002
        np.random.random(2).tolist(),  # noqa: NPY002
        torch.rand(3).tolist(),
        torch.randn(17).tolist(),
    )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 2**32 - 1), st.integers(0, 700), st.booleans())
def test_random_states_come_back_exactly(tmp_path, seed, drawn, odd):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    for _ in range(drawn):
        random.random()
    np.random.random(drawn)  # noqa: NPY002
    torch.rand(drawn)
    if odd:  # these keep the second of a pair of normal numbers for the next call
        random.gauss(0, 1)
        np.random.standard_normal()  # noqa: NPY002
    save_random_state(tmp_path, 3)
    expected = draw()
    draw()
    load_random_state(tmp_path, 3)
    assert draw() == expected


def test_a_process_without_a_file_keeps_its_state(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    load_random_state(tmp_path, 1)
    assert torch.equal(torch.rand(2), expected)


def test_last_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", ".checkpoint-11-unfinished", "checkpoint-x"):
        (tmp_path / name).mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_publishing_takes_an_older_ones_place(tmp_path):
    for name in ("checkpoint-3", ".checkpoint-3-unfinished"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    publish(tmp_path / ".checkpoint-3-unfinished", tmp_path / "checkpoint-3")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]
    assert (tmp_path / "checkpoint-3" / "file").read_text() == ".checkpoint-3-unfinished"


def copy_of(trained, out):
    shutil.copytree(trained[1], out / trained[1].name)
    before = {p.name: p.read_bytes() for p in (out / trained[1].name).iterdir()}
    return out / trained[1].name, before


def assert_untouched(place, before):
    assert last_checkpoint(place.parent) == place
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before
    assert [p.name for p in place.parent.iterdir()] == [place.name]
    load_file(place / "model.safetensors")


def test_a_file_too_large_leaves_the_checkpoint_before(tiny, trained, tmp_path):
    """A limit on file size stops the write half-way, as a full disk does."""
    place, before = copy_of(trained, tmp_path)
    trainer = tiny.make_resumable(tmp_path)
    trainer.create_optimizer_and_scheduler(10)
    trainer.state.global_step = 11
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Exception, match=r"too large|os error 27"):
            trainer._save_checkpoint(trainer.model, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_untouched(place, before)
    trainer._save_checkpoint(trainer.model, None)
    assert last_checkpoint(tmp_path).name == "checkpoint-11"


def test_a_full_disk_leaves_the_checkpoint_before(tiny, trained, tmp_path):
    size = sum(p.stat().st_size for p in trained[1].iterdir())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(size * 1.5)}", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        place, before = copy_of(trained, tmp_path)
        trainer = tiny.make_resumable(tmp_path, optim="adamw_torch")
        trainer.create_optimizer_and_scheduler(10)
        for parameter in trainer.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        trainer.optimizer.step()
        trainer.state.global_step = 11
        with pytest.raises(Exception, match=r"No space left on device|os error 28"):
            trainer._save_checkpoint(trainer.model, None)
        assert_untouched(place, before)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_next_save_clears_what_a_killed_one_left(tiny, tmp_path):
    for left in (".checkpoint-7-unfinished", ".checkpoint-5-old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.safetensors").write_bytes(b"half")
    trainer = tiny.make_resumable(tmp_path)
    trainer.create_optimizer_and_scheduler(10)
    trainer.state.global_step = 8
    trainer._save_checkpoint(trainer.model, None)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-8"]


def test_the_best_checkpoint_named_is_one_that_exists(tiny, tmp_path):
    """Evaluated more often than saved, the best step may have no checkpoint."""
    trainer = tiny.make_resumable(tmp_path)
    trainer.create_optimizer_and_scheduler(10)
    trainer.state.best_global_step, trainer.state.global_step = 2, 3
    trainer._save_checkpoint(trainer.model, None)
    assert trainer.state.best_model_checkpoint is None
    trainer.state.best_global_step, trainer.state.global_step = 4, 4
    trainer._save_checkpoint(trainer.model, None)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
