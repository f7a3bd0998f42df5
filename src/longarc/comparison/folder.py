"""The folder of a comparison: what it is of, where its candidates lie, and who may write there."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longarc.comparison.candidates import Candidate, in_a_file
from longarc.comparison.children import PATIENCE
from longarc.comparison.config import CompareConfig
from longarc.comparison.slot import Slot
from longarc.errors import RunError
from longarc.files import check_place, refuse_own_sources, refuse_taken, write_text
from longarc.hold import clear, held, is_empty


@dataclass(frozen=True)
class CompareFolder:
    """Where each part of a comparison lies; each property is a path."""

    path: Path

    @property
    def settings(self) -> Path:
        """Every option, the candidates, and what is known of the data."""
        return self.path / "compare.yaml"

    @property
    def data(self) -> Path:
        """The table, where it was in memory or packaged."""
        return self.path / "data.parquet"

    @property
    def documents(self) -> Path:
        """The texts that the speed of prediction is measured on."""
        return self.path / "documents.json"

    @property
    def reading(self) -> Path:
        """The speed of prediction of each candidate."""
        return self.path / "reading.json"

    @property
    def models(self) -> Path:
        """Untrained encoders."""
        return self.path / "models"

    @property
    def figures(self) -> Path:
        """What was found, as JSON; the last file that is written but for the page."""
        return self.path / "compare.json"

    @property
    def page(self) -> Path:
        """What was found, as a page."""
        return self.path / "compare.html"

    def slot(self, candidate: str, seed: int) -> Slot:
        """The files of one candidate with one seed."""
        return Slot(self.path / "candidates" / candidate / f"seed-{seed}")

    def reading_log(self, candidate: str) -> Path:
        """What the process that predicts says."""
        return self.path / "candidates" / candidate / "reading.txt"

    def read_settings(self) -> dict[str, Any]:
        """``options``, ``candidates`` and ``data`` as they were when the comparison began."""
        try:
            found = yaml.safe_load(self.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RunError(f"cannot read {self.settings}: {error}") from None
        if not isinstance(found, dict) or {"options", "candidates", "data"} - found.keys():
            raise RunError(f"{self.settings} is damaged: expected options, candidates and data.")
        return found

    def write_settings(
        self, config: CompareConfig, candidates: list[Candidate], data: dict[str, Any]
    ) -> None:
        """Write down what is compared, before anything runs."""
        values = {
            "options": dataclasses.asdict(config) | {"resume": False, "overwrite": False},
            "candidates": as_saved(candidates),
            "data": data,
        }
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_text(self.settings, text)

    def how_to_resume(self) -> str:
        """The sentence that ends the message of an interruption."""
        return f"Go on with: longarc compare --resume --out {shlex.quote(str(self.path))}"


def as_saved(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Names and options as ``compare.yaml`` has them: a tuple is a list there.

    >>> as_saved([Candidate("a", {"regularizers": ("fgm",)})])
    {'a': {'regularizers': ['fgm']}}
    """
    return {c.name: yaml.safe_load(yaml.safe_dump(c.options)) for c in candidates}


def resumed(config: CompareConfig) -> CompareConfig:
    """The options that the comparison in ``out`` began with.

    Raises RunError if there is none, or if an option is named that was another then.
    """
    folder = CompareFolder(config.folder)
    if not folder.settings.is_file():
        raise RunError(
            f"{folder.path} holds no comparison to go on with. Start one without --resume."
        )
    known = {field.name: field.default for field in dataclasses.fields(CompareConfig)}
    saved = {k: v for k, v in folder.read_settings()["options"].items() if k in known}
    given = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if value != known[name] and name not in ("resume", "overwrite", "out")
    }
    differing = {n: (saved.get(n), v) for n, v in given.items() if saved.get(n) != v}
    if differing:
        named = "; ".join(
            f"{n}: {then!r} then, {now!r} now" for n, (then, now) in differing.items()
        )
        raise RunError(
            f"the comparison in {folder.path} began with other options ({named}). "
            f"{folder.how_to_resume()}"
        )
    return CompareConfig(**{**saved, "out": config.out, "resume": True})


def refuse_existing(config: CompareConfig) -> None:
    """Raise RunError when ``out`` is taken and the comparison in it is not to be replaced."""
    path = config.folder
    if path.is_symlink() or not path.is_dir() or not is_empty(path):
        refuse_taken(
            path,
            "comparison",
            ours=CompareFolder(path).settings.is_file(),
            overwrite=config.overwrite,
            resumable=True,
        )
    check_place(path / "compare.yaml" if path.is_dir() else path)
    files = [config.data, config.validation, config.test]
    files += [config.candidates] if in_a_file(config.candidates) else []
    refuse_own_sources(path, files)


def cleared(config: CompareConfig) -> CompareFolder:
    """The folder of a comparison that begins, empty but for the lock on it."""
    refuse_existing(config)
    folder = CompareFolder(config.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    for slot in folder.path.glob("candidates/*/seed-*/"):
        # The process of a comparison that was killed may still be saving its state there.
        with held(slot, wait=PATIENCE):
            pass
    clear(folder.path)
    return folder
