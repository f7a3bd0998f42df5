"""What the last full run of each study found: the digest of ``docs/studies/`` that is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longarc.studies.conclusion import verdict

KEPT = Path(__file__).with_name("full_runs.json")


@dataclass(frozen=True)
class FullRun:
    """How many claims held, of how many; three sentences; the machine, versions and date."""

    holding: int
    claims: int
    conclusion: tuple[str, ...]
    run: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """``confirmed``, ``not confirmed`` or ``depends``."""
        return verdict(self.holding, self.claims)


def full_runs() -> dict[str, FullRun]:
    """Return the last full run of each study that has one kept.

    >>> full_runs()["imbalance"].verdict
    'confirmed'
    """
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    return {
        name: FullRun(one["holding"], one["claims"], tuple(one["conclusion"]), one["run"])
        for name, one in kept.items()
    }


def digest(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of the content of a ``study.json``.

    >>> digest({"findings": [{"holds": True}], "conclusion": ["So."], "run": {"cores": 2}})
    {'holding': 1, 'claims': 1, 'conclusion': ['So.'], 'run': {'cores': 2}}
    """
    findings = study["findings"]
    return {
        "holding": sum(finding["holds"] for finding in findings),
        "claims": len(findings),
        "conclusion": list(study["conclusion"]),
        "run": dict(study["run"]),
    }
