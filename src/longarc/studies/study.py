"""What a study finds, and the folder that shows it: a page, the figures, the numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longarc.files import check_place, refuse_taken, whole_folder, write_json, write_text
from longarc.report.drawing import Panel
from longarc.report.page import render
from longarc.studies.conclusion import Conclusion


@dataclass(frozen=True)
class Finding:
    """One claim: what a measurement should be by it, what it was, and whether that agrees.

    ``how`` says what was measured, on what, and how close counts as equal.
    """

    claim: str
    expected: str | float
    measured: str | float
    holds: bool
    how: str


@dataclass(frozen=True)
class StudyFigure:
    """A drawing with its caption; ``name`` is the stem of its file."""

    name: str
    caption: str
    panel: Panel


@dataclass(frozen=True)
class StudyResult:
    """What a study gives.

    ``text`` are paragraphs: the claim, and what was done. ``table`` are rows with the same keys.
    ``source`` says who claimed it, and where. ``conclusion`` are three sentences, written from what
    was measured: what was claimed, what came out, what it depends on (``conclude`` puts them
    together).
    """

    title: str
    text: Sequence[str]
    findings: Sequence[Finding]
    table: Sequence[Mapping[str, str | float]]
    figures: Sequence[StudyFigure]
    source: str
    conclusion: Conclusion

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``study.json``: everything but the drawings."""
        return {
            "title": self.title,
            "text": list(self.text),
            "source": self.source,
            "conclusion": list(self.conclusion),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "table": [dict(row) for row in self.table],
            "figures": [f"{figure.name}.svg" for figure in self.figures],
        }


def refuse_existing(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise RunError unless a study can be written to ``folder``."""
    folder = Path(folder)
    ours = (folder / "study.json").is_file()
    refuse_taken(folder, "study", ours=ours, overwrite=overwrite)
    check_place(folder)


def write_study(
    result: StudyResult,
    folder: str | Path,
    *,
    overwrite: bool = False,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Write a study's folder and return the path of its page.

    ``study.html`` is one page that needs no network, ``study.json`` has the findings and the table,
    ``table.csv`` the table, and NAME.svg each drawing. ``run`` says where, when and how the study
    was run, and is kept in ``study.json``. The folder appears whole or not at all.

    Raises ``RunError`` where ``refuse_existing`` does.
    """
    refuse_existing(folder, overwrite=overwrite)
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder) as temporary:
        write_text(temporary / "study.html", _page(result))
        write_json(temporary / "study.json", {**result.to_dict(), "run": dict(run or {})})
        write_text(temporary / "table.csv", _csv(result.table))
        for figure in result.figures:
            write_text(temporary / f"{figure.name}.svg", str(figure.panel.wide))
    return folder / "study.html"


def shown(value: str | float) -> str:
    """A cell as people read it: numbers with three digits, thousands whole.

    >>> shown(0.55556), shown(5.0), shown(2.2e-16), shown(6371.4), shown("yes")
    ('0.556', '5', '2.2e-16', '6,371', 'yes')
    """
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def _page(result: StudyResult) -> str:
    columns = list(result.table[0]) if result.table else []
    return render(
        "study.html.j2",
        {
            "title": result.title,
            "result": result,
            "holding": sum(finding.holds for finding in result.findings),
            "columns": columns,
            "numeric": {c for c in columns if not any(isinstance(r[c], str) for r in result.table)},
            "shown": shown,
        },
    )


def _csv(rows: Sequence[Mapping[str, str | float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
