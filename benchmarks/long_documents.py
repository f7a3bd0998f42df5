r"""What length and attention cost and bring: MiniLM end to end, on licence texts.

    python benchmarks/long_documents.py speed [--lengths 512 2048] [--repeats 3]
    python benchmarks/long_documents.py quality [--documents 600] [--options '{"epochs": 2}']
    python benchmarks/long_documents.py swap [--documents 300]

``speed``: documents a second of the whole encoder with each attention, one document at a time,
interleaved over the attentions; peak memory beyond the loaded model, in a process of its own each.
Beside them, transformers' own encoders for long texts in MiniLM's size, with random weights: they
have none of MiniLM's, so that time and memory alone can be compared.

``quality``: licence categories of texts that are longer than 512 tokens, read to 512 or 2,048, with
exact attention or a kernel. Each is a process of its own: figures with intervals, minutes, and the
peak memory of the process. By default the encoder is frozen and a linear probe is fitted, so that
attention is swapped without any training; the options can say otherwise.

``swap``: the same question without fine-tuning and with every document as a test document. MiniLM
reads the texts as it is, with exact attention and with each kernel; a logistic regression on its
vectors is fitted in ten folds, on the exact vectors (``swapped``) or on the kernel's own
(``own``), and judges the fold left out by the kernel's. With paired bootstrap intervals of the
differences to exact attention at the same length.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, BigBirdConfig, LongformerConfig, NystromformerConfig

import longarc
from longarc.data.licenses import read_licenses
from longarc.data.table_writer import table_writer
from longarc.models.attention.registry import ATTENTIONS, EXACT
from longarc.models.loading import load_classifier, load_tokenizer
from longarc.training.prediction import Predictor, bfloat16_is_fast
from rows import append_row, peak_growth, spread

LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]
FIGURES = ("accuracy", "macro_f1", "balanced_accuracy")
PEERS: dict[str, Any] = {
    # As much exact attention as longarc's windows of 64 tokens have, 192 a token.
    "transformers-longformer": (LongformerConfig, {"attention_window": 192}),
    "transformers-big-bird": (BigBirdConfig, {"block_size": 64, "num_random_blocks": 3}),
    "transformers-nystromformer": (NystromformerConfig, {"num_landmarks": 64}),
}


def main() -> None:
    """Measure and append a row for each length and attention."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "what", nargs="?", choices=["speed", "quality", "swap", "one"], default="speed"
    )
    parser.add_argument("--attentions", nargs="+", default=[EXACT, *ATTENTIONS, *PEERS])
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=600, help="for quality; 0 for all")
    parser.add_argument("--options", type=json.loads, default={}, help="of the training, as JSON")
    parser.add_argument("--one", type=json.loads, help="the part of a process of its own")
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if chosen.what == "one":
        print(json.dumps(_one(**chosen.one)))
    elif chosen.what == "speed":
        for length in chosen.lengths or LENGTHS:
            speed(length, chosen.attentions, chosen.repeats)
    elif chosen.what == "swap":
        ours = [name for name in chosen.attentions if name not in (EXACT, *PEERS)]
        swap(ours, chosen.documents, chosen.lengths or [512, 2048])
    else:
        ours = [name for name in chosen.attentions if name not in PEERS]
        quality(chosen.lengths or [512, 2048], ours, chosen.documents, chosen.options)


