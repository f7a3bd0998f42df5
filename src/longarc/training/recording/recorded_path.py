"""The recorded path of a training: the files of ``path/`` (docs/run-folder.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longarc.errors import OptionError, RunError
from longarc.files import whole_file, write_json

FORMAT = 1

ROWS = pa.schema(
    [
        ("step", pa.int64()),
        ("learning_rates", pa.list_(pa.float64())),
        ("documents", pa.list_(pa.int64())),
        ("shape", pa.list_(pa.int64())),
        ("gradient", pa.list_(pa.float64())),
        ("inputs", pa.string()),
        ("random", pa.binary()),
        ("device_random", pa.binary()),
    ]
)
"""Columns of ``steps-*.parquet``; float32 gradients are exact in float64, and compress to half."""


@dataclass(frozen=True)
class RecordedBatch:
    """What one batch brought to the update after step ``step``.

    Attributes:
        step: updates made before it; batches of one update have the same.
        learning_rates: of each parameter group.
        documents: indices into the training set, b of them.
        gradient: of the update's loss with respect to this batch's logits, of their shape (b, …):
            whatever the loss, its weights and denominators did is in it.
        inputs: fingerprint of the tensors that the model was given.
        random: torch's generator before the forward pass, for dropout; the device's own likewise.
    """

    step: int
    learning_rates: tuple[float, ...]
    documents: tuple[int, ...]
    gradient: Tensor
    inputs: str
    random: bytes
    device_random: bytes


class RecordedPath:
    """A folder that a :class:`~longarc.PathRecorder` wrote.

    Raises :class:`~longarc.errors.RunError` if there is none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if not self.about_file.is_file():
            raise RunError(
                f"no training path at {self.folder}: expected path.json in it. Record one: "
                "callbacks=[longarc.PathRecorder()] in the trainer, or longarc train --record-path."
            )
        self.about: dict[str, Any] = json.loads(self.about_file.read_text(encoding="utf-8"))
        if self.about.get("format") != FORMAT:
            raise RunError(
                f"{self.about_file} has format {self.about.get('format')}; this longarc reads "
                f"{FORMAT}. Record the path anew."
            )

    @property
    def about_file(self) -> Path:
        """Facts that hold for the whole path."""
        return self.folder / "path.json"

    @property
    def snapshots(self) -> list[int]:
        """The steps of which parameters and optimizer state are kept, ascending."""
        return sorted(_numbered(self.folder, "snapshot", "safetensors"))

    @property
    def end(self) -> int:
        """The number of updates that can be replayed."""
        last = max(_numbered(self.folder, "steps", "parquet"), default=0)
        rows = self._file("steps", last)
        if not rows.is_file():
            return 0
        steps = pq.read_table(rows, columns=["step"])["step"]
        return int(steps[-1].as_py()) + 1 if len(steps) else last

    @property
    def kept(self) -> int:
        """The step whose weights the training handed over: the best, or the last."""
        kept = self.about.get("kept")
        return self.end if kept is None else kept

    def segments(self, end: int | None = None) -> list[tuple[int, int]]:
        """From each snapshot to the next one, as (first step, step after the last)."""
        end = self.kept if end is None else end
        if not 0 <= end <= self.end:
            raise OptionError(f"the path in {self.folder} has steps 0 to {self.end}, not {end}.")
        starts = [s for s in self.snapshots if s < end]
        return list(pairwise([*starts, end]))

    def progress(self, step: int) -> float:
        """How much of the training was done before a step, 0 to 1, as the trainer told its loss."""
        return step / self.about["steps"]

    def batches(self, first: int, after: int) -> list[list[RecordedBatch]]:
        """The batches of the updates first … after − 1, a list for each."""
        updates: list[list[RecordedBatch]] = [[] for _ in range(after - first)]
        for start in sorted(_numbered(self.folder, "steps", "parquet")):
            if start >= after or start + self.about["every"] <= first:
                continue
            for batch in read_rows(self._file("steps", start)):
                if first <= batch.step < after:
                    updates[batch.step - first].append(batch)
        if missing := [first + i for i, batches in enumerate(updates) if not batches]:
            raise RunError(
                f"the path in {self.folder} has no record of step {missing[0]}. Record it anew."
            )
        return updates

    def snapshot(self, step: int) -> dict[str, Tensor]:
        """``parameter.NAME`` and ``state.NAME.KEY`` before the update of a step."""
        return load_file(self._file("snapshot", step))

    def parameters(self, step: int) -> dict[str, Tensor]:
        """The trained parameters of a snapshot, by name."""
        prefix = "parameter."
        tensors = self.snapshot(step)
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    def constants(self) -> dict[str, Tensor]:
        """Parameters that were not trained, and buffers, by name."""
        return load_file(self.folder / "constant.safetensors")

    def _file(self, kind: str, step: int) -> Path:
        suffix = "safetensors" if kind == "snapshot" else "parquet"
        return self.folder / f"{kind}-{step:08d}.{suffix}"


