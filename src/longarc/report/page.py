"""A template and what it shows become an HTML page that needs nothing but itself."""

from __future__ import annotations

from typing import Any

from longarc.report.drawing import printable, shorten
from longarc.report.quantities import percent, rate, thousands
from longarc.report.saved import is_number


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
    environment.filters["decimal"] = lambda v: f"{v:.3f}" if is_number(v) else "–"
    return environment.get_template(template).render(version=__version__, **context)
