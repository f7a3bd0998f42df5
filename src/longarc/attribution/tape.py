"""The states between two snapshots, on a nameless file: a sweep reads them from the last back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from longarc.attribution.update import Update, updates, without_state
from longarc.training.recording.recorded_path import RecordedBatch
from longarc.training.recording.replay import Replay


class Tape:
    """Parameters before each step, and after the last, with each step's update.

    The numbers lie in a file that is mapped into memory: the system keeps in memory what fits.

    Args:
        like: the parameters.
        steps: of the segment.
        moments: whether step sizes are vectors (Adam), which take as much again.
        place: folder for the file, which is gone when the block ends or the process does.
    """

    def __init__(self, like: Mapping[str, Tensor], steps: int, *, moments: bool, place: Path):
        self.shapes = {name: tensor.shape for name, tensor in like.items()}
        self.sizes = [tensor.numel() for tensor in like.values()]
        self.device = next(iter(like.values())).device
        # Widening is exact, so one type serves parameters of several.
        dtype = torch.float32
        for tensor in like.values():
            dtype = torch.promote_types(dtype, tensor.dtype)
        rows, width = (steps + 1) + steps * moments, sum(self.sizes)
        # The file loses its name once it is mapped: nothing is left by a process that is killed.
        with tempfile.NamedTemporaryFile(dir=place, prefix=".sweep-") as file:
            whole = torch.from_file(file.name, shared=True, size=max(rows * width, 1), dtype=dtype)
        self._rows = whole[: rows * width].view(rows, width)
        self._states = self._rows[: steps + 1]
        self._scales = self._rows[steps + 1 :]
        self.updates: list[dict[str, Update]] = []
        self.clips: list[float] = []

    def __enter__(self) -> Tape:
        return self

    def __exit__(self, *_: object) -> None:
        del self._states, self._scales, self._rows

    def state(self, step: int) -> Tensor:
        """All parameters before a step of the segment, flat; a copy on their device."""
        return self._states[step].to(self.device, copy=True)

    def keep_state(self, step: int, parameters: Mapping[str, Tensor]) -> None:
        """Write the parameters before a step."""
        with torch.no_grad():
            for part, parameter in zip(
                self._states[step].split(self.sizes), parameters.values(), strict=True
            ):
                part.copy_(parameter.flatten())

    def keep_update(self, step: int, update: dict[str, Update], clip: float) -> None:
        """Write what the step did; vectors of step sizes go to the file."""
        self.clips.append(clip)
        places = dict(zip(self.shapes, self._places(step), strict=True))
        kept = dict(update)
        for name, coefficients in update.items():
            if isinstance(coefficients.scale, Tensor):
                places[name].copy_(coefficients.scale.flatten())
                kept[name] = replace(coefficients, scale=places[name].view(self.shapes[name]))
        self.updates.append(kept)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector's parts, by parameter."""
        parts = flat.split(self.sizes)
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _places(self, step: int) -> list[Tensor]:
        if not len(self._scales):
            return [torch.empty(0)] * len(self.sizes)
        return list(self._scales[step].split(self.sizes))


@contextmanager
def taped(
    replay: Replay, first: int, after: int
) -> Iterator[tuple[Tape, list[list[RecordedBatch]]]]:
    """Replay the steps from a snapshot on, forward: the tape of them, and the batches of each."""
    recorded, parameters = replay.path.batches(first, after), replay.parameters
    vectors = replay.path.about["optimizer"] != "SGD"
    replay.go_to(first)
    with Tape(parameters, after - first, moments=vectors, place=replay.path.folder) as tape:
        for i, batches in enumerate(recorded):
            tape.keep_state(i, parameters)
            fresh = without_state(replay.optimizer, parameters)
            clip = replay.step(batches)
            tape.keep_update(i, updates(replay.optimizer, parameters, fresh), clip)
        tape.keep_state(len(recorded), parameters)
        yield tape, recorded
