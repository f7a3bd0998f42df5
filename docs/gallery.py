"""Writes docs/studies/index.md and the installed digest from the full runs kept in docs/studies/.

python docs/gallery.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from longarc.studies.full_runs import KEPT, FullRun, digest
from longarc.studies.registry import STUDIES

FOLDER = Path(__file__).parent / "studies"

HEAD = """\
# The studies as a gallery

Every study with its claim, the verdict of its last full run and, in three sentences that the study
itself wrote, what was claimed, what came out and what it depends on. *Confirmed* means that all
claims hold, *depends* that some do. Each folder has the findings as `study.json`, with the machine.
[Studies](../studies.md) says what was done; `longarc study list` prints this list.
"""


def kept(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Return the full runs that are kept, in the registry's order."""
    files = {name: folder / name / "study.json" for name in STUDIES}
    return {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name, file in files.items()
        if file.is_file()
    }


def digest_text(studies: dict[str, dict[str, Any]]) -> str:
    """Return the content of the digest that is installed with longarc."""
    digests = {name: digest(study) for name, study in studies.items()}
    return json.dumps(digests, ensure_ascii=False, indent=1) + "\n"


def page(studies: dict[str, dict[str, Any]], folder: Path = FOLDER) -> str:
    """Return the gallery as Markdown."""
    parts = [HEAD]
    for name, study in studies.items():
        info = STUDIES[name]
        full = FullRun(**digest(study))
        parts.append(
            f"## {study['title']}\n\n"
            f"**{full.verdict.capitalize()}**: {full.holding} of {full.claims} claims hold. "
            f"[`longarc study {name}`](../studies.md#{_anchor(folder, name)})\n\n"
            f"{' '.join(full.conclusion)}\n\n"
            f"Claimed by: {info.source}. {_ran(full)}\n"
        )
        drawings = sorted(path.name for path in (folder / name).glob("*.svg"))
        if drawings:
            images = " | ".join(f"![{d.removesuffix('.svg')}]({name}/{d})" for d in drawings)
            titles = " | ".join(d.removesuffix(".svg") for d in drawings)
            parts.append(f"| {titles} |\n|{'---|' * len(drawings)}\n| {images} |\n")
    rest = [f"[{n}](../studies.md#{_anchor(folder, n)})" for n in STUDIES if n not in studies]
    if rest:
        parts.append(f"## Not kept\n\nNo full run is kept of {', '.join(rest)}.\n")
    return "\n".join(parts)


def _anchor(folder: Path, name: str) -> str:
    """The anchor of the study's section in docs/studies.md."""
    text = (folder.parent / "studies.md").read_text(encoding="utf-8")
    heading = re.search(rf"^## ({re.escape(name)}: .+)$", text, re.MULTILINE)
    if heading is None:
        raise SystemExit(f"docs/studies.md has no section '## {name}: …'")
    return re.sub(r"[^\w -]", "", heading[1].lower()).replace(" ", "-")


def _ran(full: FullRun) -> str:
    run = full.run
    seconds = run.get("seconds")
    lasted = f", {seconds / 60:.0f} minutes" if seconds and seconds >= 90 else ""
    note = f" {run['note']}" if "note" in run else ""
    return f"Run on {run['date']}, {run['machine']}{lasted}.{note}"


if __name__ == "__main__":
    found = kept()
    KEPT.write_text(digest_text(found), encoding="utf-8")
    (FOLDER / "index.md").write_text(page(found), encoding="utf-8")
    print(f"{len(found)} of {len(STUDIES)} studies have a full run kept")
