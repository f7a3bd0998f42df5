r"""Licence texts by key (some 450 classes) or category: fine-tuned, beside the linear baseline.

    python benchmarks/licences.py key --options '{"loss": "logit-adjusted", "hybrid": 12}'

A quarter of the texts is the test split, drawn by the seed; a tenth chooses the best epoch, unless
the options say otherwise. A row for the model and each baseline, as in r52.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from longarc.data.licenses import read_licenses
from longarc.data.table_writer import table_writer
from r52 import measure


def main() -> None:
    """Train once and append a row for each system."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", nargs="?", choices=["key", "category"], default="key")
    parser.add_argument("--options", type=json.loads, default={}, help="of the training, as JSON")
    parser.add_argument("--keep", help="folder that keeps the run")
    chosen = parser.parse_args()
    examples = read_licenses(chosen.kind)
    options = {
        "loss": "logit-adjusted", "epochs": 3, "max_length": 256, "seed": 0, **chosen.options,
    }  # fmt: skip
    given = {"test_fraction": 0.25, "validation_fraction": 0.1, "text": "text", "label": "label"}
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / f"licence-{chosen.kind}.parquet"
        with table_writer(table) as write:
            write({"text": examples.texts, "label": examples.labels or []})
        measure(f"licence-{chosen.kind}", str(table), options, given, keep=chosen.keep)


if __name__ == "__main__":
    main()
