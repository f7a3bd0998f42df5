"""The pages of docs/: their Python runs, their links lead somewhere, and nothing is left out."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from longarc.cli.main import VERBS, main
from longarc.comparison.config import CompareConfig
from longarc.objectives.losses.registry import LOSSES
from longarc.objectives.regularizers.registry import REGULARIZERS
from longarc.training.config import TrainConfig
from longarc.training.model_defaults import PRETRAINED, RECURRENT
from longarc.training.pretraining.config import PretrainConfig

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
DOCS += [ROOT / "docs" / "studies" / "index.md"]
PAGES = [*DOCS, *(ROOT / f for f in ("README.md", "README.zh-CN.md"))]
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [ROOT / "benchmarks" / "README.md"]
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.real
@pytest.mark.parametrize("page", DOCS, ids=lambda p: str(p.relative_to(ROOT / "docs")))
def test_python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader would run them: one after the other, in one session."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    session = {"__name__": f"docs.{page.stem}"}
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            line = text.count("\n", 0, block.start(2))
            exec(compile("\n" * line + block[2], str(page), "exec"), session)


def test_training_has_python_to_run() -> None:
    assert [kind for kind, _ in BLOCK.findall(TRAINING)].count("python") >= 3


def test_every_finding_of_check_is_in_the_page_of_the_run_folder() -> None:
    tree = ast.parse((ROOT / "src" / "longarc" / "data" / "check.py").read_text(encoding="utf-8"))
    groups = [n.args if isinstance(n, ast.Call) else getattr(n, "elts", []) for n in ast.walk(tree)]
    # A finding is a level, a code and a message, in a call or in a tuple.
    codes = [
        ast.unparse(second).strip("f'")
        for first, second, *_ in (g for g in groups if len(g) >= 4)
        if ast.unparse(first).strip("'").startswith(("error", "warning", "note", "level"))
    ]
    assert len(codes) >= 14
    page = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    section = page.partition("## check.json")[2].partition("\n## ")[0]
    cells = re.findall(r"^\|(.*?)\|", section, re.MULTILINE)
    named = {code for cell in cells for code in re.findall(r"`(.*?)`", cell)}
    each = {code.format(name=name) for code in codes for name in ("validation", "test")}
    assert named == each - {"code"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def anchors(page: Path) -> set[str]:
    """The anchors that the page's headings get: lower case, hyphens for spaces, no punctuation."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in DOCS if page.name != "index.md" and page.name not in index]
    assert missing == []


OPTIONS = [
    (TrainConfig, "training.md"),
    (PretrainConfig, "pretraining.md"),
    (CompareConfig, "compare.md"),
]
FIELDS = [(field, page) for config, page in OPTIONS for field in dataclasses.fields(config)]


@pytest.mark.parametrize(("field", "page"), FIELDS, ids=lambda f: getattr(f, "name", f))
def test_every_option_has_its_row_and_default(field: dataclasses.Field, page: str) -> None:
    flag = f"--{field.name.replace('_', '-')}"
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{flag}` \| (.+?) \| .+ \|$", text, re.MULTILINE)
    assert len(rows) == 1, f"docs/{page} has {len(rows)} rows for {flag}"
    if isinstance(field.default, bool):
        assert rows[0] == ("on" if field.default else "off")
    elif isinstance(field.default, int | float):
        assert float(rows[0]) == field.default
    elif field.default == "":
        assert rows[0] == "required"
    elif field.default is not None:
        assert rows[0] == field.default
    elif page == "training.md" and field.name in PRETRAINED:
        found = [number_or_word(part) for part in rows[0].split("; recurrent ")]
        assert found == [PRETRAINED[field.name], RECURRENT[field.name]]


def number_or_word(text: str) -> float | str:
    """What a row gives as a default."""
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize(("config", "page"), OPTIONS, ids=str)
def test_no_row_for_an_option_that_does_not_exist(config: type, page: str) -> None:
    known = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config)}
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(--[a-z-]+)`", text, re.MULTILINE)) == known


def test_every_loss_is_described() -> None:
    losses = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    assert [name for name in LOSSES if f"`{name}`" not in losses] == []


def test_every_regularizer_is_described() -> None:
    page = (ROOT / "docs" / "regularizers.md").read_text(encoding="utf-8")
    assert [name for name in REGULARIZERS if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"example: longarc {verb} " in shown


def test_the_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n  {verb} " not in shown] == []
