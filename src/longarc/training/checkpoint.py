"""Resumable training state without pickle: tensors in safetensors, the rest in JSON.

transformers saves optimizer, scheduler and random states with ``torch.save``, which is a pickle in
a zip. Here the same state goes into files that hold data and nothing else. Floats survive JSON
exactly (Python writes the shortest text that reads back equal), so a resumed run is bit-identical.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from longarc.files import flush

if TYPE_CHECKING:
    from longarc.objectives.losses.contract import Loss

OPTIMIZER = "optimizer.safetensors"
SCHEDULE = "schedule.json"
GROUPS = "optimizer.json"
SCALER = "scaler.json"


def save_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Write the optimizer's tensors, its parameter groups, and the schedule's position."""
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            key = f"{index}.{name}"
            if isinstance(value, torch.Tensor):
                tensors[key] = value.detach().cpu().contiguous()
            else:
                scalars[key] = value
    save_file(tensors, folder / OPTIMIZER)
    groups = {"groups": state["param_groups"], "scalars": scalars}
    (folder / GROUPS).write_text(json.dumps(groups), encoding="utf-8")
    (folder / SCHEDULE).write_text(json.dumps(scheduler.state_dict()), encoding="utf-8")


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Restore what :func:`save_optimizer` wrote."""
    kept = json.loads((folder / GROUPS).read_text(encoding="utf-8"))
    # Tensors as they come are maps of the file, and keep its room on the disk after it is deleted.
    tensors = {key: value.clone() for key, value in load_file(folder / OPTIMIZER).items()}
    state: dict[int, dict[str, Any]] = {}
    for key, value in (tensors | kept["scalars"]).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    for group in kept["groups"]:
        group.update({k: tuple(v) for k, v in group.items() if k == "betas"})
    optimizer.load_state_dict({"state": state, "param_groups": kept["groups"]})
    scheduler.load_state_dict(json.loads((folder / SCHEDULE).read_text(encoding="utf-8")))


def random_file(folder: Path, rank: int) -> Path:
    """Where one process keeps its random state."""
    return folder / f"random-{rank}.safetensors"


def save_random_state(folder: Path, rank: int) -> None:
    """Write the states of Python's, numpy's and torch's generators for one process."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
    }
    if torch.cuda.is_available():
        for i, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{i}"] = state
    scalars = {
        "python": [version, gauss],
        "numpy": [name, int(position), int(has_gauss), float(cached)],
    }
    save_file(tensors, random_file(folder, rank), metadata={"scalars": json.dumps(scalars)})


def load_random_state(folder: Path, rank: int) -> None:
    """Restore what :func:`save_random_state` wrote, if this process had a file."""
    from safetensors import safe_open

    path = random_file(folder, rank)
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        scalars = json.loads(file.metadata()["scalars"])
    version, gauss = scalars["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    name, position, has_gauss, cached = scalars["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    cuda = [tensors[f"cuda.{i}"] for i in range(len(tensors)) if f"cuda.{i}" in tensors]
    if cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(cuda)


def gathered_file(folder: Path, rank: int) -> Path:
    """Where one process keeps what its loss has gathered."""
    return folder / f"loss-{rank}.safetensors"


def save_gathered(folder: Path, rank: int, loss: Loss) -> None:
    """Write what the loss has gathered over the training; no file for one that gathers nothing."""
    if gathered := loss.gathered():
        save_file({k: v.cpu() for k, v in gathered.items()}, gathered_file(folder, rank))


def load_gathered(folder: Path, rank: int, loss: Loss) -> None:
    """Restore what :func:`save_gathered` wrote, if this process had a file."""
    if (path := gathered_file(folder, rank)).is_file():
        loss.take_up({key: value.clone() for key, value in load_file(path).items()})


def publish(unfinished: Path, place: Path) -> None:
    """Flush a finished folder to the disk and give it its name; an older one of that name goes.

    The older one is set aside first: deleting takes time, and a half-deleted checkpoint must not
    bear a checkpoint's name.
    """
    for path in unfinished.iterdir():
        flush(path)
    old = place.with_name(f".{place.name}-old")
    if place.exists():
        place.replace(old)
    unfinished.replace(place)
    shutil.rmtree(old, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps; a half-written one has another name and never counts."""
    found = {
        int(match[1]): path
        for path in (folder.iterdir() if folder.is_dir() else [])
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    return found[max(found)] if found else None
