"""What a study found, as the command line prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longarc.studies.study import StudyResult, shown

if TYPE_CHECKING:
    from rich.console import Console


def print_study(result: StudyResult, console: Console) -> None:
    """Print each finding, the table, and how many findings hold.

    >>> from rich.console import Console
    >>> from longarc.studies.study import Finding
    >>> finding = Finding("2 + 2 = 5.", 5, 4, holds=False, how="Counted.")
    >>> said = ("All add up.", "They do not.", "On luck.")
    >>> result = StudyResult("Sums", [], [finding], [], [], "folklore", said)
    >>> print_study(result, Console(width=60))
    Sums
    <BLANKLINE>
    ✗ does not hold: 2 + 2 = 5.
      expected 5, measured 4
    <BLANKLINE>
    0 of 1 claims hold.
    <BLANKLINE>
    All add up. They do not. On luck.
    """
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console.print(Text(result.title, style="bold"), end="\n\n")
    for finding in result.findings:
        mark, style = ("✓ holds", "green") if finding.holds else ("✗ does not hold", "red")
        console.print(Text.assemble((mark, style), f": {finding.claim}"))
        said = f"expected {shown(finding.expected)}, measured {shown(finding.measured)}"
        console.print(Padding(Text(said, style="dim"), (0, 0, 0, 2), expand=False))
    if result.table:
        from rich import box

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for column in result.table[0]:
            is_text = any(isinstance(row[column], str) for row in result.table)
            table.add_column(column, justify="left" if is_text else "right", no_wrap=is_text)
        for row in result.table:
            table.add_row(*map(shown, row.values()))
        console.print()
        console.print(table)
    if result.findings:
        held = sum(finding.holds for finding in result.findings)
        console.print(f"\n{held} of {len(result.findings)} claims hold.")
    console.print(f"\n{' '.join(result.conclusion)}", markup=False)
