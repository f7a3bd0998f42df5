"""The documentation's site: it builds without a warning, and stands on its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import longarc

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / "docs").glob("*.md"), ROOT / "docs" / "studies" / "index.md"]


def test_the_api_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto(?:class|function|exception):: (\w+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(set(longarc.__all__) - {"__version__"})


def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path: Path) -> None:
    """About 15 seconds of one core. Links within the site and to headings are checked by Sphinx."""
    command = [
        sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet", "-b", "html",
        "-c", "docs", ".", str(tmp_path / "site"), "-d", str(tmp_path / "doctrees"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    for page in [*PAGES, *(ROOT / name for name in OUTSIDE), ROOT / "benchmarks" / "README.md"]:
        assert (site / page.relative_to(ROOT).with_suffix(".html")).is_file(), page
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")

    api = (site / "docs" / "api.html").read_text(encoding="utf-8")
    assert 'id="longarc.LogitAdjustedLoss"' in api
    assert 'id="longarc.Run.predict"' in api
    assert "<math " in api
    assert not re.search(r'id="longarc\.[\w.]*\._\w', api)  # private names stay out
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert "longarc.LogitAdjustedLoss" in index or "LogitAdjustedLoss" in index
    fetched = r'<(?:script|link|img)\b[^>]*\b(?:src|href)="(?:https?:)?//'
    for page in site.rglob("*.html"):
        assert not re.search(fetched, page.read_text(encoding="utf-8")), page
