"""An index on the disk: ``index.json``, and files of rows that appear whole or not at all.

``part-STEP-NUMBER.safetensors`` has the rows of up to ``part`` documents at a checkpoint:
``documents`` (n,) int64, ``scales`` (n,) float32 and ``rows`` (n, size), float16 unless another
type was asked for; a row is its numbers times its scale.
``kept.safetensors`` has the weights that the training handed over, where they are no snapshot.
A part that is there is done: that is all it takes to go on after an interruption, with any number
of processes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from longarc.attribution.index.hashed import Hashed
from longarc.attribution.index.plan import Checkpoint, as_checkpoints
from longarc.attribution.index.projection import Projection, Sketches, Whole, balanced
from longarc.errors import RunError
from longarc.files import write_json
from longarc.training.recording.recorded_path import RecordedPath, save_tensors

FORMAT = 1


class Index:
    """A folder with an index; the rows stay on the disk and are mapped into memory.

    Raises :class:`~longarc.errors.RunError` if there is none, or one of another longarc.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        if not self.about_file.is_file():
            raise RunError(
                f"no index at {self.folder}: expected index.json in it. Build one with longarc "
                "explain RUN --build-index."
            )
        self.about: dict[str, Any] = json.loads(self.about_file.read_text(encoding="utf-8"))
        if self.about.get("format") != FORMAT:
            raise RunError(
                f"{self.about_file} has format {self.about.get('format')}; this longarc reads "
                f"{FORMAT}. Build the index anew with --overwrite-index."
            )

    @property
    def about_file(self) -> Path:
        """What the index is of, and how it was built."""
        return self.folder / "index.json"

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """In the order of the training."""
        return as_checkpoints(self.about["checkpoints"])

    @property
    def parts(self) -> list[tuple[int, int]]:
        """All parts the index is to have: (step of the checkpoint, number)."""
        return [
            (row["step"], number)
            for row in self.about["checkpoints"]
            for number in range(-(-row["documents"] // self.about["part"]))
        ]

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The parts that are still to be built."""
        return [part for part in self.parts if not self.part_file(*part).is_file()]

    def require_whole(self) -> None:
        """Raise RunError where parts are missing."""
        if missing := self.missing:
            raise RunError(
                f"the index in {self.folder} is not whole: {len(missing)} of {len(self.parts)} "
                "parts are missing. Go on building it with longarc explain RUN --build-index."
            )

    @property
    def rows(self) -> int:
        """Rows of the whole index: documents, once for each checkpoint whose steps visited them."""
        return sum(row["documents"] for row in self.about["checkpoints"])

    def rows_of(self, step: int, number: int) -> int:
        """Rows of a part."""
        (row,) = (row for row in self.about["checkpoints"] if row["step"] == step)
        return min(self.about["part"], row["documents"] - number * self.about["part"])

    def part_file(self, step: int, number: int) -> Path:
        """Where a part is or will be."""
        return self.folder / f"part-{step:08d}-{number:06d}.safetensors"

    def write_part(self, step: int, number: int, documents: np.ndarray, rows: Tensor) -> None:
        """Write rows (n, size) of documents (n,), each scaled to its largest number."""
        scales = rows.abs().amax(dim=1)
        scales = torch.where(scales > 0, scales, 1.0)
        kind = getattr(torch, self.about["dtype"])
        tensors = {
            "documents": torch.from_numpy(documents).long(),
            "scales": scales.to(torch.promote_types(kind, torch.float32)),
            "rows": (rows / scales[:, None]).to(kind),
        }
        save_tensors(tensors, self.part_file(step, number))

    def read_part(self, step: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) documents, (n,) scales and (n, size) rows, mapped from the file."""
        with safe_open(self.part_file(step, number), framework="pt") as file:
            return (
                file.get_tensor("documents"),
                file.get_tensor("scales"),
                file.get_tensor("rows"),
            )

    def each_part(self, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The parts of a checkpoint, as of :meth:`read_part`."""
        for at, number in self.parts:
            if at == step:
                yield self.read_part(at, number)

    def projection(
        self, step: int, like: Mapping[str, Tensor], sizes: Mapping[str, Tensor] | None
    ) -> Projection:
        """The projection of a checkpoint's rows; each checkpoint has signs of its own.

        Args:
            step: the checkpoint.
            like: the parameters, by name.
            sizes: their step sizes there, whose roots balance it; None for all 1.
        """
        names = self.about["parameters"]
        shapes = {name: tuple(like[name].shape) for name in names}
        some = like[names[0]].detach()
        size, seed = self.about["dimensions"], hash_of(f"{self.about['seed']}/{step}")
        sizes = {} if sizes is None else {name: sizes[name].to(some) for name in names}
        if size is None:
            return Whole(shapes, like=some)
        if self.about["projection"] == "factored":
            balance = {name: balanced(each) for name, each in sizes.items()}
            return Sketches(shapes, size, seed=seed, balance=balance, like=some)
        roots = {name: each.sqrt() for name, each in sizes.items()}
        return Hashed(shapes, size, seed=seed, weights=roots, like=some)

    def kept_weights(self, path: RecordedPath) -> dict[str, Tensor]:
        """The trained parameters that the training handed over, by name."""
        file = self.folder / "kept.safetensors"
        if file.is_file():
            return load_file(file)
        return path.parameters(path.kept)

    def write_kept(self, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights that no snapshot has."""
        save_tensors(weights, self.folder / "kept.safetensors")


def create(folder: Path, about: dict[str, Any]) -> Index:
    """Begin an index, or go on with the one that is there.

    Raises RunError where that is of another path or was begun with other options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, **about}
    if (folder / "index.json").is_file():
        index = Index(folder)
        for name in about:
            if index.about.get(name) != about[name]:
                told = "at most so many checkpoints:" if name == "asked" else name
                what = f"{told} {_brief(index.about.get(name))}, not {_brief(about[name])}"
                if name == "path":
                    what = "another training path"
                raise RunError(
                    f"the index in {folder} is of {what}. Build it anew with --overwrite-index, or "
                    "give the options it was built with."
                )
        return index
    write_json(folder / "index.json", about)
    return Index(folder)


def remove(folder: Path) -> None:
    """Remove an index; the description first, so that no part is taken for one of a new index."""
    (folder / "index.json").unlink(missing_ok=True)
    for file in folder.glob("part-*.safetensors"):
        file.unlink()
    (folder / "kept.safetensors").unlink(missing_ok=True)


def path_identity(path: RecordedPath) -> str:
    """A checksum that another training would not share: of its options and its last steps."""
    last = max(path.folder.glob("steps-*.parquet"), default=None)
    about = zlib.crc32(path.about_file.read_bytes())
    return f"{about:08x}-{zlib.crc32(last.read_bytes() if last else b''):08x}"


def hash_of(text: str) -> int:
    """A whole number that depends on a text alone."""
    return zlib.crc32(text.encode())


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:99] + "…"
