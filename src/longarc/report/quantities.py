"""How counts, shares and durations are written for people."""

from __future__ import annotations

from typing import Any

from longarc.report.saved import is_number


def thousands(value: Any) -> str:
    r"""A number with thin spaces between thousands, or a dash.

    >>> thousands(22713216), thousands(None)
    ('22\u202f713\u202f216', '–')
    """
    return f"{value:,}".replace(",", "\u202f") if is_number(value) else "–"


def rate(value: Any) -> str:
    r"""A speed with three digits, thousands whole, or a dash.

    >>> rate(2283.4), rate(12.345), rate(0.0841), rate(None)
    ('2\u202f283', '12.3', '0.0841', '–')
    """
    if not is_number(value):
        return "–"
    return thousands(round(value)) if value >= 1000 else f"{value:.3g}"


_BUDGETS = {
    "steps": ("step", "steps"),
    "examples": ("training example", "training examples"),
    "minutes": ("minute of steps", "minutes of steps"),
}


def budget(kind: str, amount: float) -> str:
    r"""A comparison's budget, by what it is counted in.

    >>> budget("examples", 1234567), budget("minutes", 1.0)
    ('1\u202f234\u202f567 training examples for each candidate', '1 minute of steps for each candidate')
    """  # noqa: E501
    one, many = _BUDGETS[kind]
    written = f"{amount:,.12g}".replace(",", "\u202f")
    return f"{written} {one if amount == 1 else many} for each candidate"


def percent(value: Any) -> str:
    """A share in percent; small and large ones are not rounded to nothing and all.

    >>> [percent(share) for share in (0.0, 0.0004, 0.0721, 0.41, 0.998)]
    ['0 %', '< 0.1 %', '7.2 %', '41 %', '99.8 %']
    """
    if not is_number(value):
        return "–"
    hundredths = 100 * value
    if 0 < hundredths < 0.1:
        return "< 0.1 %"
    fine = 0 < hundredths < 10 or 99 < hundredths < 100
    return f"{hundredths:.1f} %" if fine else f"{hundredths:.0f} %"


def duration(seconds: Any) -> str | None:
    """Seconds as people say them.

    >>> [duration(s) for s in (8.24, 190.0, 7322)]
    ['8.2 s', '3 min 10 s', '2 h 2 min']
    """
    if not is_number(seconds):
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
