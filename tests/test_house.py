"""The rules of the house: what imports what, what is written where, and what is never used."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import longarc
from longarc.cli.main import VERBS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "longarc"
FILES = sorted(SOURCE.rglob("*.py"))
HEAVY = ("torch", "transformers", "sklearn", "pandas", "altair", "datasets")
FORBIDDEN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")

TESTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))

REPORT_HEAVY = f"""
import sys
sys.stdout = open(__import__('os').devnull, 'w')
try:
    BODY
except SystemExit as left:
    assert left.code == 0, left.code
sys.__stdout__.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))
"""


def heavy_imports_of(statement: str) -> list[str]:
    """The heavy packages in ``sys.modules`` of a fresh process after a statement."""
    program = REPORT_HEAVY.replace("BODY", statement)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_probe_sees_a_heavy_import() -> None:
    """Otherwise the tests below could not fail."""
    assert "pandas" in heavy_imports_of("import pandas")


def test_import_longarc_is_light() -> None:
    assert heavy_imports_of("import longarc; dir(longarc); longarc.__version__") == []


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([v, "--help"] for v in VERBS)])
def test_help_is_light(words: list[str]) -> None:
    statement = f"import longarc.cli.main as m; assert m.main({words!r}) == 0"
    assert heavy_imports_of(statement) == []


def test_data_report_and_options_import_without_torch() -> None:
    light = [
        path
        for path in FILES
        if path.relative_to(SOURCE).parts[0]
        in ("data", "report", "errors.py", "files.py", "machine.py")
    ]
    names = [
        ".".join(("longarc", *path.relative_to(SOURCE).with_suffix("").parts)) for path in light
    ]
    names = [name.removesuffix(".__init__") for name in names] + ["longarc.training.config"]
    names += ["longarc.training.pretraining.config", "longarc.training.pretraining.folder"]
    assert len(names) > 20
    found = heavy_imports_of(f"import {', '.join(names)}")
    assert "torch" not in found
    assert "transformers" not in found


def test_imports_point_down() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


def test_every_module_is_on_a_floor() -> None:
    """A new folder that the contract does not name would escape it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    floors = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    rooms = {p.stem for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert {f"longarc.{room}" for room in rooms - {"__init__"}} == floors


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_file_is_one_idea(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    assert unsafe_parts(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "torch.save(x, f)", "torch.load(f)",
        "eval('1')", "exec(code)", "numpy.load(f, allow_pickle=True)", "from torch import load",
        "yaml.load(text, Loader=yaml.Loader)",
    ],
)  # fmt: skip
def test_unsafe_parts_are_seen(code: str) -> None:
    assert unsafe_parts(code)


def test_safe_parts_are_not_accused() -> None:
    safe = "model.eval(); safetensors.torch.load(f); yaml.load(text, loader); json.load(f)"
    assert unsafe_parts(safe) == []


def unsafe_parts(code: str) -> list[str]:
    """What in a module could run code that lies in a file, or write such a file."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        found += [n for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        found += [n for n in names if n in ("torch.load", "torch.save")]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "torch.load", "torch.save"):
                found.append(called)
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                    found.append("allow_pickle")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.unsafe_load",
        ):  # fmt: skip
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("name", longarc.__all__)
def test_public_name_exists_and_says_what_it_is(name: str) -> None:
    value = getattr(longarc, name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", value)
        return
    inherited = [base.__doc__ for base in getattr(value, "__mro__", ())[1:]]
    assert value.__doc__
    assert value.__doc__ not in inherited
    assert not value.__doc__.startswith(f"{name}("), "a dataclass without a docstring"


@pytest.mark.parametrize("name", [name for name in longarc.__all__ if name != "__version__"])
def test_public_name_is_typed_and_tested(name: str) -> None:
    value = getattr(longarc, name)
    parts = (
        [part for part in vars(value).values() if inspect.isfunction(part)]
        if inspect.isclass(value)
        else [value]
    )
    public = [p for p in parts if p.__name__ == "__init__" or not p.__name__.startswith("_")]
    for part in public:
        arguments = list(inspect.signature(part).parameters.values())
        untyped = [a.name for a in arguments if a.annotation is a.empty and a.name != "self"]
        assert not untyped, f"{part.__qualname__}: {untyped}"
    assert re.search(rf"\b{name}\b", TESTS), "no test names it"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = longarc.nothing


def test_version_changelog_and_metadata_agree() -> None:
    """A release has its section in the changelog; what is developed stands under Unreleased."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["hatch"]["version"]["path"] == "src/longarc/version.py"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert sections[0] == "Unreleased"
    if ".dev" in longarc.__version__:
        assert longarc.__version__.split(".dev")[0] not in sections
    else:
        assert sections[1] == longarc.__version__


def test_constraints_pin_what_is_in_the_ranges() -> None:
    from packaging.requirements import Requirement

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for text in settings["dependencies"]:
        requirement = Requirement(text)
        assert requirement.name in pins, f"constraints.txt has no version of {requirement.name}"
        assert requirement.specifier.contains(pins[requirement.name])
