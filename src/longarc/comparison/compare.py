"""What Python users hold of a comparison: :func:`compare` and :class:`Comparison`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from longarc.comparison.config import CompareConfig
from longarc.comparison.folder import CompareFolder
from longarc.comparison.job import run_comparison
from longarc.comparison.slot import read
from longarc.errors import RunError
from longarc.options import as_plain
from longarc.report.citations import Citation, bibtex, cited_together, config_of
from longarc.report.trade_off import fitted_baseline, table_of
from longarc.training.option_fields import check_names

if TYPE_CHECKING:
    import pandas


class Comparison:
    """A finished comparison: a row for each candidate, and the page that shows them.

    Nothing is read before it is asked for.
    """

    def __init__(self, folder: CompareFolder):
        self.folder = folder
        self.path = folder.path

    def __repr__(self) -> str:
        return f"Comparison({str(self.path)!r})"

    @cached_property
    def found(self) -> dict[str, Any]:
        """The content of ``compare.json``; schema in docs/compare.md."""
        return read(self.folder.figures)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row of plain values for each candidate, as in ``table.csv``."""
        return table_of(self.found)

    @property
    def front(self) -> list[str]:
        """The candidates that no other beats in both quality and speed."""
        return [row["name"] for row in self.found["candidates"] if row["front"]]

    @property
    def failed(self) -> dict[str, str]:
        """Why, for each candidate that could not be trained."""
        return {r["name"]: r["why"] for r in self.found["candidates"] if r["why"] is not None}

    @property
    def page(self) -> Path:
        """``compare.html``."""
        return self.folder.page

    @property
    def cited(self) -> list[Citation]:
        """The parts that the candidates used, each once; the baseline among them."""
        return cited_together(self._runs, baseline=fitted_baseline(self.found) is not None)

    @property
    def citations(self) -> str:
        """BibTeX for all that the candidates used, and for longarc itself."""
        return bibtex(self.cited, config_of(self._runs[0]))

    @property
    def _runs(self) -> list[Path]:
        return [self.path / run for row in self.found["candidates"] for run in row["runs"]]

    def to_pandas(self) -> pandas.DataFrame:
        """``table`` as a DataFrame."""
        import pandas

        return pandas.DataFrame(self.table)


def compare(
    data: Any = None,
    *,
    candidates: str | Path | Mapping[str, Any],
    out: str | Path,
    verbose: bool = True,
    **options: Any,
) -> Comparison:
    """Train and measure several candidates under one budget, each in a process of its own.

    Args:
        data: as for :func:`longarc.fit`; None for the packaged texts of ``everything-small``.
        candidates: names with options of :class:`TrainConfig` each, a YAML file of them, or one of
            ``attention``, ``tail`` and ``everything-small``.
        out: folder to write.
        verbose: say on the terminal what happens.
        options: the fields of :class:`~longarc.comparison.config.CompareConfig`, such as
            ``budget_examples=2000`` or ``seeds=[0, 1, 2]``.

    Returns:
        The finished comparison.

    Raises:
        LongarcError: input or options that cannot be used; nothing has been written then.

    >>> compare("tickets.csv", candidates={"a": {}, "b": {"los": "focal"}}, out="runs/c",
    ...         budget_steps=10)
    Traceback (most recent call last):
    longarc.errors.OptionError: candidate 'b' has an option 'los', and longarc train has none such. Did you mean loss?
    """  # noqa: E501
    check_names("compare", options, CompareConfig)
    in_memory = data is not None and not isinstance(data, str | Path)
    named = f"<{type(data).__name__} in memory>" if in_memory else data and str(data)
    inline = as_plain(candidates) if isinstance(candidates, Mapping) else None
    config = CompareConfig(
        data=named, candidates="(in Python)" if inline is not None else str(candidates),
        out=str(out), **as_plain(options),
    )  # fmt: skip
    console = Console() if verbose else None
    folder = run_comparison(
        config, data=data if in_memory else None, candidates=inline, console=console
    )
    return Comparison(folder)


def open_comparison(path: str | Path) -> Comparison:
    """Open a finished comparison; RunError if there is none."""
    folder = CompareFolder(Path(path).expanduser())
    if not folder.figures.is_file():
        unfinished = f" {folder.how_to_resume()}" if folder.settings.is_file() else ""
        raise RunError(f"{folder.path} holds no finished comparison.{unfinished}")
    return Comparison(folder)
