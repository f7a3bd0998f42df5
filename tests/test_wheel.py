"""What users install: a wheel, built, looked into, installed where no source lies, and run."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import longarc as package

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [sys.executable, *words, "--wheel-dir", out, ROOT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    source = ROOT / "src"
    expected = {
        str(path.relative_to(source))
        for path in (source / "longarc").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"longarc-{package.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == expected
    assert {f"{about}licenses/LICENSE", f"{about}entry_points.txt"} <= names
    assert wheel.stat().st_size < 1_500_000


@pytest.mark.real
def test_the_quick_demo_runs_from_it(wheel: Path, tmp_path: Path) -> None:
    """An environment with longarc's dependencies, and longarc from nowhere but the wheel."""
    place = tmp_path / "env"
    venv.create(place, with_pip=False)
    packages = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # A path of a .pth file is searched after the environment's own packages, and without the .pth
    # files there: not the one that leads to this source.
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = place / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [python, *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    found = run("-c", "import longarc; print(longarc.__file__, longarc.__version__)").split()
    assert found == [str(Path(packages) / "longarc" / "__init__.py"), package.__version__]
    printed = run("-m", "longarc", "demo", "--quick", "--out", "runs/demo", "--overwrite")
    assert "Try next" in printed
    metrics = package.open_run(tmp_path / "runs" / "demo").metrics["test"]
    assert metrics["model"]["accuracy"]["value"] > 0.6
    assert metrics["model"]["macro_f1"]["value"] > 0.4
    assert metrics["baselines"]["tfidf-svm"]["n"] == metrics["model"]["n"] > 100
    assert (tmp_path / "runs" / "demo" / "report.html").stat().st_size < 3_000_000
