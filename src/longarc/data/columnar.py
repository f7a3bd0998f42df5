"""Tables that know their columns: Parquet files, Hugging Face datasets, pandas, plain dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longarc.errors import DataError, OptionError

Batches = Callable[[int, list[str]], Iterator[dict[str, list[Any]]]]


def read_parquet(path: Path) -> tuple[list[str], Batches, list[str]]:
    """Columns, a reader of batches, and notes of a Parquet file.

    Columns that `datasets` marked as ``ClassLabel`` give names, not numbers.

    Raises:
        DataError: no rows, repeated column names, or a file that is not Parquet or is damaged, also
            further down.
    """
    from pyarrow import parquet

    with _readable_parquet(path), parquet.ParquetFile(path) as file:
        columns, rows, schema = (
            file.schema_arrow.names,
            file.metadata.num_rows,
            file.schema_arrow,
        )
    _check(str(path), columns, rows)
    class_names: dict[str, list[str]] = {}
    if b"ClassLabel" in (schema.metadata or {}).get(b"huggingface", b""):
        from datasets import Features

        class_names = _class_names(Features.from_arrow_schema(schema))

    def batches(size: int, wanted: list[str]) -> Iterator[dict[str, list[Any]]]:
        with _readable_parquet(path), parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=size, columns=wanted):
                values = batch.to_pydict()
                yield {name: _named(values[name], class_names.get(name)) for name in wanted}

    return columns, batches, []


@contextmanager
def _readable_parquet(path: Path) -> Iterator[None]:
    """Say which file is damaged; pyarrow has an OSError without a number for some kinds of it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no permission, a failing disk
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path} is not a Parquet file, or damaged ({reason}). Write or download it again."
        ) from error


def read_dataset(
    dataset: Any, path: str | None = None, *, to_train: bool = False
) -> tuple[list[str], Batches, list[str]]:
    """Columns, a reader of batches, and notes of a `datasets.Dataset`, or of the one in a dict.

    Of several splits none is read, unless ``to_train``: then ``train``, with a note. ``path`` is
    where it came from, if not from memory; a split's is ``path/split``.
    ``ClassLabel`` columns give names, not numbers, and None where unlabelled (-1).
    """
    name = path or type(dataset).__name__
    notes = []
    if isinstance(dataset, Mapping):
        splits = list(dataset)
        ways = [f"{path}/{split}" if path else f'data["{split}"]' for split in splits]
        if len(splits) != 1 and not (to_train and "train" in splits):
            raise OptionError(
                f"{name} has the splits {', '.join(splits)}, and one table is needed. Name a "
                f"split: {' or '.join(ways)}."
            )
        chosen = "train" if len(splits) > 1 else splits[0]
        if len(splits) > 1:
            others = ", ".join(w for s, w in zip(splits, ways, strict=True) if s != chosen)
            notes.append(f"split: {chosen} (not read: {others})")
        dataset = dataset[chosen]
    if not hasattr(dataset, "num_rows"):
        raise DataError(
            f"{name} is a {type(dataset).__name__}, where a datasets.Dataset was expected. "
            "Load it without streaming."
        )
    columns = list(dataset.column_names)
    _check(name, columns, dataset.num_rows)
    class_names = _class_names(dataset.features)

    def batches(size: int, wanted: list[str]) -> Iterator[dict[str, list[Any]]]:
        for batch in dataset.select_columns(wanted).with_format(None).iter(batch_size=size):
            yield {c: _named(batch[c], class_names.get(c)) for c in wanted}

    return columns, batches, notes


def read_frame(frame: Any, name: str) -> tuple[list[str], Batches, list[str]]:
    """Columns, a reader of batches, and notes of a pandas DataFrame; missing values are None."""
    columns = [str(column) for column in frame.columns]
    _check(name, columns, len(frame))

    def batches(size: int, wanted: list[str]) -> Iterator[dict[str, list[Any]]]:
        places = [(column, columns.index(column)) for column in wanted]
        for start in range(0, len(frame), size):
            batch = {}
            for column, place in places:
                values = frame.iloc[start : start + size, place]
                pairs = zip(values.tolist(), values.isna().tolist(), strict=True)
                batch[column] = [None if missing else _plain(value) for value, missing in pairs]
            yield batch

    return columns, batches, []


def read_columns(columns: Mapping[Any, Any], name: str) -> tuple[list[str], Batches, list[str]]:
    """Columns, a reader of batches, and notes of a mapping from column names to sequences."""
    lists: dict[str, list[Any]] = {}
    for key, values in columns.items():
        if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
            raise DataError(
                f"{name}: column {key!r} is a {type(values).__name__}, where a list was expected."
            )
        lists[str(key)] = [_plain(value) for value in values]
    sizes = {key: len(values) for key, values in lists.items()}
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{key}: {size}" for key, size in sizes.items())
        raise DataError(
            f"{name}: the columns have different lengths ({found}). Give each row a value in "
            "every column."
        )
    total = next(iter(sizes.values()), 0)
    _check(name, list(lists), total)

    def batches(size: int, wanted: list[str]) -> Iterator[dict[str, list[Any]]]:
        for start in range(0, total, size):
            yield {column: lists[column][start : start + size] for column in wanted}

    return list(lists), batches, []


def _plain(value: Any) -> Any:
    """A value of Python: pandas has lists as arrays of numpy, and its own marks for missing."""
    if hasattr(value, "tolist"):
        value = value.tolist()
        return [_plain(inner) for inner in value] if isinstance(value, list) else value
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _check(name: str, columns: list[str], rows: int) -> None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise DataError(
            f"{name} has the column name {repeated[0]!r} {columns.count(repeated[0])} times. "
            "Give each column its own name."
        )
    if not columns or rows == 0:
        raise DataError(
            f"{name} has {len(columns)} columns and {rows} rows. Expected at least one of each."
        )


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the columns that are a ClassLabel or a list of them."""
    found = {}
    for column, feature in features.items():
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
        if type(inner).__name__ == "ClassLabel":
            found[column] = inner.names
    return found


def _named(values: list[Any], names: list[str] | None) -> list[Any]:
    if names is None:
        return values
    return [
        _named(value, names)
        if isinstance(value, list)
        else (None if value is None or value < 0 else names[value])
        for value in values
    ]
