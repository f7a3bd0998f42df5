"""Real long, long-tailed data without a download: the licence texts of package licensedcode-data.

ScanCode's collection of licence texts (CC-BY-4.0, https://scancode-licensedb.aboutcode.org) as a
table. To say what licence a text is, is a real job, its documents are long and its classes
long-tailed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from longarc.data.examples import Examples
from longarc.errors import DataError, OptionError

_DOCUMENT = re.compile(r"---\s*\n(.*?)\n---[ \t]*\n?(.*)", re.DOTALL)
# Most rules are references to a licence of a line or two. Which are more is said near the top.
_IS_TEXT = re.compile(rb"^is_license_text: yes", re.MULTILINE)
_IS_TEXT_OR_NOTICE = re.compile(rb"^is_license_(?:text|notice): yes", re.MULTILINE)
_KEY_MINIMUM = 3  # texts of a licence: one each to train on, to validate and to test


def read_licenses(
    task: Literal["category", "key"] = "category",
    include_rules: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> Examples:
    """Read licence texts with their category or key, always in the same order.

    - ``category``: the licences' own texts, and rules that are licence texts of one licence, which
      get that licence's category: 6,084 texts, 11 classes.
    - ``key``: which licence it is. The same and rules that are notices, of the licences with at
      least 3 texts: 15,095 texts, 448 classes.

    Left out are deprecated licences and rules (others supersede them), empty texts, and rules of
    several licences (``mit AND bsd-new``). Figures are of version 32.1.0.

    Args:
        task: ``category`` or ``key``.
        include_rules: False gives the licences' own texts alone (``category`` only: each key has
            just one).
        limit: a random sample of so many texts.
        seed: of that sample.

    Raises:
        DataError: the package licensedcode-data is not installed.
        OptionError: an unknown task, ``key`` without rules, or a limit below 1.
    """
    if task not in ("category", "key"):
        raise OptionError(f"Unknown task {task!r}. Known: category, key.")
    if task == "key" and not include_rules:
        raise OptionError("Task 'key' needs rules: each licence has one text of its own.")
    if limit is not None and limit < 1:
        raise OptionError(f"limit is {limit}. Expected a number of texts of at least 1.")
    folder = _folder()
    category: dict[str, str] = {}
    found: list[tuple[str, str]] = []  # licence key, text
    for about, text in _read(folder / "licenses", "*.LICENSE", None):
        category[about["key"]] = about["category"]
        found.append((about["key"], text))
    if include_rules:
        kinds = _IS_TEXT if task == "category" else _IS_TEXT_OR_NOTICE
        for about, text in _read(folder / "rules", "*.RULE", kinds):
            if about.get("license_expression") in category:
                found.append((about["license_expression"], text))
    found = [pair for pair in found if pair[1]]  # some kinds, such as public-domain, have no text
    if task == "key":
        counts = Counter(key for key, _ in found)
        found = [pair for pair in found if counts[pair[0]] >= _KEY_MINIMUM]
    examples = Examples(
        f"licensedcode-data {importlib.metadata.version('licensedcode-data')}",
        [text for _, text in found],
        [key if task == "key" else category[key] for key, _ in found],
        list(range(1, len(found) + 1)),
    )
    if limit is not None and limit < len(found):
        examples = examples.select(sorted(random.Random(seed).sample(range(len(found)), limit)))
    return examples


def _folder() -> Path:
    # Found, not imported: the package scancode-toolkit has the same name and imports for seconds.
    spec = importlib.util.find_spec("licensedcode")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "data" / "licenses").is_dir():
            return Path(place) / "data"
    raise DataError(
        "The licence texts are not installed. Expected the package licensedcode-data: "
        "pip install 'longarc[demo]'"
    )


def _read(
    folder: Path, pattern: str, wanted: re.Pattern[bytes] | None
) -> Iterator[tuple[dict[str, Any], str]]:
    """What is said about a text, and the text, of each current file in order of its name."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted(folder.glob(pattern)):
        raw = path.read_bytes()
        if wanted is not None and not wanted.search(raw[:2000]):
            continue
        match = _DOCUMENT.match(raw.decode("utf-8"))
        about = yaml.load(match[1], loader) if match else {}
        if match and not about.get("is_deprecated"):
            yield about, match[2].strip()
