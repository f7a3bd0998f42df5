"""A study in three sentences: what was claimed, what came out, what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longarc.studies.study import Finding

Conclusion = tuple[str, str, str]


def conclude(claimed: str, findings: Sequence[Finding], came_out: str, depends: str) -> Conclusion:
    """Return the three sentences; the second begins with how many claims hold.

    Args:
        claimed: the first sentence, without its full stop: what the source says.
        findings: what was measured.
        came_out: the second sentence's other half: the measured values that matter most.
        depends: the third sentence, without its full stop: with what the outcome changes, again in
            measured values.

    >>> from longarc.studies.study import Finding
    >>> found = [Finding("2 + 2 = 5.", 5, 4, holds=False, how="Counted.")]
    >>> conclude("Two and two are five", found, "they are 4", "It depends on nothing")
    ('Two and two are five.', '0 of 1 claims hold: they are 4.', 'It depends on nothing.')
    """
    held = sum(finding.holds for finding in findings)
    second = f"{held} of {len(findings)} claims hold: {came_out}."
    return f"{claimed}.", second, f"{depends}."


def measured(findings: Sequence[Finding], claim: str) -> str:
    """What was measured of the claim that begins so, as people read it.

    Raises:
        KeyError: no claim or several begin so.
    """
    from longarc.studies.study import shown

    return shown(_of(findings, claim).measured)


def holds(findings: Sequence[Finding], claim: str) -> bool:
    """Whether the claim that begins so holds; raises as ``measured`` does."""
    return _of(findings, claim).holds


def _of(findings: Sequence[Finding], claim: str) -> Finding:
    found = [finding for finding in findings if finding.claim.startswith(claim)]
    if len(found) != 1:
        raise KeyError(f"{len(found)} findings begin with {claim!r}")
    return found[0]


def verdict(held: int, claims: int) -> str:
    """One word for a study: confirmed if all claims hold, not confirmed if none does.

    >>> verdict(18, 18), verdict(25, 37), verdict(0, 2)
    ('confirmed', 'depends', 'not confirmed')
    """
    if held == claims:
        return "confirmed"
    return "depends" if held else "not confirmed"
