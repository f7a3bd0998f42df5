"""A check's result as it is printed: rows, classes, lengths, findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longarc.data.check import CheckResult

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_CLASSES_SHOWN = 10
_BAR = 24
_JOINERS = "\u200c\u200d"  # within Persian words and emoji
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def printable(text: str) -> str:
    r"""Text from data as a terminal may show it: nothing that moves the cursor or turns the line.

    >>> printable("a\x1b[31m\u202eb\nc")
    'a�[31m�b c'
    """
    return "".join(
        c if c.isprintable() or c in _JOINERS else " " if c in "\n\t" else "\ufffd" for c in text
    )


def print_check(result: CheckResult, console: Console) -> None:
    """Print rows of each split, the ten largest classes and the rest in sum, and the findings.

    Label names and messages come from the user's data: they are printed literally, never as
    markup.
    """
    from rich.padding import Padding
    from rich.text import Text

    rows = ", ".join(f"{name} {count:,}" for name, count in result.rows.items())
    groups = result.labels.groups
    sums = ", ".join(
        f"{groups.count(group)} {group} ({meaning})"
        for group, meaning in (("head", "≥ 100"), ("mid", "20–99"), ("tail", "< 20"))
    )
    console.print(Text.assemble(("rows     ", "bold"), rows))
    console.print(Text.assemble(("classes  ", "bold"), f"{len(groups)}: {sums} training texts"))
    if result.lengths is not None:
        of = result.lengths["quantiles"]
        said = f"median {of['50']:,}, 90 % up to {of['90']:,}, longest {of['100']:,}"
        console.print(Text.assemble(("tokens   ", "bold"), said))
    console.print(Padding(_distribution(result), (1, 0)))
    if not result.findings:
        console.print("Nothing noteworthy was found.")
    for finding in result.findings:
        line = Text.assemble(
            (f"{finding.level:<8} ", _STYLES[finding.level]), printable(finding.message)
        )
        console.print(Padding(line, 0), soft_wrap=False)


def _distribution(result: CheckResult) -> Table:
    from rich.table import Table
    from rich.text import Text

    space = result.labels
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("class", max_width=40, no_wrap=True, overflow="ellipsis")
    table.add_column("training", justify="right")
    table.add_column("")
    table.add_column("group")
    # One more row costs no more than a line that stands for it.
    shown = len(space) if len(space) <= _CLASSES_SHOWN + 1 else _CLASSES_SHOWN
    for name, count, group in list(zip(space.names, space.counts, space.groups, strict=True))[
        :shown
    ]:
        bar = "█" * max(1, round(_BAR * count / space.counts[0]))
        table.add_row(Text(printable(name)), f"{count:,}", Text(bar, "blue"), group)
    if shown < len(space):
        rest = space.counts[shown:]
        span = f"{rest[-1]:,} to {rest[0]:,} each" if rest[0] != rest[-1] else f"{rest[0]:,} each"
        table.add_row(Text(f"{len(rest)} more", "dim"), f"{sum(rest):,}", Text(span, "dim"), "")
    return table
