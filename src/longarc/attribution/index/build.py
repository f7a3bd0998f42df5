"""Build an index of a recorded path: each checkpoint's documents, forward and back, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longarc.attribution.index.layers import layers_of, project
from longarc.attribution.index.plan import (
    Checkpoint,
    clip_factors,
    loss_gradients,
    plan_checkpoints,
    step_sizes,
)
from longarc.attribution.index.projection import Projection
from longarc.attribution.index.store import Index, create, path_identity
from longarc.errors import ModelError, OptionError
from longarc.options import check_choice, check_whole
from longarc.training.disk_space import free_space
from longarc.training.recording.recorded_path import RecordedPath
from longarc.training.recording.replay import Replay, logits_of
from longarc.version import __version__

Progress = Callable[[int], AbstractContextManager[Callable[[float], Any]]]

PROJECTIONS = ("hashed", "factored")

TYPES = ("float16", "float32", "float64")


def build_index(
    path: RecordedPath,
    model: nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    folder: str | Path | None = None,
    *,
    checkpoints: int = 5,
    dimensions: int | None = 1024,
    parameters: Callable[[str], bool] | None = None,
    projection: str = "hashed",
    seed: int = 0,
    batch_size: int = 32,
    part: int = 1024,
    dtype: str = "float16",
    say: Callable[[str], Any] | None = None,
    progress: Progress | None = None,
) -> Index:
    """Project the gradient of every training document at a few snapshots of a path.

    An index that was interrupted goes on; one that is whole is returned as it is. Started by
    ``torchrun``, each process builds every n-th part. The model comes out as it went in.

    Args:
        path: what a :class:`~longarc.PathRecorder` recorded.
        model: of the architecture that was trained; its weights do not matter.
        dataset: the training set, in the order it had.
        collate: makes a batch of its items, as in training.
        folder: where to build; None for ``index/`` in the path's folder.
        checkpoints: snapshots to use, at most. The documents that were visited in the steps it
            stands for are indexed at each; five keep the cost near that of five epochs or less.
        dimensions: numbers for each document and checkpoint, a multiple of 64; None for the whole
            gradient, which only small models allow. The sampling error falls with the root.
        parameters: which of the trained parameters count, by name; None for all.
        projection: ``hashed`` forms each layer's gradient for a batch and sums it up; ``factored``
            never does, which is less work where layers are thousands of units wide, and errs more
            for the same dimensions.
        seed: of the random signs.
        batch_size: documents at once; of no influence but on speed.
        part: documents in a file, and so what an interruption may lose.
        dtype: of the stored numbers: ``float16``, ``float32`` or ``float64``.
        say: is told beforehand how much disk it will be.
        progress: is called with the number of rows to make, and gives a block in which a function
            is called with how many more are done.

    Raises:
        OptionError: options out of range; a disk that is too small; no parameter left.
        ModelError: a layer of another kind than linear, embedding or norm; a model that does not
            fit the path.
        DataError: a training set that does not fit.
        RunError: the folder has an index of another path or with other options.

    Example: ``docs/explanations.md``.
    """
    check_whole("checkpoints", checkpoints, at_least=1)
    check_whole("batch_size", batch_size, at_least=1)
    check_whole("part", part, at_least=1)
    check_choice("dtype", dtype, TYPES)
    check_choice("projection", projection, PROJECTIONS)
    if dimensions is not None and check_whole("dimensions", dimensions, at_least=128) % 64:
        raise OptionError(f"dimensions must be a multiple of 64; found {dimensions}.")
    place = path.folder / "index" if folder is None else Path(folder).expanduser()
    trained = [name for group in path.about["groups"] for name in group["parameters"]]
    names = [name for name in trained if parameters is None or parameters(name)]
    if not names:
        raise OptionError(
            "no trained parameter is left to index. Trained were: "
            f"{', '.join(trained[:8])}{' …' if len(trained) > 8 else ''}."
        )
    layers_of(model, names)
    plan = plan_checkpoints(path, checkpoints)
    replay = Replay(path, model, dataset, collate)  # here, so that a wrong training set is told
    documents = {c.step: _visited(path, c) for c in plan.checkpoints}
    about = {
        "longarc": __version__,
        "path": path_identity(path),
        "documents": path.about["documents"],
        "parameters": names,
        "dimensions": dimensions,
        "projection": projection,
        "seed": seed,
        "part": part,
        "dtype": dtype,
        "asked": checkpoints,
        "checkpoints": [
            _plain(asdict(c)) | {"documents": len(documents[c.step])} for c in plan.checkpoints
        ],
    }
    size = dimensions or sum(p.numel() for n, p in model.named_parameters() if n in set(names))
    _refuse_full_disk(place, about, size, say)
    index = create(place, about)
    rank, world = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    mine = {part for part in index.parts[rank::world] if not index.part_file(*part).is_file()}
    if mine or not _has_kept(index, path):
        total = sum(index.rows_of(*part) for part in mine)
        with replay, progress(total) if progress else nullcontext() as advance:
            _Builder(index, replay, batch_size, advance).run(plan.rates, mine)
    return index


class _Builder:
    def __init__(
        self,
        index: Index,
        replay: Replay,
        batch_size: int,
        advance: Callable[[float], Any] | None,
    ):
        self.index, self.replay = index, replay
        self.batch_size, self.advance = batch_size, advance
        self.names = index.about["parameters"]
        self.checked = False

    def run(self, rates: np.ndarray, mine: set[tuple[int, int]]) -> None:
        replay, index = self.replay, self.index
        if not _has_kept(index, replay.path):
            self._keep_weights()
        clips = clip_factors(replay) if mine else rates
        for checkpoint in index.checkpoints:
            numbers = sorted(number for step, number in mine if step == checkpoint.step)
            if not numbers:
                continue
            documents, gradients = loss_gradients(replay.path, checkpoint, rates, clips)
            replay.go_to(checkpoint.step)
            replay.model.eval()
            sizes = step_sizes(replay.path, checkpoint)
            projection = index.projection(checkpoint.step, replay.parameters, sizes)
            if not self.checked:
                self._check(projection, documents, gradients)
            for number in numbers:
                some = slice(number * index.about["part"], (number + 1) * index.about["part"])
                rows = self._rows(projection, documents[some], gradients[some])
                index.write_part(checkpoint.step, number, documents[some], rows)

    def _rows(self, projection: Projection, documents: np.ndarray, gradients: Tensor) -> Tensor:
        found: Tensor | None = None
        for batch in self._batches(documents):
            inputs = self.replay.inputs_of(documents[batch])
            alpha = gradients[torch.from_numpy(batch)]

            def backward(inputs: Any = inputs, alpha: Tensor = alpha) -> Tensor:
                return self._backward(inputs, alpha)

            rows = project(self.replay.model, self.names, projection, backward).cpu()
            if found is None:
                found = rows.new_zeros(len(documents), projection.size)
            found[torch.from_numpy(batch)] = rows
            if self.advance is not None:
                self.advance(len(batch))
        assert found is not None
        return found

    def _batches(self, documents: np.ndarray) -> Iterator[np.ndarray]:
        """Places of documents of like length, so that little is padding."""
        lengths = getattr(self.replay.dataset, "lengths", None)
        order = np.arange(len(documents))
        if lengths is not None:
            order = np.argsort(-np.asarray(lengths)[documents], kind="stable")
        for first in range(0, len(order), self.batch_size):
            yield order[first : first + self.batch_size]

    def _backward(self, inputs: Mapping[str, Any], alpha: Tensor) -> Tensor:
        logits = logits_of(self.replay.model(**inputs))
        if logits.requires_grad:
            logits.backward(alpha.to(logits))
        return logits.detach()

    def _check(self, projection: Projection, documents: np.ndarray, gradients: Tensor) -> None:
        """The first rows add up to the projection of the whole gradient, or a layer is not as told.

        The documents of a recorded batch are compared with their checksum on the way.
        """
        path, model = self.replay.path, self.replay.model
        first = self.index.checkpoints[0].first
        self.replay.inputs(path.batches(first, first + 1)[0][0])
        some = documents[: min(4, self.batch_size)]
        rows = self._rows_of(projection, some, gradients[: len(some)])
        model.zero_grad()
        self._backward(self.replay.inputs_of(some), gradients[: len(some)])
        # A direction is divided by the scale, a gradient multiplied.
        whole = {
            name: parameter.grad * projection.scale(name) ** 2
            for name, parameter in self.replay.parameters.items()
            if name in self.names and parameter.grad is not None
        }
        expected = projection.direction(whole)
        model.zero_grad()
        error = float((rows.sum(dim=0) - expected.cpu()).norm())
        if error > 1e-3 * float(rows.norm(dim=1).sum()):
            raise ModelError(
                "the gradients of single documents do not add up to that of their batch: the model "
                "uses a layer otherwise than its kind says. Leave it out of the index with "
                "parameters=, or use the exact method."
            )
        self.checked = True

    def _rows_of(self, projection: Projection, some: np.ndarray, gradients: Tensor) -> Tensor:
        advance, self.advance = self.advance, None
        try:
            return self._rows(projection, some, gradients)
        finally:
            self.advance = advance

    def _keep_weights(self) -> None:
        """Replay to the step whose weights the training handed over: no snapshot has them."""
        replay, kept = self.replay, self.replay.path.kept
        first, after = replay.path.segments(kept)[-1]
        replay.go_to(first)
        for batches in replay.path.batches(first, after):
            replay.step(batches)
        self.index.write_kept({n: p.detach() for n, p in replay.parameters.items()})


def _has_kept(index: Index, path: RecordedPath) -> bool:
    return path.kept in path.snapshots or (index.folder / "kept.safetensors").is_file()


def _visited(path: RecordedPath, checkpoint: Checkpoint) -> set[int]:
    every = path.about["every"]
    found: set[int] = set()
    for first in range(checkpoint.first, checkpoint.after, every):
        for batches in path.batches(first, min(first + every, checkpoint.after)):
            found.update(*(batch.documents for batch in batches))
    return found


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON reads them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _refuse_full_disk(
    place: Path, about: dict[str, Any], size: int, say: Callable[[str], Any] | None
) -> None:
    rows = sum(row["documents"] for row in about["checkpoints"])
    each = size * getattr(torch, about["dtype"]).itemsize + 12
    needed = rows * each
    there = sum(f.stat().st_size for f in place.glob("part-*.safetensors"))
    if say is not None:
        say(
            f"the index in {place}: {rows} rows of {each} bytes, {needed / 1e9:.3g} GB "
            f"({len(about['checkpoints'])} checkpoints)"
        )
    near, free = free_space(place)
    free += there
    if free < needed:
        raise OptionError(
            f"the index takes {needed / 1e9:.2f} GB, and {near} has {free / 1e9:.2f} GB free. Free "
            "some, ask for fewer dimensions or checkpoints, or name another folder."
        )
