"""README's commands and Python run as they stand, on a small real table."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from longarc.cli.main import VERBS, main
from longarc.comparison.config import CompareConfig
from longarc.data.licenses import read_licenses
from longarc.training.config import TrainConfig
from longarc.training.pretraining.config import PretrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
VERB_ROWS = re.findall(r"^\| `(\w+)` \|.*\| `(longarc [^`]+)` \|$", README, re.MULTILINE)
EACH = {"Permissive": 36, "Copyleft Limited": 16, "Proprietary Free": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where README's reader stands: three tables of short licence texts, named as README does."""
    examples = read_licenses("category", include_rules=False)
    found = sorted(zip(examples.texts, examples.labels or [], strict=True), key=lambda p: len(p[0]))
    found = [(" ".join(text.split()), str(label)) for text, label in found if len(text) > 100]
    tables: dict[str, list[tuple[str, str]]] = {"tickets.csv": [], "newer-tickets.csv": []}
    for label, count in EACH.items():
        texts = [pair for pair in found if pair[1] == label]
        tables["tickets.csv"] += texts[:count]
        tables["newer-tickets.csv"] += texts[count : count + 3]
    place = tmp_path_factory.mktemp("readme")
    for name, rows in {**tables, "inbox.csv": tables["newer-tickets.csv"]}.items():
        columns = ["body"] if name == "inbox.csv" else ["body", "topic"]
        with (place / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(row[: len(columns)] for row in rows)
    return place


def is_setup(line: str) -> bool:
    """Lines that make an environment or run the demo's minutes; other tests look at those."""
    return line.startswith(("make ", "python3.11 -m venv ", ".venv/bin/"))


@pytest.mark.real
def test_the_story_runs_as_it_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shell and Python blocks in README's order. The wheel's test starts processes of its own."""
    monkeypatch.chdir(folder)
    ran = 0
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README", "exec"), {"__name__": "readme"})
            ran += 1
            continue
        assert language == "sh", f"a block of {language}: is it run?"
        for line in block.replace("\\\n", " ").splitlines():
            if line and not is_setup(line):
                program, *words = shlex.split(line)
                assert (program, main(words)) == ("longarc", 0), line
                ran += 1
    assert ran >= 6
    with (folder / "inbox.csv").open(encoding="utf-8", newline="") as file:
        asked = list(csv.DictReader(file))
    with (folder / "predicted.csv").open(encoding="utf-8", newline="") as file:
        answered = list(csv.DictReader(file))
    assert [row["body"] for row in answered] == [row["body"] for row in asked]
    assert {row["prediction"] for row in answered} <= set(EACH)
    for page in ("runs/tickets/report.html", "runs/probe/report.html", "comparison.html"):
        assert "<html" in (folder / page).read_text(encoding="utf-8")


@pytest.mark.real
def test_every_verbs_example_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples in the table of verbs, with the folder as the story left it."""
    if not (folder / "runs/tickets/metrics.json").is_file():
        pytest.skip("the story did not get as far as a trained run")
    monkeypatch.chdir(folder)
    for verb, example in VERB_ROWS:
        words = shlex.split(example)[1:]
        assert words[0] == verb
        if verb not in ("demo", "compare"):  # minutes; tests of the command line run them
            assert main(words) == 0, example


@pytest.mark.real
def test_a_runs_config_repeats_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (folder / "runs/probe/metrics.json").is_file():
        pytest.skip("the story did not get as far as the run to repeat")
    monkeypatch.chdir(folder)
    assert main(["train", "--config", "runs/probe/config.yaml", "--out", "runs/again"]) == 0
    first, again = (
        json.loads(Path(f"runs/{name}/metrics.json").read_text(encoding="utf-8"))
        for name in ("probe", "again")
    )
    assert again["test"] == first["test"]


def test_every_verb_is_in_the_table_and_no_other() -> None:
    assert [verb for verb, _ in VERB_ROWS] == list(VERBS)


def test_every_option_named_exists() -> None:
    fields = {
        f"--{field.name.replace('_', '-')}"
        for config in (TrainConfig, PretrainConfig, CompareConfig)
        for field in dataclasses.fields(config)
    }
    known = fields | {"--config", "--json", "--help", "--quick", "--nproc-per-node", "--rows"}
    known |= {"--candidates", "--errors"}  # of lr and of explain
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))
    assert named
    assert named <= known


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "docs", "bench", "format", "clean", "help"])
def test_make_has_the_target(target: str) -> None:
    planned = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert planned.returncode == 0, planned.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "docs"])
def test_make_installs_with_the_constraints(target: str) -> None:
    """Without them pip may resolve torch to gigabytes of another build."""
    command = ["make", "--dry-run", "--always-make", target]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in planned.splitlines() if " install " in line]
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)


def test_readme_installs_with_the_constraints() -> None:
    lines = [
        line for line in README.splitlines() if "pip install" in line and "/" in line[:1] + line
    ]
    commands = [line for line in lines if line.startswith(".venv/bin/pip")]
    assert commands
    assert all("-c constraints.txt" in line for line in commands)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==", pins, re.MULTILINE)


CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def test_the_chinese_readme_has_the_same_blocks_and_verbs() -> None:
    assert re.findall(r"^```(\w+)\n(.*?)^```$", CHINESE, re.MULTILINE | re.DOTALL) == BLOCKS
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(longarc [^`]+)` \|$", CHINESE, re.MULTILINE)
    assert rows == VERB_ROWS


def numbers_of(text: str) -> list[str]:
    """Every number in the order of size: sentences may put them in another order."""
    return sorted(re.findall(r"[−+]?(?:\d[\d,]*)?\.?\d+", text))


def test_the_chinese_readme_has_the_same_numbers_code_and_links() -> None:
    assert numbers_of(CHINESE) == numbers_of(README)
    for pattern in (r"`[^`\n]+`", r"\]\(([^)]+)\)"):
        english, chinese = (
            sorted(set(re.findall(pattern, text)) - {"README.md", "README.zh-CN.md"})
            for text in (README, CHINESE)
        )
        assert chinese == english
    headings = [len(re.findall(r"^#+ ", text, re.MULTILINE)) for text in (README, CHINESE)]
    assert headings[0] == headings[1]


def test_each_readme_leads_to_the_other() -> None:
    assert "](README.zh-CN.md)" in "".join(README.splitlines()[:4])
    assert "](README.md)" in "".join(CHINESE.splitlines()[:4])
