"""How every chart looks, and how one becomes SVG: offline, without JavaScript, in two widths.

A chart that shrinks with its column cannot be read on a phone, so each one is drawn twice, and
the page's style sheet shows the one that fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

WIDE, HALF, NARROW = 880, 425, 340

# Okabe and Ito's palette without its yellow, which is too light for lines on white.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
SERIES = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED]
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down"]
INK, MUTED, FAINT = "#1d2129", "#5b6470", "#e3e6ea"
GROUPS = {"head": BLUE, "mid": GREEN, "tail": RED}

WHOLE = "datum.value % 1 ? '' : format(datum.value, ',d')"
"""The labels of an axis of counts: ticks between whole numbers have none."""

# The renderer knows the widths of Liberation Sans, which are those of Arial and Helvetica.
FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_BEYOND = re.compile("[\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Panel:
    """One drawing in both widths, and what it shows, for those who cannot see it."""

    title: str
    description: str
    wide: Markup
    narrow: Markup


def printable(text: str) -> str:
    r"""The text with each character that HTML and SVG forbid replaced by ``�``.

    >>> printable("a\x00b\tc")
    'a�b\tc'
    """
    return _UNPRINTABLE.sub("\ufffd", text)


def shorten(text: str, length: int) -> str:
    """At most ``length`` characters on one line, the last one an ellipsis if any are left out.

    >>> shorten("GNU  General Public License", 12)
    'GNU General…'
    """
    text = " ".join(printable(text).split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def panel(title: str, description: str, make: Callable[[int], Any], wide: int = WIDE) -> Panel:
    """Draw ``make(width)``, an altair chart, at both widths; ``HALF`` puts two side by side."""
    return Panel(title, description, _svg(make(wide)), _svg(make(NARROW)))


def data_of(rows: Iterable[dict[str, Any]]) -> Any:
    """Rows as a chart's data, inside its specification."""
    import altair as alt

    return alt.Data(values=list(rows))


def png(svg: Markup, scale: float = 2.0) -> bytes:
    """A drawing as a PNG, ``scale`` pixels for each of its own."""
    import vl_convert

    return vl_convert.svg_to_png(str(svg), scale=scale)


def _svg(chart: Any) -> Markup:
    import vl_convert

    styled = (
        chart.configure(background="white", font=FONT, aria=False)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=MUTED,
            titleColor=MUTED,
            titleFontWeight="normal",
            titleFontSize=12,
            labelFontSize=12,
            titlePadding=8,
            labelPadding=5,
            gridColor=FAINT,
            domainColor="#aab1ba",
            tickColor="#aab1ba",
            tickSize=4,
        )
        .configure_legend(
            orient="top",
            title=None,
            labelColor=INK,
            labelFontSize=12,
            titleColor=MUTED,
            titleFontWeight="normal",
            titleFontSize=12,
            symbolStrokeWidth=2,
            symbolSize=90,
            symbolOpacity=1,
            columnPadding=16,
            labelLimit=240,
            offset=10,
            padding=0,
        )
    )
    # altair writes the specification; no data is fetched, because all of it is in there.
    drawing = json.dumps(styled.to_dict(), ensure_ascii=False)
    try:
        return Markup(vl_convert.vegalite_to_svg(drawing))
    except ValueError:
        # Vega cuts a long label between the halves of a character beyond U+FFFF, and then fails.
        return Markup(vl_convert.vegalite_to_svg(_BEYOND.sub("\ufffd", drawing)))
