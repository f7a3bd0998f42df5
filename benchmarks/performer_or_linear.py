"""Is Performer faster than plain linear attention? MiniLM's predictions with both, turn by turn.

    python benchmarks/performer_or_linear.py models [--turns 7] [--documents 8] [--out FOLDER]
    python benchmarks/performer_or_linear.py kernels [--turns 7]

Long Range Arena's chart has Performer to the right of linear attention (Katharopoulos et al. 2020,
φ = elu + 1), though it computes the same sums over more features, and these features besides. Here
``models`` reads the same licence texts of more than 2,048 tokens, cut to 512 and to 2,048, by
``longarc compare``: each kernel in a process of its own that stays alive, one turn to warm up, then
turns one after the other. Nothing is trained but a linear probe.

``kernels`` times the attention alone, for one document and for eight. Beside longarc's performer,
which works in blocks that stay in the cache, stands the plain form of the same sums: every feature
of every token is written to memory first, as ``linear`` does it. ``mask``: told which tokens are
padding, as models do. CPU time of one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import longarc
from longarc.data.licenses import read_licenses
from longarc.models.attention.linear import linear_attention
from longarc.models.attention.performer import performer_attention
from longarc.models.attention.random_features import draw_projections
from longarc.models.loading import load_tokenizer
from rows import append_row, spread

LENGTHS = (512, 2048)
KERNELS = {
    "linear": {"attention": "linear"},
    "performer-64": {"attention": "performer", "attention_options": {"num_features": 64}},
    "performer-256": {"attention": "performer", "attention_options": {"num_features": 256}},
}


def main() -> None:
    """Measure and append a row for each length and kernel."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=["models", "kernels"], default="models")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--out", default=None, help="keep the comparison there")
    chosen = parser.parse_args()
    if chosen.what == "kernels":
        kernels(chosen.turns)
    else:
        models(chosen.turns, chosen.documents, chosen.out)


def models(turns: int, documents: int, out: str | None) -> None:
    """MiniLM with each kernel, by a comparison whose trainings are linear probes."""
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
            long_texts(4 * documents), candidates=candidates, budget_steps=1,
            validation_fraction=0, test_fraction=0.3, documents=documents,
            repeats=turns, out=out or Path(temporary) / "comparison",
        ).found  # fmt: skip
    for row in found["candidates"]:
        name, _, length = row["name"].partition(" at ")
        append_row(
            "performer-or-linear", attention=name, tokens=int(length),
            documents_per_second=row["prediction_documents_per_second"],
            peak_mib=row["prediction_peak_mib"], documents=found["speed"]["documents"],
            threads=found["machine"]["threads"], load=found["machine"]["load"],
        )  # fmt: skip


def kernels(turns: int) -> None:
    """The attention of MiniLM's shape alone, on numbers from a normal distribution."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    projections = draw_projections(64, 32, heads=12)
    calls: dict[str, Callable[..., Tensor]] = {
        "linear": linear_attention,
        "performer-64": lambda q, k, v: performer_attention(q, k, v, projections),
        "performer-64, plain": lambda q, k, v: plain_performer(q, k, v, projections),
    }
    for documents in (1, 8):
        for length in LENGTHS:
            q, k, v = torch.randn(3, documents, 12, length, 32, generator=generator).unbind()
            # Without what longarc adds to FAVOR+, the two forms are the same sums.
            same = performer_attention(
                q, k, v, projections, centre=False, balance=False, optimal=False
            )
            torch.testing.assert_close(same, plain_performer(q, k, v, projections))
            mask = torch.ones(documents, length, dtype=torch.bool)
            calls["linear, mask"] = lambda q, k, v, m=mask: linear_attention(q, k, v, mask=m)
            calls["performer-64, mask"] = lambda q, k, v, m=mask: performer_attention(
                q, k, v, projections, mask=m
            )
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for turn in range(turns + 1):
                for name, call in calls.items():
                    start = time.process_time()
                    with torch.inference_mode():
                        call(q, k, v)
                    if turn:  # the first warms up
                        seconds[name].append(time.process_time() - start)
            for name in calls:
                append_row(
                    "performer-or-linear-kernels", attention=name, tokens=length,
                    documents=documents, threads=1,
                    milliseconds=spread([1000 * s / documents for s in seconds[name]]),
                )  # fmt: skip


def plain_performer(query: Tensor, key: Tensor, value: Tensor, projections: Tensor) -> Tensor:
    """FAVOR+ with every feature in memory at once: φ(q) (φ(k)ᵀ v) / φ(q) (φ(k)ᵀ 1)."""
    scale = query.shape[-1] ** -0.25
    q, k = scale * query, scale * key
    of_q = q @ projections.mT
    of_k = k @ projections.mT - k.square().sum(-1, keepdim=True) / 2
    phi_q = (of_q - of_q.amax(-1, keepdim=True)).exp()
    phi_k = (of_k - of_k.amax((-2, -1), keepdim=True)).exp()
    return phi_q @ (phi_k.mT @ value) / (phi_q @ phi_k.sum(-2, keepdim=True).mT)


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
