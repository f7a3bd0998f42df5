"""Parts of charts that several studies draw alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longarc.report.drawing import INK, NARROW


def side_by_side(charts: Sequence[Any], width: int, *, spacing: int = 40) -> Any:
    """Charts beside one another; one above the other on a phone."""
    import altair as alt

    return alt.vconcat(*charts) if width == NARROW else alt.hconcat(*charts, spacing=spacing)


def chart_title(text: str) -> Any:
    """What one of several charts shows, above it on the left."""
    import altair as alt

    return alt.TitleParams(
        text, anchor="start", fontSize=13, fontWeight="normal", color=INK, offset=8
    )


def colour_by_name(colours: Mapping[str, str], width: int, *, columns: int = 1) -> Any:
    """The colour of each ``who``; the legend has so many columns on a phone, a line elsewhere."""
    import altair as alt

    return alt.Color(
        "who:N",
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        legend=alt.Legend(symbolType="stroke", columns=columns if width == NARROW else 0),
    )
