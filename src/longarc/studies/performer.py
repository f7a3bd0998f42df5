"""Study: random features of the softmax kernel: how near they come, and when they pay."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

from longarc.data.licenses import read_licenses
from longarc.models.attention.interface import set_attention
from longarc.models.attention.performer import performer_attention
from longarc.models.attention.random_features import draw_projections
from longarc.models.attention.softmax import softmax_attention
from longarc.models.loading import load_classifier, load_tokenizer
from longarc.report.drawing import SERIES, WIDE, Panel, data_of, panel
from longarc.studies.conclusion import Conclusion, conclude, measured
from longarc.studies.study import Finding, StudyFigure, StudyResult

DRAWS = ("iid", "orthogonal", "stratified", "optimal")
"""Ways to draw features; ``optimal`` are stratified and tilted."""

PUBLISHED_CROSSING = 5000


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    documents: int
    tokens: int
    features: tuple[int, ...]
    seeds: int
    lengths: tuple[int, ...]
    repeats: int


FULL = Size(8, 512, (16, 64, 256, 1024), 5, (256, 512, 1024, 2048, 4096, 8192), 9)
QUICK = Size(2, 64, (16, 64), 2, (128, 512), 2)


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of one layer on one document, each (1, h, n, d)."""

    query: Tensor
    key: Tensor
    value: Tensor


