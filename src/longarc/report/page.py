"""A template and what it shows become an HTML page that needs nothing but itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from longarc.report.drawing import printable, shorten
from longarc.report.measures import signed
from longarc.report.quantities import percent, rate, thousands
from longarc.report.saved import is_number


def link_to(page: Path, target: Path) -> str:
    """The address of another page for the one at ``target``: relative, so both can move together.

    >>> link_to(Path("runs/a b/report.html"), Path("runs/comparison.html"))
    'a%20b/report.html'
    """
    # Two drives of Windows have no relative path between them.
    try:
        return quote(Path(os.path.relpath(page.resolve(), target.resolve().parent)).as_posix())
    except ValueError:
        return page.resolve().as_uri()


def render(template: str, context: dict[str, Any]) -> str:
    """Return the page of one of the templates beside this file, every text in it escaped.

    A name that the template asks for and ``context`` lacks is an error, not a gap in the page.
    """
    import jinja2
    from markupsafe import Markup

    from longarc.version import __version__

    def finalize(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return printable(value) if plain else value

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("longarc", "report/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shorten"] = shorten
    environment.filters["thousands"] = thousands
    environment.filters["percent"] = percent
    environment.filters["rate"] = rate
    environment.filters["signed"] = signed
    environment.filters["decimal"] = lambda v: f"{v:.3f}" if is_number(v) else "–"
    return environment.get_template(template).render(version=__version__, **context)
