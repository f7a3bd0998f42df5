"""A run folder as the report reads it: every file checked, whatever is optional allowed to lack."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longarc.data.labels import LabelSpace
from longarc.errors import RunError
from longarc.training.run_folder import is_pretraining, open_run_folder

SPLITS = ("test", "validation")
"""The evaluated splits, the one that counts first."""


@dataclass(frozen=True)
class SavedRun:
    """What a run folder says, as plain Python values.

    ``check`` is None; ``log``, ``predictions``, ``recipe``, ``diagnosis`` and ``explained`` are
    empty where the folder has no such file. ``predictions`` leaves the probabilities in the file:
    no page shows them.
    """

    folder: Path
    config: dict[str, Any]
    config_text: str
    space: LabelSpace
    metrics: dict[str, Any]
    check: dict[str, Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)
    explained: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the run came from; empty if the configuration does not say."""
        return as_dict(self.config.get("provenance"))

    @property
    def splits(self) -> list[str]:
        """The splits that the model was evaluated on, ``test`` first."""
        return [split for split in SPLITS if split in self.metrics]

    def systems(self, split: str) -> dict[str, dict[str, Any]]:
        """The model's metrics under ``model``, then those of each baseline under its name."""
        return systems(self.metrics[split])

    def group_sizes(self) -> dict[str, int]:
        """Number of classes in the head, the middle and the tail."""
        return {group: self.space.groups.count(group) for group in ("head", "mid", "tail")}

    def rows(self) -> dict[str, int]:
        """Number of documents by split, as far as the folder tells."""
        known = as_dict(as_dict(self.check).get("rows"))
        evaluated = {s: self.metrics[s]["model"].get("n") for s in reversed(self.splits)}
        both = {**evaluated, **known}
        order = [s for s in ("train", "validation", "test") if s in both]
        return {split: int(both[split]) for split in order if is_number(both[split])}


def systems(split: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics by system from one split of ``metrics.json``: the model first, then the baselines.

    >>> list(systems({"model": {"n": 2}, "baselines": {"tfidf-svm": {"n": 2}}}))
    ['model', 'tfidf-svm']
    """
    return {"model": split["model"], **(split.get("baselines") or {})}


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number (a training loss may be NaN).

    >>> [is_number(value) for value in (0.5, 3, None, float("nan"), True, "0.5")]
    [True, True, False, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(folder: str | Path) -> SavedRun:
    """Read a run folder written by ``longarc train``.

    ``config.yaml``, ``labels.json`` and ``metrics.json`` have to be there; the other files may be
    missing. Raises ``RunError`` if the folder or a needed file is missing or damaged.
    """
    folder = open_run_folder(folder, complete=False).path
    if not (folder / "metrics.json").is_file():
        raise RunError(
            f"{folder} has no metrics.json: its training has not ended. Go on with:"
            f" longarc train --resume --out {shlex.quote(str(folder))}"
        )
    config_text = read_text(folder / "config.yaml")
    config = parse_options(folder / "config.yaml", config_text)
    space = LabelSpace.load(folder / "labels.json")

    metrics = read_json(folder / "metrics.json")
    evaluated = [split for split in SPLITS if split in metrics]
    if not evaluated:
        raise damaged(folder / "metrics.json", "it has neither a `validation` nor a `test` entry")
    for split in evaluated:
        for name, measured in systems({"model": None, **as_dict(metrics[split])}).items():
            if not isinstance(measured, dict):
                raise damaged(
                    folder / "metrics.json", f"`{split}` lacks the metrics of `{name}` as an object"
                )

    check = folder / "check.json"
    return SavedRun(
        folder=folder,
        config=config,
        config_text=config_text,
        space=space,
        metrics=metrics,
        check=read_json(check) if check.is_file() else None,
        log=read_log(folder / "log.jsonl"),
        predictions=_read_predictions(folder / "predictions.parquet"),
        recipe=_read_recipe(folder / "recipe.json"),
        diagnosis=_read_diagnosis(folder),
        explained=read_explained(folder / "explanations.json"),
    )


def parse_options(path: Path, text: str) -> dict[str, Any]:
    """The options in the text of a config.yaml."""
    import yaml

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise damaged(path, f"not valid YAML ({error})") from None
    if not isinstance(config, dict):
        raise damaged(path, "expected a mapping of options")
    return config


def as_dict(value: Any) -> dict[str, Any]:
    """A mapping as it is, anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def damaged(path: Path, reason: str) -> RunError:
    """The error for a file that is not what its run wrote."""
    verb = "pretrain" if is_pretraining(path.parent) else "train"
    return RunError(
        f"{path} is damaged: {reason}. Restore it from a copy, or train again with"
        f" longarc {verb} --config {shlex.quote(str(path.parent / 'config.yaml'))} --out NEW-RUN"
    )


def read_text(path: Path) -> str:
    """A file of a run as text; RunError if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"not UTF-8 at byte {error.start}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A file of a run that is a JSON object; RunError if it is not."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise damaged(path, f"not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise damaged(path, f"expected a JSON object, found {type(value).__name__}")
    return value


_SEARCH = {
    "recommended",
    "range",
    "stability",
    "candidates",
    "validation",
    "run_steps",
    "cost",
    "cost_steps",
}


def _read_recipe(path: Path) -> dict[str, Any]:
    recipe = read_json(path) if path.is_file() else {}
    if "learning_rate" in recipe and _SEARCH - as_dict(recipe["learning_rate"]).keys():
        raise damaged(path, f"`learning_rate` lacks one of {', '.join(sorted(_SEARCH))}")
    for name in ("loss", "second_stage"):
        needed = {"trials", "not_tried", "chosen", "why"}
        if name in recipe and needed - as_dict(recipe[name]).keys():
            raise damaged(path, f"`{name}` lacks one of {', '.join(sorted(needed))}")
    return recipe


def _read_diagnosis(folder: Path) -> dict[str, Any]:
    """What ``longarc diagnose`` found; empty without its page, to which the report leads."""
    path = folder / "diagnosis.json"
    if not path.is_file() or not (folder / "diagnosis.html").is_file():
        return {}
    found = read_json(path)
    if not isinstance(found.get("verdict"), str):
        raise damaged(path, "it lacks a `verdict`")
    return found


def read_explained(path: Path) -> list[dict[str, Any]]:
    """The entries of explanations.json; none without the file."""
    entries = read_json(path).get("explained") if path.is_file() else []
    needed = {"text", "name", "initial", "final", "contributions", "decay", "elsewhere"}
    needed |= {"afterwards", "residual", "relative_residual", "supporting", "opposing"}
    if not isinstance(entries, list) or any(needed - as_dict(e).keys() for e in entries):
        raise damaged(path, f"an entry of `explained` lacks one of {', '.join(sorted(needed))}")
    return entries


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of the log; the last line may be half written if the machine went down."""
    if not path.is_file():
        return []
    lines = read_text(path).splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise damaged(path, f"line {number} is not valid JSON ({error})") from None
        if isinstance(record, dict):
            records.append(record)
    return records


def _read_predictions(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    import pyarrow
    import pyarrow.parquet

    columns = [
        "split", "row", "text_sha256", "excerpt", "label", "prediction", "confidence"
    ]  # fmt: skip
    try:
        return pyarrow.parquet.read_table(path, columns=columns).to_pylist()
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise damaged(path, f"not the expected Parquet table ({error})") from None
