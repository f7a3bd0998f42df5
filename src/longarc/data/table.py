"""Open a table wherever it is, and read it in batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longarc.data.columnar import read_columns, read_dataset, read_frame, read_parquet
from longarc.data.delimited import read_delimited
from longarc.data.json_lines import read_json_lines
from longarc.errors import DataError, OptionError, close_matches

_KINDS = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
    ".json": "JSON Lines",
    ".parquet": "Parquet",
}


@dataclass(frozen=True)
class Table:
    """Rows under named columns, read in batches so that memory stays bounded.

    ``name`` is for messages; ``notes`` are sentences about how the source was understood (its
    delimiter, its split) to print to the user.

    >>> table = open_table({"text": ["a", "b", "c"], "label": ["x", "y", "x"]})
    >>> table.columns
    ['text', 'label']
    >>> list(table.batches(rows=2, columns=["label"]))
    [{'label': ['x', 'y']}, {'label': ['x']}]
    """

    name: str
    columns: list[str]
    reader: Callable[[int, list[str]], Iterator[dict[str, list[Any]]]] = field(repr=False)
    notes: list[str] = field(default_factory=list)

    def batches(
        self, rows: int = 1024, columns: list[str] | None = None
    ) -> Iterator[dict[str, list[Any]]]:
        """Read from the start: dicts from column names to ``rows`` Python values (the last: fewer).

        ``columns`` (default: all) limits what is read, which is much faster where a table has
        columns that are not needed.
        """
        return self.reader(rows, self.columns if columns is None else columns)


def open_table(source: Any, *, to_train: bool = False) -> Table:
    """Open a table.

    Args:
        source: a path to CSV, TSV, JSON Lines (each plain or gzip-compressed) or Parquet; a folder
            that `datasets` saved (``save_to_disk``), or ``folder/split`` where it has several
            splits; the Hugging Face Hub id of a data set, ``owner/name`` or ``owner/name/split``,
            where no such path exists; a pandas DataFrame; a `datasets.Dataset` or a `DatasetDict`
            of one; a dict of columns; or a Table, which is returned.
        to_train: of several splits take ``train``, with a note, as that is the one to train on.
            Otherwise several are refused: figures of the wrong split would look too good.

    Raises:
        DataError: the source is missing, empty, of an unknown kind, or not readable as a table.
            Faults further down in a file are raised while it is read.
        OptionError: a data set has several splits, or not the one that is named.
    """
    if isinstance(source, Table):
        return source
    if isinstance(source, str | Path):
        return _open_path(str(source), to_train)
    package, name = type(source).__module__.partition(".")[0], type(source).__name__
    if package == "datasets":
        return _table(name, read_dataset(source, to_train=to_train))
    if package == "pandas" and name == "DataFrame":
        return _table(name, read_frame(source, name))
    if isinstance(source, Mapping):
        return _table("dict", read_columns(source, "dict"))
    raise DataError(
        f"A {name} is not a table. Expected a path, a pandas DataFrame, a datasets.Dataset or a "
        "dict of columns."
    )


def refuse_missing(*sources: str | None) -> None:
    """Raise DataError for a path to no file, to an empty one or one of no known kind.

    Nothing is opened, so it is done before what takes seconds to load. None and what may be the id
    of a data set are passed over.

    >>> refuse_missing("datasets/ag_news", None)
    """
    for source in filter(None, sources):
        path = Path(source).expanduser()
        if path.is_dir():
            continue
        if not path.exists():
            named = re.fullmatch(r"[\w.-]+/[\w.-]+(/[\w.]+)?", source)
            if named and not _suffix(path) and not path.parent.is_dir():
                continue
            raise _missing(path)
        if not path.is_file():
            raise DataError(
                f"{path} is a pipe or a device, and a table is read more than once. Write it to a "
                "file first."
            )
        if path.stat().st_size == 0:
            raise DataError(
                f"{path} is empty. Expected a table with a header and at least one row."
            )
        if not _suffix(path):
            extension = Path(path.name.removesuffix(".gz")).suffix or "(none)"
            raise DataError(
                f"{path} has the extension {extension}, which says no known kind of table. "
                f"Expected one of {', '.join(_KINDS)} (.gz may follow): save the table as one of "
                "these, or rename it."
            )


def _table(name: str, parts: tuple[list[str], Callable[..., Any], list[str]]) -> Table:
    columns, reader, notes = parts
    return Table(name, columns, reader, notes)


def _open_path(source: str, to_train: bool) -> Table:
    refuse_missing(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, to_train)
    if not path.exists():
        return _open_hub(source, to_train)
    match _KINDS.get(_suffix(path)):
        case "CSV":
            return _table(str(path), read_delimited(path, ","))
        case "TSV":
            return _table(str(path), read_delimited(path, "\t"))
        case "JSON Lines":
            return _table(str(path), read_json_lines(path))
        case "Parquet":
            return _table(str(path), read_parquet(path))
    raise AssertionError(f"{path} has no reader")


def _suffix(path: Path) -> str:
    """The extension of a known kind of table in lower case, else an empty string."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in _KINDS else ""


def _tables_in(folder: Path) -> list[str]:
    """Files of a known kind, and data sets that are saved in folders, such as a split."""
    return sorted(
        file.name for file in folder.iterdir() if _suffix(file) or (file / "state.json").is_file()
    )[:20]


def _missing(path: Path) -> DataError:
    if not path.parent.is_dir():
        return DataError(f"{path} does not exist, nor does the folder {path.parent}.")
    there = _tables_in(path.parent)
    nothing = f"There are no tables in {path.parent.absolute()}."
    help_ = close_matches(path.name, there) if there else nothing
    return DataError(f"{path} does not exist. {help_}")


def _open_folder(path: Path, to_train: bool) -> Table:
    if not any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        there = _tables_in(path)
        raise DataError(
            f"{path} is a folder, but not one that datasets' save_to_disk wrote (no state.json or "
            f"dataset_dict.json). Name a file{': ' + ', '.join(there) if there else ''}."
        )
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # datasets and pyarrow raise many kinds for a damaged folder
        raise DataError(
            f"{path} cannot be read as a data set ({type(error).__name__}: {_first_line(error)}). "
            "Save it again with save_to_disk."
        ) from error
    return _table(str(path), read_dataset(dataset, str(path), to_train=to_train))


def _open_hub(source: str, to_train: bool) -> Table:
    from datasets import load_dataset

    name, split = re.fullmatch(r"([^/]+/[^/]+)/?(.*)", source).groups()  # pyright: ignore[reportOptionalMemberAccess]
    try:
        dataset = load_dataset(name)
    except Exception as error:  # network, permission, missing: the Hub client has a kind for each
        raise DataError(
            f"{source} is no file or folder here, and could not be loaded from the Hugging Face "
            f"Hub either ({type(error).__name__}: {_first_line(error)}). Check the spelling and "
            "the connection, or give a file."
        ) from error
    if split and split not in dataset:
        known = close_matches(split, map(str, dataset))
        raise OptionError(f"{name} has no split {split!r}. {known}")
    dataset = dataset[split] if split else dataset
    return _table(source, read_dataset(dataset, source, to_train=to_train))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