def speed(length: int, attentions: list[str], repeats: int) -> None:
    """Time whole forward passes of one document, attention by attention, round after round."""
    encoders = {name: _encoder(name, length) for name in attentions}
    tokens = _tokens(length)
    seconds: dict[str, list[float]] = {name: [] for name in attentions}
    for turn in range(repeats + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            _read(encoder, tokens)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    for name in attentions:
        peak = _in_process(kind="memory", name=name, length=length)["peak_mib"]
        append_row(
            "long-documents-speed",
            attention=name,
            tokens=length,
            documents_per_second=round(1 / sorted(seconds[name])[len(seconds[name]) // 2], 3),
            seconds=spread(seconds[name]),
            peak_mib=peak,
            threads=torch.get_num_threads(),
        )


def quality(
    lengths: list[int], attentions: list[str], documents: int, options: dict[str, Any]
) -> None:
    """Train on the long texts alone, once for each length and attention."""
    examples = _long_texts()
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / "long-licences.parquet"
        with table_writer(table) as write:
            write({"text": examples.texts, "label": examples.labels or []})
        for length in lengths:
            for name in attentions if length > 512 else [EXACT]:
                found = _in_process(
                    kind="training", name=name, length=length, table=str(table),
                    documents=documents, options=options,
                )  # fmt: skip
                append_row(
                    "long-documents-quality", attention=name, tokens=length, **found,
                    options=options, documents=min(documents or len(examples), len(examples)),
                )  # fmt: skip


def swap(attentions: list[str], documents: int, lengths: list[int]) -> None:
    """Classify MiniLM's vectors as they are, with each attention in the place of the exact one."""
    examples = _long_texts()
    order = np.random.default_rng(0).permutation(len(examples))[: documents or None]
    examples = examples.select([int(i) for i in order])
    truth = np.array(examples.labels)
    for length in lengths:
        exact, seconds = _vectors(EXACT, length, examples.texts)
        reference = _judge(exact, exact, truth)
        row = {"tokens": length, "documents": len(truth), "classes": len(set(truth))}
        found = _shares(reference, reference, truth)
        append_row("long-documents-swap", attention=EXACT, **row, own=found, seconds=seconds)
        for name in attentions if length > 512 else []:
            vectors, seconds = _vectors(name, length, examples.texts)
            cosine = (exact * vectors).sum(1) / _norm(exact) / _norm(vectors)
            append_row(
                "long-documents-swap", attention=name, **row, seconds=seconds,
                cosine=spread([float(x) for x in cosine]),
                swapped=_shares(_judge(exact, vectors, truth), reference, truth),
                own=_shares(_judge(vectors, vectors, truth), reference, truth),
            )  # fmt: skip


def _long_texts() -> Any:
    """The licence texts of more than 512 tokens, with their categories."""
    examples = read_licenses("category")
    tokenizer = load_tokenizer("minilm")
    counts = tokenizer(examples.texts, return_length=True, verbose=False)["length"]
    return examples.select([i for i, count in enumerate(counts) if count > 512])


def _vectors(name: str, length: int, texts: list[str]) -> tuple[np.ndarray, float]:
    """MiniLM's pooled vectors (N, 384), and the seconds that a text took."""
    model = load_classifier("minilm", labels=("a", "b"))
    if length > 512:
        longarc.stretch_positions(model, length)
    longarc.set_attention(model, name)
    predictor = Predictor(
        model, load_tokenizer("minilm"), max_length=length, batch_size=4,
        bf16=bfloat16_is_fast(model.device),
    )  # fmt: skip
    start = time.perf_counter()
    return predictor.features(texts), round((time.perf_counter() - start) / len(texts), 4)


def _judge(fitted: np.ndarray, judged: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Each document's class by a regression on the ``fitted`` vectors of the other folds."""
    answer = truth.copy()
    for train, test in KFold(10, shuffle=True, random_state=0).split(fitted):
        model = LogisticRegression(C=10, class_weight="balanced", max_iter=2000)
        scale = StandardScaler().fit(fitted[train])
        model.fit(scale.transform(fitted[train]), truth[train])
        answer[test] = model.predict(scale.transform(judged[test]))
    return answer


def _shares(answer: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Accuracy and macro-F1, their differences to the reference's with 95 % intervals."""

    def figures(rows: np.ndarray, which: np.ndarray) -> tuple[float, float]:
        f1 = f1_score(truth[rows], which[rows], average="macro", labels=classes, zero_division=0)
        return float((truth == which)[rows].mean()), float(f1)

    classes = sorted(set(truth))
    every, generator = np.arange(len(truth)), np.random.default_rng(0)
    drawn = [generator.integers(0, len(truth), len(truth)) for _ in range(500)]
    differences = np.array(
        [np.subtract(figures(rows, answer), figures(rows, reference)) for rows in drawn]
    )
    low, high = np.quantile(differences, [0.025, 0.975], axis=0).round(4).tolist()
    accuracy, f1 = (round(x, 4) for x in figures(every, answer))
    return {
        "accuracy": accuracy, "macro_f1": f1, "agreement": round((answer == reference).mean(), 4),
        "accuracy_less_exact": [low[0], high[0]], "macro_f1_less_exact": [low[1], high[1]],
    }  # fmt: skip


def _norm(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=1)


def _in_process(**what: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "one", "--one", json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def _one(kind: str, name: str, length: int, **more: Any) -> dict[str, Any]:
    if kind == "memory":
        encoder = _encoder(name, length)
        _read(encoder, _tokens(64))
        tokens = _tokens(length)
        return {"peak_mib": peak_growth(lambda: _read(encoder, tokens))}
    options = {
        "freeze": True, "max_length": length, "test_fraction": 0.3, "seed": 0, "verbose": False,
        "limit": more["documents"] or None, **more["options"],
    }  # fmt: skip
    if length > 512:
        options |= {"positions": "hierarchical", "attention": name}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        run = longarc.fit(
            more["table"], text="text", label="label", out=Path(temporary) / "run", **options
        )
        model, svm = run.metrics["test"]["model"], run.metrics["test"]["baselines"]["tfidf-svm"]
    return {
        **{figure: model[figure] for figure in FIGURES},
        "tfidf_svm": {figure: svm[figure] for figure in FIGURES},
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "cpu_minutes": round(time.process_time() / 60, 2),  # what a busy machine leaves as it is
        "peak_mib": round(_peak_mib()),
    }


def _encoder(name: str, length: int) -> Any:
    if name in PEERS:
        return _peer(name, length)
    encoder = load_classifier("minilm", labels=("a", "b")).base_model
    if length > 512:
        longarc.stretch_positions(encoder, length)
    return longarc.set_attention(encoder, name).eval()


def _peer(name: str, length: int) -> Any:
    """One of transformers' encoders, as wide and as deep as MiniLM."""
    kind, options = PEERS[name]
    config = kind(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=length + 2, pad_token_id=0, **options,
    )  # fmt: skip
    return AutoModel.from_config(config).eval()


def _tokens(length: int) -> torch.Tensor:
    """The longest licence texts' tokens, one after the other."""
    texts = sorted(read_licenses("category", include_rules=False).texts, key=len)[-8:]
    tokenizer = load_tokenizer("minilm")
    joined = [token for text in texts for token in tokenizer(text, verbose=False)["input_ids"]]
    return torch.tensor([joined[:length]])


@torch.inference_mode()
def _read(encoder: Any, tokens: torch.Tensor) -> None:
    encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
