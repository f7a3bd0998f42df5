"""Is Performer faster than plain linear attention? MiniLM's predictions with both, turn by turn.

    python benchmarks/performer_or_linear.py [--turns 7] [--documents 8] [--out FOLDER]

Long Range Arena's chart has Performer to the right of linear attention (Katharopoulos et al. 2020,
φ = elu + 1), though it computes the same sums over more features, and these features besides. Here
both read the same licence texts of more than 2,048 tokens, cut to 512 and to 2,048, by ``longarc
compare``: each kernel in a process of its own that stays alive, one turn to warm up, then turns one
after the other. Nothing is trained but a linear probe.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import longarc
from longarc.data.licenses import read_licenses
from longarc.models.loading import load_tokenizer
from rows import append_row

LENGTHS = (512, 2048)
KERNELS = {
    "linear": {"attention": "linear"},
    "performer-64": {"attention": "performer", "attention_options": {"num_features": 64}},
    "performer-256": {"attention": "performer", "attention_options": {"num_features": 256}},
}


def main() -> None:
    """Measure and append a row for each length and kernel."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--out", default=None, help="keep the comparison there")
    chosen = parser.parse_args()
    candidates = {
        f"{name} at {length}": {
            **options, "freeze": True, "max_length": length,
            **({"positions": "hierarchical"} if length > 512 else {}),
        }
        for length in LENGTHS
        for name, options in KERNELS.items()
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        found = longarc.compare(
            long_texts(4 * chosen.documents), candidates=candidates, budget_steps=1,
            validation_fraction=0, test_fraction=0.3, documents=chosen.documents,
            repeats=chosen.turns, out=chosen.out or Path(temporary) / "comparison",
        ).found  # fmt: skip
    for row in found["candidates"]:
        name, _, length = row["name"].partition(" at ")
        append_row(
            "performer-or-linear", attention=name, tokens=int(length),
            documents_per_second=row["prediction_documents_per_second"],
            peak_mib=row["prediction_peak_mib"], documents=found["speed"]["documents"],
            threads=found["machine"]["threads"], load=found["machine"]["load"],
        )  # fmt: skip


def long_texts(count: int) -> dict[str, list[str]]:
    """Texts of more than 2,048 tokens of the two categories that have most of them."""
    examples = read_licenses("category", include_rules=False)
    tokenizer = load_tokenizer("minilm")
    lengths = tokenizer(examples.texts, return_length=True, verbose=False)["length"]
    labels = [str(label) for label in examples.labels or []]
    long = [i for i, length in enumerate(lengths) if length > 2048]
    both = [name for name, _ in Counter(labels[i] for i in long).most_common(2)]
    kept = [i for name in both for i in [i for i in long if labels[i] == name][: count // 2]]
    return {"text": [examples.texts[i] for i in kept], "label": [labels[i] for i in kept]}


if __name__ == "__main__":
    main()