def performer(quick: bool = False) -> StudyResult:
    """Measure errors and times on MiniLM's own queries and keys.

    ``quick`` takes fewer documents, features and lengths: it shows that the study runs.
    """
    size = QUICK if quick else FULL
    tokenizer = load_tokenizer("minilm")
    texts = sorted(read_licenses("category", include_rules=False).texts, key=len)[::-1]
    chosen = texts[:: len(texts) // (4 * size.documents)][: size.documents]
    documents = [
        tokenizer(t, truncation=True, max_length=size.tokens, return_tensors="pt") for t in chosen
    ]
    encoder: Any = load_classifier("minilm", labels=("a", "b")).base_model.eval()
    with torch.inference_mode():
        heads = [layer for document in documents for layer in _layers(encoder, document)]
        plain = errors(heads, size, centre=False, balance=False)
        shifted = errors(heads, size, centre=True, balance=True)
        likeness = {m: embedding_cosines(encoder, documents, m) for m in size.features}
        times = [time_both(n, size.repeats) for n in size.lengths]
    crossing = next((row["tokens"] for row in times if row["ratio"] > 1), None)
    findings = _findings(plain, shifted, likeness, crossing, size)
    return StudyResult(
        title="Random features in place of the softmax",
        text=_text(size, len(heads)),
        findings=findings,
        table=[*_error_rows(plain, "as they are"), *_error_rows(shifted, "shifted and balanced")],
        figures=[_error_figure(plain, shifted), _time_figure(times)],
        source=(
            "Choromanski et al. 2021, “Rethinking Attention with Performers” (arXiv 2009.14794): "
            "positive orthogonal features. Even lengths, taken from the quantiles of the χ "
            "distribution, were proposed by Su Jianlin (2020, kexue.fm/archives/7921, in Chinese), "
            "as was the estimate that Performer pays from some 5,000 tokens on; tilted features, "
            "Likhosherstov et al. 2022 (arXiv 2205.15317)."
        ),
        conclusion=_conclusion(findings, size),
    )


def _conclusion(findings: Sequence[Finding], size: Size) -> Conclusion:
    return conclude(
        "Random features are said to stand in for the softmax, the nearer the more orthogonal and "
        f"even they are, and to pay from some {PUBLISHED_CROSSING:,} tokens on",
        findings,
        f"with m = {', '.join(map(str, size.features))} perpendicular features save "
        f"{measured(findings, 'Perpendicular')} of the error and evenly spread ones "
        f"{measured(findings, 'Evenly')}, and the first length measured at which 64 features are "
        f"faster than exact attention is {measured(findings, 'Performer pays')} tokens",
        "It depends on m and on how far apart queries and keys lie: shifting and balancing them "
        f"saves {measured(findings, 'Shifting')}, and the cosine to the pretrained model’s "
        f"document vectors is {measured(findings, 'A pretrained')}",
    )


def errors(
    heads: Sequence[Heads], size: Size, *, centre: bool, balance: bool
) -> dict[str, dict[int, list[float]]]:
    """Relative error of the attention's output for each way to draw, m and seed.

    ‖estimate − exact‖ / ‖exact − mean value‖: 1 is as wrong as attending to everything alike.
    """
    found: dict[str, dict[int, list[float]]] = {}
    exact = [softmax_attention(x.query, x.key, x.value) for x in heads]
    for draw in DRAWS:
        found[draw] = {m: [] for m in size.features}
        method = "stratified" if draw == "optimal" else draw
        for m in size.features:
            for seed in range(size.seeds):
                wrong, whole = 0.0, 0.0
                for x, target in zip(heads, exact, strict=True):
                    many, width = x.query.shape[1], x.query.shape[3]
                    omega = draw_projections(m, width, heads=many, method=method, seed=seed)
                    out = performer_attention(
                        x.query, x.key, x.value, omega,
                        centre=centre, balance=balance, optimal=draw == "optimal",
                    )  # fmt: skip
                    wrong += float((out - target).square().sum())
                    whole += float((target - x.value.mean(2, keepdim=True)).square().sum())
                found[draw][m].append((wrong / whole) ** 0.5)
    return found


def embedding_cosines(encoder: Any, documents: Sequence[Any], num_features: int) -> list[float]:
    """Cosine of each document's mean vector with that under exact attention."""
    before = [_code(encoder, document) for document in documents]
    set_attention(encoder, "performer", num_features=num_features)
    after = [_code(encoder, document) for document in documents]
    set_attention(encoder, "exact")
    return [float(cosine_similarity(a, b, dim=0)) for a, b in zip(before, after, strict=True)]


def time_both(tokens: int, repeats: int) -> dict[str, float]:
    """Milliseconds of fused softmax attention and of a performer with 64 features, in turns."""
    q, k, v = torch.randn(3, 1, 12, tokens, 32, generator=torch.Generator().manual_seed(0)).unbind()
    omega = draw_projections(64, 32, heads=12)
    runs: dict[str, Callable[[], Tensor]] = {
        "softmax": lambda: scaled_dot_product_attention(q, k, v),
        "performer": lambda: performer_attention(q, k, v, omega),
    }
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                spent[name].append(1000 * (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(spent["softmax"], spent["performer"], strict=True)]
    return {
        "tokens": tokens,
        "softmax": statistics.median(spent["softmax"]),
        "performer": statistics.median(spent["performer"]),
        "ratio": statistics.median(ratios),
    }


def _layers(encoder: Any, document: Any) -> list[Heads]:
    states = encoder(**document, output_hidden_states=True).hidden_states
    found = []
    for state, layer in zip(states[:-1], encoder.encoder.layer, strict=True):
        part = layer.attention.self
        many = part.num_attention_heads
        found.append(
            Heads(*(
                linear(state).unflatten(-1, (many, -1)).transpose(1, 2)
                for linear in (part.query, part.key, part.value)
            ))
        )  # fmt: skip
    return found


def _code(encoder: Any, document: Any) -> Tensor:
    return encoder(**document).last_hidden_state[0].mean(dim=0)


def _text(size: Size, many: int) -> tuple[str, ...]:
    return (
        "e^{q·k} is the mean of e^{ω·q − ‖q‖²/2} e^{ω·k − ‖k‖²/2} over Gaussian ω. With m draws in "
        "place of the mean, attention costs n m and not n². Perpendicular ω, and lengths of ω that "
        "are spread evenly, are said to bring the estimate nearer; and Performer to pay from some "
        "5,000 tokens on.",
        f"Errors are those of the attention’s output in {many // size.documents} layers of "
        "all-MiniLM-L6-v2 reading "
        f"{size.documents} licence texts of up to {size.tokens} tokens, over {size.seeds} draws: "
        "the size of the difference to exact attention, where 1 is the size of what attention adds "
        "to the plain mean of the values. “Shifted and balanced” are queries and keys measured "
        "from the document’s means and scaled against each other, which leaves exact attention as "
        "it is. Times are of 12 heads of 32 numbers and 64 features on this machine’s CPU, in "
        "turns with PyTorch’s fused attention.",
    )


def _findings(
    plain: dict[str, dict[int, list[float]]],
    shifted: dict[str, dict[int, list[float]]],
    likeness: dict[int, list[float]],
    crossing: float | None,
    size: Size,
) -> list[Finding]:
    most = size.features[-1]
    pairs = (
        ("Perpendicular features err less than independent ones.", "iid", "orthogonal"),
        ("Evenly spread lengths err less than random ones.", "orthogonal", "stratified"),
        ("Tilted (“optimal”) features err less than plain ones.", "stratified", "optimal"),
    )
    found = []
    for claim, worse, better in pairs:
        gains = [
            1 - statistics.mean(plain[better][m]) / statistics.mean(plain[worse][m])
            for m in size.features
        ]
        spread = max(
            statistics.stdev(plain[draw][m]) / statistics.mean(plain[draw][m])
            for draw in (worse, better)
            for m in size.features
        )
        found.append(
            Finding(
                claim,
                "less at every m",
                ", ".join(f"{gain:+.1%}" for gain in gains),
                all(gain > spread / size.seeds**0.5 for gain in gains),
                "Error saved at m = "
                + ", ".join(map(str, size.features))
                + f"; {size.seeds} draws, whose errors differ by up to {spread:.1%}. Holds if each "
                "is above the standard error.",
            )
        )
    saved = [
        1 - statistics.mean(shifted["stratified"][m]) / statistics.mean(plain["stratified"][m])
        for m in size.features
    ]
    cosines = {m: statistics.mean(values) for m, values in likeness.items()}
    found += [
        Finding(
            "Shifting and balancing queries and keys lowers the error.",
            "less at every m",
            ", ".join(f"{gain:+.1%}" for gain in saved),
            min(saved) > 0,
            "Error saved at the same m, stratified features.",
        ),
        Finding(
            "A pretrained encoder’s weights need training before Performer can stand in.",
            "not the same vectors",
            ", ".join(f"{m}: {value:.3f}" for m, value in cosines.items()),
            cosines[most] < 0.95,
            "Cosine of document vectors with those under exact attention, by m; longarc’s default "
            f"features. Holds if it is below .95 at m = {most}.",
        ),
        Finding(
            "Performer pays from some 5,000 tokens on.",
            PUBLISHED_CROSSING,
            "never" if crossing is None else crossing,
            crossing is not None and crossing > PUBLISHED_CROSSING / 2,
            f"The shortest of {', '.join(map(str, size.lengths))} tokens at which 64 features are "
            "faster than fused exact attention. Does not hold if that is below half of 5,000, or "
            "if none of them is.",
        ),
    ]
    return found


def _error_rows(found: dict[str, dict[int, list[float]]], how: str) -> list[dict[str, str | float]]:
    return [
        {
            "features": draw,
            "queries and keys": how,
            **{f"m = {m}": statistics.mean(values) for m, values in by_number.items()},
        }
        for draw, by_number in found.items()
    ]


def _error_figure(
    plain: dict[str, dict[int, list[float]]], shifted: dict[str, dict[int, list[float]]]
) -> StudyFigure:
    rows = [
        {"features": name, "m": m, "error": statistics.mean(values)}
        for name, by_number in [
            *plain.items(), ("stratified, shifted and balanced", shifted["stratified"])
        ]
        for m, values in by_number.items()
    ]  # fmt: skip
    said = "; ".join(f"{r['features']}, m = {r['m']}: {r['error']:.2f}" for r in rows)
    return StudyFigure(
        "errors",
        "Error of the attention’s output against the number of features m; both axes logarithmic. "
        "1 is as far from exact attention as the plain mean of all values.",
        _lines("How near", f"Relative error: {said}.", rows, "m", "error", "features", "error"),
    )


def _time_figure(times: Sequence[dict[str, float]]) -> StudyFigure:
    rows = [
        {"attention": name, "tokens": row["tokens"], "ms": row[key]}
        for row in times
        for name, key in (("fused softmax", "softmax"), ("performer, m = 64", "performer"))
    ]
    said = "; ".join(f"{r['attention']}, {r['tokens']} tokens: {r['ms']:.1f} ms" for r in rows)
    return StudyFigure(
        "times",
        "Milliseconds of a forward pass of attention against the number of tokens; both axes "
        "logarithmic.",
        _lines("How fast", f"Times: {said}.", rows, "tokens", "ms", "attention", "milliseconds"),
    )


def _lines(
    title: str, said: str, rows: list[dict[str, Any]], x: str, y: str, who: str, unit: str
) -> Panel:
    import altair as alt

    names = list(dict.fromkeys(row[who] for row in rows))

    def make(width: int) -> Any:
        scale = alt.Scale(domain=names, range=SERIES[: len(names)])
        encoding = alt.Chart(data_of(rows)).encode(
            alt.X(f"{x}:Q", scale=alt.Scale(type="log", base=2), title=x),
            alt.Y(f"{y}:Q", scale=alt.Scale(type="log"), title=unit),
            alt.Color(f"{who}:N", scale=scale, legend=alt.Legend(columns=1 if width < WIDE else 3)),
        )
        drawn = encoding.mark_line(strokeWidth=2) + encoding.mark_point(filled=True, size=40)
        return drawn.properties(width=width - 90, height=280)

    return panel(title, said, make)
