"""The run folder: create it, read it, never leave it half-written (docs/run-folder.md)."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from longarc.data.labels import LabelSpace
from longarc.errors import OptionError, RunError
from longarc.files import check_place, refuse_own_sources, write_text
from longarc.hold import clear, is_empty
from longarc.training.config import TrainConfig
from longarc.version import __version__


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where each part of a run lies. Opening reads nothing; each property is a path.

    ``verb`` is the command that made it, ``call`` the same in Python, and ``options`` the kind of
    its options.
    """

    path: Path

    verb: ClassVar[str] = "train"
    call: ClassVar[str] = "longarc.fit"
    options: ClassVar[type] = TrainConfig

    @property
    def config_file(self) -> Path:
        """Every option, and where the run came from."""
        return self.path / "config.yaml"

    @property
    def labels_file(self) -> Path:
        """The label space."""
        return self.path / "labels.json"

    @property
    def model(self) -> Path:
        """The Hugging Face checkpoint; it exists once training is complete."""
        return self.path / "model"

    @property
    def linear(self) -> Path:
        """The linear classifier whose margins a hybrid adds to the model's logits."""
        return self.path / "linear"

    @property
    def checkpoints(self) -> Path:
        """Resumable state."""
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """The last file that a training run writes before its report."""
        return self.path / "metrics.json"

    @property
    def predictions_file(self) -> Path:
        """A row for each validation and test document."""
        return self.path / "predictions.parquet"

    @property
    def log_file(self) -> Path:
        """The training log."""
        return self.path / "log.jsonl"

    @property
    def check_file(self) -> Path:
        """What was noteworthy about the table."""
        return self.path / "check.json"

    @property
    def recipe_file(self) -> Path:
        """What a recipe tried and chose; absent from a run without one."""
        return self.path / "recipe.json"

    @property
    def attention_file(self) -> Path:
        """How near a learned attention comes to the exact one; absent from a run without it."""
        return self.path / "attention.json"

    @property
    def recorded(self) -> Path:
        """The path of the training; absent from a run that recorded none."""
        return self.path / "path"

    @property
    def training_file(self) -> Path:
        """The training documents of a recorded path, in the order it counts them."""
        return self.recorded / "training.parquet"

    @property
    def explanations_file(self) -> Path:
        """Predictions that were explained for the report; absent before ``explain --errors``."""
        return self.path / "explanations.json"

    def refuse_unrecorded(self) -> None:
        """Raise RunError if the run kept no training path, which explanations are made from."""
        if not self.recorded.is_dir():
            raise RunError(
                f"the run in {self.path} recorded no training path, so nothing is known of how its "
                "documents made its predictions. Train it again with the path: longarc train "
                f"--config {shlex.quote(str(self.config_file))} --record-path --out "
                + shlex.quote(f"{self.path}-recorded")
            )

    def config(self) -> Any:
        """The options of the run, defaults of a newer version filled in."""
        values = self._values()
        known = {f.name for f in dataclasses.fields(self.options)}
        return self.options(**{k: v for k, v in values.items() if k in known})

    def provenance(self) -> dict[str, Any]:
        """Versions, command, data hash."""
        return self._values().get("provenance") or {}

    def labels(self) -> LabelSpace:
        """The label space."""
        return LabelSpace.load(self.labels_file)

    def metrics(self) -> dict[str, Any]:
        """Validation and test figures, with the baselines'."""
        return json.loads(self.metrics_file.read_text(encoding="utf-8"))

    def recipe(self) -> dict[str, Any]:
        """What a recipe has tried and chosen so far; empty without one."""
        if not self.recipe_file.is_file():
            return {}
        return json.loads(self.recipe_file.read_text(encoding="utf-8"))

    def settle(self, **options: Any) -> None:
        """Write options that were left to the run itself into ``config.yaml``."""
        values = self._values() | options
        write_text(self.config_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    @property
    def complete(self) -> bool:
        """Whether training ended and everything was written."""
        return self.metrics_file.is_file() and self.model.is_dir()

    @property
    def resuming_command(self) -> str:
        """The command that goes on with the run."""
        return f"longarc {self.verb} --resume --out {shlex.quote(str(self.path))}"

    def how_to_resume(self, data: str) -> str:
        """A sentence on how to go on; documents that were given in Python have to be again."""
        if data.startswith("<"):
            return f"Go on with: {self.call}(the same data and options, resume=True)"
        return f"Go on with: {self.resuming_command}"

    def _values(self) -> dict[str, Any]:
        try:
            values = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise RunError(f"cannot read {self.config_file}: {error}") from None
        if not isinstance(values, dict):
            raise RunError(f"{self.config_file} holds no options: expected a mapping.")
        return values


Folder = TypeVar("Folder", bound=RunFolder)


def is_pretraining(path: str | Path) -> bool:
    """Whether a run folder says that ``longarc pretrain`` made it; False for anything else."""
    try:
        values = yaml.safe_load((Path(path) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(values, dict) and "objective" in values


def is_run(name: str | Path) -> bool:
    """Whether a name is the folder of a classifier's run, rather than a model."""
    folder = Path(name).expanduser()
    return (folder / "config.yaml").is_file() and not is_pretraining(folder)


def open_run_folder(
    path: str | Path, *, complete: bool = True, kind: type[Folder] = RunFolder
) -> Folder:
    """A run folder that exists; with ``complete``, one whose training has ended.

    Raises :class:`~longarc.errors.RunError` that says what is missing and what to do.
    """
    folder = kind(Path(path).expanduser())
    if folder.path.is_file():
        raise RunError(f"{folder.path} is a file: expected a run folder, such as runs/tickets.")
    if not folder.path.is_dir():
        raise RunError(
            f"no run folder at {folder.path}. Make one with: "
            f"longarc {kind.verb} DATA --out {shlex.quote(str(folder.path))}"
        )
    if (folder.path / "compare.yaml").is_file():
        raise RunError(
            f"{folder.path} is a comparison. Name one of its runs, such as "
            f"{folder.path}/candidates/NAME/seed-0/run."
        )
    if not folder.config_file.is_file():
        inside = ", ".join(sorted(p.name for p in folder.path.iterdir())[:8]) or "nothing"
        raise RunError(
            f"{folder.path} is not a run folder: expected config.yaml in it, found {inside}."
        )
    if is_pretraining(folder.path) != (kind.verb == "pretrain"):
        if kind.verb == "pretrain":
            raise RunError(f"{folder.path} is a run of longarc train, not of longarc pretrain.")
        raise RunError(
            f"{folder.path} is a run of longarc pretrain: it has an encoder and no classes. Train "
            f"a classifier with: longarc train DATA --model {shlex.quote(str(folder.model))} --out "
            "runs/NAME"
        )
    if complete and not folder.complete:
        raise RunError(
            f"the run in {folder.path} has not ended: it has no "
            f"{'model/' if not folder.model.is_dir() else 'metrics.json'}. "
            f"Go on with: {folder.resuming_command}"
        )
    return folder


def refuse_existing(config: Any, kind: type[RunFolder] = RunFolder) -> None:
    """Raise RunError when ``--out`` is taken and neither resumed nor overwritten.

    With ``resume``: when there is no run to go on with, or a complete one.
    """
    path = config.run
    if config.resume:
        if open_run_folder(path, complete=False, kind=kind).complete:
            raise RunError(
                f"the run in {path} is complete: nothing is left to resume. Replace it with "
                "--overwrite, or name another folder with --out."
            )
        return
    check_place(path / "config.yaml" if path.is_dir() else path)
    if not path.exists() or (path.is_dir() and is_empty(path)):
        return
    if path.is_symlink() and config.overwrite:
        raise RunError(f"{path} is a link: name the folder it leads to, {path.resolve()}.")
    if not path.is_dir():
        raise RunError(f"{path} is a file. Name another folder with --out.")
    if not (path / "config.yaml").is_file():
        raise RunError(
            f"{path} exists and is not a run folder, so it is never overwritten. "
            "Name another folder with --out."
        )
    if not config.overwrite:
        state = "a complete run" if kind(path).complete else "an unfinished run"
        raise RunError(
            f"{path} holds {state}. Name another folder with --out, go on with --resume, or "
            "replace it with --overwrite."
        )
    sources = ("data", "validation", "test", "unlabelled", "model", "embeddings")
    refuse_own_sources(path, (getattr(config, name, None) for name in sources))


def create_run_folder(
    config: Any, provenance: dict[str, Any], kind: type[Folder] = RunFolder
) -> Folder:
    """Make the folder, write ``config.yaml``, and keep a resumed run's files as they are.

    A resumed run must have the options and the data of its first start: what differs is named in
    the RunError.
    """
    folder = kind(config.run)
    if config.resume:
        differing = folder.config().differences(config)
        if differing:
            named = "; ".join(
                f"{k}: {old!r} then, {new!r} now" for k, (old, new) in differing.items()
            )
            raise RunError(
                f"the run in {folder.path} started with other options ({named}). Resume with the "
                f"same ones: {folder.resuming_command}"
            )
        if folder.provenance().get("data_sha256") != provenance["data_sha256"]:
            raise RunError(
                f"the texts or labels of {config.data} have changed since the run in {folder.path} "
                "started. Restore them, or start anew with --overwrite."
            )
        then, now = (origin.get("processes") for origin in (folder.provenance(), provenance))
        if then != now:
            raise RunError(
                f"the run in {folder.path} started with {then} processes or GPUs, and now there "
                f"are {now}. Resume with as many, or start anew with --overwrite."
            )
        return folder
    values = dataclasses.asdict(config) | {"overwrite": False, "provenance": provenance}
    try:
        settings = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise OptionError(
            f"an option has a value that {folder.config_file.name} cannot hold: {error}. Expected "
            "numbers, texts, and lists or mappings of these."
        ) from None
    if config.overwrite:
        if folder.path.exists():
            clear(folder.path)
    else:
        refuse_existing(config, kind)  # again: preparation took a while
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        folder.config_file.touch(exist_ok=False)
    except FileExistsError:
        raise RunError(
            f"another run has just started in {folder.path}. Name another folder with --out."
        ) from None
    write_text(folder.config_file, settings)
    return folder


def describe_origin(data_sha256: str, **facts: Any) -> dict[str, Any]:
    """The ``provenance`` of config.yaml: versions, platform, command, git commit, data hash."""
    return {
        "longarc": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([*_program(Path(sys.argv[0])), *sys.argv[1:]]),
        "git": _git_commit(),
        "data_sha256": data_sha256,
        **facts,
    }


def _program(started: Path) -> list[str]:
    """How the program is called again that a path started; a launcher such as torchrun is unknown.

    >>> _program(Path("/usr/bin/longarc")), _program(Path("/lib/longarc/__main__.py"))
    (['longarc'], ['python', '-m', 'longarc'])
    """
    is_module = started.name == "__main__.py" and started.parent.name
    return ["python", "-m", started.parent.name] if is_module else [started.name]


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def hash_texts(parts: Iterable[str]) -> str:
    """SHA-256 over strings, each with its length in front so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()