class PathWriter:
    """Writes a path's files, each whole; rows of the current segment are kept until the next."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.folder = folder
        self.about = about
        self.rows: list[RecordedBatch] = []
        self.start = 0

    @property
    def every(self) -> int:
        """Steps from one snapshot to the next."""
        return self.about["every"]

    def create(self, constants: Mapping[str, Tensor]) -> None:
        """Begin a path; an older one in the folder goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "path.json").unlink(missing_ok=True)  # first: no path without its files
        self.cut(-1)
        save_tensors(constants, self.folder / "constant.safetensors")
        self.save_about()

    def save_about(self, **facts: Any) -> None:
        """Write ``path.json``, with further facts."""
        self.about |= facts
        write_json(self.folder / "path.json", self.about)

    def go_on(self, step: int) -> None:
        """Go on from a step: what was recorded after it is dropped.

        Raises RunError where the record does not reach so far, or is of another training.
        """
        path = RecordedPath(self.folder)
        self.about["every"] = path.about["every"]
        for name in ("documents", "autocast", "max_grad_norm", "optimizer", "groups"):
            if path.about[name] != self.about[name]:
                raise RunError(
                    f"training resumes with other {name} than the path in {self.folder} was "
                    f"recorded with: {_brief(path.about[name])} then, {_brief(self.about[name])} "
                    "now. Resume with the same, or train without a recorder."
                )
        if step > 0:
            last = (step - 1) // self.every * self.every
            if path.end < step or last not in path.snapshots:
                raise RunError(
                    f"training resumes at step {step}, but the path in {self.folder} was recorded "
                    f"up to step {path.end} only. Train from the start, or without a recorder."
                )
            kept = [row for update in path.batches(last, step) for row in update]
            self.start, self.rows = last, kept
        self.cut(step)
        self.flush()
        self.save_about()

    def cut(self, step: int) -> None:
        """Remove snapshots after a step, and rows from it on."""
        for number, file in _numbered(self.folder, "snapshot", "safetensors").items():
            if number > step:
                file.unlink()
        for number, file in _numbered(self.folder, "steps", "parquet").items():
            if number >= step:
                file.unlink()

    def snapshot(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Close the segment before this step and open the next."""
        if step % self.every == 0:
            self.flush()
            self.start, self.rows = step, []
        save_tensors(tensors, self.folder / f"snapshot-{step:08d}.safetensors")

    def flush(self) -> None:
        """Write the rows of the current segment."""
        if self.rows:
            write_rows(self.folder / f"steps-{self.start:08d}.parquet", self.rows)


def save_training(file: Path, texts: Sequence[str], labels: Sequence[Any]) -> None:
    """Write the training documents in their order; a document's several labels as a list."""
    with whole_file(file) as temporary:
        pq.write_table(pa.table({"text": list(texts), "label": list(labels)}), temporary)


def load_training(file: Path) -> tuple[list[str], list[Any]]:
    """Read what :func:`save_training` wrote."""
    if not file.is_file():
        raise RunError(f"{file} is missing: expected the training documents of the path beside it.")
    table = pq.read_table(file)
    return table["text"].to_pylist(), table["label"].to_pylist()


def write_rows(file: Path, rows: Iterable[RecordedBatch]) -> None:
    """Write rows of :data:`ROWS`, a batch each."""
    table = pa.Table.from_pylist(
        [
            {
                "step": row.step,
                "learning_rates": row.learning_rates,
                "documents": row.documents,
                "shape": tuple(row.gradient.shape),
                "gradient": row.gradient.double().flatten().numpy(),
                "inputs": row.inputs,
                "random": row.random,
                "device_random": row.device_random,
            }
            for row in rows
        ],
        schema=ROWS,
    )
    with whole_file(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_rows(file: Path) -> list[RecordedBatch]:
    """Read what :func:`write_rows` wrote; gradients are float64."""
    return [
        RecordedBatch(
            step=row["step"],
            learning_rates=tuple(row["learning_rates"]),
            documents=tuple(row["documents"]),
            gradient=torch.tensor(row["gradient"], dtype=torch.float64).reshape(row["shape"]),
            inputs=row["inputs"],
            random=row["random"],
            device_random=row["device_random"],
        )
        for row in pq.read_table(file, schema=ROWS).to_pylist()
    ]


@dataclass(frozen=True)
class DiskPlan:
    """What a path will take: ``snapshots`` of them, one every ``every`` steps, and bytes in all."""

    every: int
    snapshots: int
    bytes: int


def plan_disk(steps: int, snapshot: int, constants: int, row: int, budget: float) -> DiskPlan:
    """Choose how often to keep a snapshot: every √steps, or more rarely to stay in the budget.

    The √ makes the sum of snapshots on disk and of states between two of them the least.

    Args:
        steps: updates of the training.
        snapshot: bytes of one.
        constants: bytes of what does not change.
        row: bytes of the record of one update.
        budget: bytes allowed.

    Raises:
        OptionError: the start, the end and the rows alone are more than the budget.

    >>> plan_disk(steps=100, snapshot=10, constants=0, row=1, budget=1000)
    DiskPlan(every=10, snapshots=11, bytes=210)
    >>> plan_disk(steps=100, snapshot=10, constants=0, row=1, budget=150)
    DiskPlan(every=25, snapshots=5, bytes=150)
    """
    fixed = constants + steps * row
    affordable = int((budget - fixed) // max(snapshot, 1))
    if affordable < 2:
        raise OptionError(
            f"the training path takes at least {(fixed + 2 * snapshot) / 1e9:.3g} GB: its start, "
            f"its end and {steps} steps. The path budget is {budget / 1e9:.3g} GB. Raise it, train "
            "fewer steps, or freeze some of the parameters."
        )
    every = max(math.isqrt(max(steps, 1)), math.ceil(steps / (affordable - 1)), 1)
    number = math.ceil(steps / every) + 1
    return DiskPlan(every, number, fixed + number * snapshot)


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors of any device to a safetensors file, whole."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with whole_file(file) as temporary:
        save_file(plain, temporary)


def _brief(value: Any) -> str:
    """A few words of it: groups list every parameter."""
    if isinstance(value, list):
        value = [group["options"] for group in value]
    text = str(value)
    return text if len(text) <= 300 else text[:299] + "…"


def _numbered(folder: Path, kind: str, suffix: str) -> dict[int, Path]:
    return {int(f.stem.split("-")[1]): f for f in folder.glob(f"{kind}-*.{suffix}")}
