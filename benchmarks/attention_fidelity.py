r"""How near each attention kernel comes to exact attention, on a pretrained encoder.

    python benchmarks/attention_fidelity.py local-clustered learned --minutes 5
    python benchmarks/attention_fidelity.py clustered --options '{"num_clusters": 64}'

The measure is the cosine of MiniLM's mean-pooled embeddings to those of exact attention, on 16
licence texts cut to 512 tokens and 16 cut to 2,048 (with stretched positions). Kernels that learn
are calibrated first, on other texts of that length. A row for each kernel and length.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from longarc.data.licenses import read_licenses
from longarc.models.attention.calibration import calibrate_attention
from longarc.models.attention.interface import set_attention
from longarc.models.attention.registry import attention_names
from longarc.models.loading import load_tokenizer, resolve_model
from longarc.models.positions import stretch_positions
from rows import append_row

HELD_OUT = 16
LENGTHS = (512, 2048)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=["local-clustered", "learned"])
    parser.add_argument("--options", type=json.loads, default={}, help="of the kernels, as JSON")
    parser.add_argument("--minutes", type=float, default=5.0, help="of calibration")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--dry", action="store_true", help="print and write no row")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(attention_names())
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {attention_names()}")
    for length in chosen.lengths:
        tokenizer = load_tokenizer("minilm")
        texts, others = _texts(tokenizer, length)
        for name in chosen.names:
            figures = measure(
                name, chosen.options, length, tokenizer, texts, others, chosen.minutes
            )
            figures = {"attention": name, "options": chosen.options, "tokens": length, **figures}
            if chosen.dry:
                print(json.dumps(figures))
            else:
                append_row("attention-fidelity", **figures)


def measure(
    name: str,
    options: dict[str, Any],
    length: int,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    others: list[str],
    minutes: float,
) -> dict[str, Any]:
    """Embed with exact attention and with the kernel, and compare."""
    model = AutoModel.from_pretrained(resolve_model("minilm")).eval()
    if length > 512:
        stretch_positions(model, length)
    exact = _embed(model, tokenizer, texts, length)
    set_attention(model, name, **options)
    figures: dict[str, Any] = {}
    if any("attention_kernel" in key for key, _ in model.named_parameters()):
        report = calibrate_attention(
            model, others, tokenizer=tokenizer, minutes=minutes, max_length=length,
            batch_size=max(1, 1024 // length),
        )  # fmt: skip
        figures = {"calibration_minutes": round(report.minutes, 2), "steps": report.steps}
    cosine = cosine_similarity(_embed(model, tokenizer, texts, length), exact)
    return {
        "cosine": round(float(cosine.mean()), 4),
        "min": round(float(cosine.min()), 4),
        "max": round(float(cosine.max()), 4),
        "documents": len(texts),
        **figures,
    }


def _texts(tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[list[str], list[str]]:
    """Texts of more than so many tokens: those held out, always the same, and the others."""
    texts = read_licenses("category", include_rules=False).texts
    counted = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    long = [text for text, ids in zip(texts, counted, strict=True) if len(ids) >= length]
    random.Random(2026).shuffle(long)
    return long[:HELD_OUT], long[HELD_OUT:]


@torch.inference_mode()
def _embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int
) -> torch.Tensor:
    found = []
    for text in texts:
        batch = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        found.append(model(**batch).last_hidden_state.mean(dim=1))
    return torch.cat(found)


if __name__ == "__main__":
    main()
