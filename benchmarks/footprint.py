"""What longarc costs before it does anything: help, imports, the wheel, what is installed with it.

    python benchmarks/footprint.py [--repeats 7]
    python benchmarks/footprint.py --newcomer     # an empty environment, a table, an explanation

Times are of fresh processes; repeats of the commands take turns, beside ``python -c pass`` and
transformers' own Trainer; the documentation's site is built once. Packages are counted by following
the requirements of what is installed here, each extra for what it adds. ``--newcomer`` makes an
environment as README says, which needs a package index, and goes from a table to an explained
prediction by README's commands: how many, and how long each took.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from longarc.data.licenses import read_licenses
from rows import append_row, spread

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "longarc --help": ["-m", "longarc", "--help"],
    "longarc train --help": ["-m", "longarc", "train", "--help"],
    "import longarc": ["-c", "import longarc"],
    "longarc.fit looked up": ["-c", "import longarc; longarc.fit"],
    "transformers' Trainer looked up": ["-c", "from transformers import AutoModel, Trainer"],
}
EXTRAS = ("demo", "docs", "dev")


def main() -> None:
    """Measure and append a row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--newcomer", action="store_true")
    chosen = parser.parse_args()
    if chosen.newcomer:
        newcomer()
        return
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(chosen.repeats + 1):
        for name, words in COMMANDS.items():
            taken = timed([sys.executable, *words])
            if repeat:  # the first reads the files into memory
                seconds[name].append(taken)
    known = set(importlib.metadata.metadata("longarc").get_all("Provides-Extra") or ())
    alone = installed_with("longarc")
    append_row(
        "footprint",
        seconds={name: spread(found) for name, found in seconds.items()},
        wheel_kib=round(wheel_size() / 1024),
        docs_seconds=round(docs_build(), 1),
        packages={
            "longarc": len(alone),
            **{
                extra: len(installed_with("longarc", extra) - alone)
                for extra in EXTRAS
                if extra in known
            },
        },
    )


def timed(command: Sequence[object], **options: object) -> float:
    """Seconds of a process, whose failure is an error."""
    started = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def installed_with(name: str, extra: str = "") -> set[str]:
    """The packages that an installation of one brings, without itself."""
    found: set[str] = set()
    todo = [(name, extra)]
    seen = set(todo)
    while todo:
        package, wanted = todo.pop()
        try:
            required = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        for line in required:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": e}) for e in {"", wanted}):
                continue
            found.add(requirement.name.lower().replace("_", "-"))
            for pair in [(requirement.name, e) for e in {"", *requirement.extras}]:
                if pair not in seen:
                    seen.add(pair)
                    todo.append(pair)
    return found - {name}


def wheel_size() -> int:
    """Bytes of the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        timed(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
             "--wheel-dir", folder, ROOT]
        )  # fmt: skip
        (wheel,) = Path(folder).iterdir()
        return wheel.stat().st_size


def docs_build() -> float:
    """Seconds to build the documentation's site anew."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "sphinx", "-W", "-q", "-b", "html", "-c", ROOT / "docs", ROOT, folder]
        return timed([sys.executable, *words])


def newcomer() -> None:
    """From a clone to an explained prediction of one's own table."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        examples = read_licenses("category", limit=300, include_rules=False)
        with (place / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["body", "topic"])
            writer.writerows(zip(examples.texts, examples.labels or [], strict=True))
        longarc = place / "env" / "bin" / "longarc"
        pip = [place / "env" / "bin" / "python", "-m", "pip", "install", "--quiet"]
        started = time.perf_counter()
        venv.create(place / "env", with_pip=True)
        minutes = {"make an environment": (time.perf_counter() - started) / 60}
        steps = {
            "install": [*pip, "--constraint", ROOT / "constraints.txt", f"{ROOT}[demo]"],
            "train": [
                longarc, "train", "tickets.csv", "--text", "body", "--label", "topic",
                "--max-length", "64", "--epochs", "1", "--record-path", "--out", "runs/tickets",
            ],
            "explain": [longarc, "explain", "runs/tickets", "--errors", "1"],
        }  # fmt: skip
        for name, command in steps.items():
            minutes[name] = timed(command, cwd=place) / 60
            print(f"{name}: {minutes[name]:.1f} minutes", flush=True)
        page = place / "runs" / "tickets" / "report.html"
        append_row(
            "newcomer", documents=len(examples.texts), commands=len(minutes),
            minutes={name: round(taken, 2) for name, taken in minutes.items()},
            together=round(sum(minutes.values()), 1), report_kib=round(page.stat().st_size / 1024),
        )  # fmt: skip


if __name__ == "__main__":
    main()
