"""The study's entry: MiniLM with more positions, before and after a training, and what it says."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertForMaskedLM

from longarc.models.pooling import mean_pool
from longarc.models.positions import stretch_positions
from longarc.studies.conclusion import Conclusion, conclude, measured
from longarc.studies.positions.figures import figures
from longarc.studies.shared.masked_tokens import (
    BLOCKS,
    MaskedTexts,
    accuracy,
    learn,
    masked_texts,
    minilm_for_masked_tokens,
)
from longarc.studies.study import Finding, StudyResult

PUBLISHED = {"windows": 0.55, "stretched": 0.38, "trained": 0.55}
"""RoBERTa-base, Chinese: accuracy at 512 tokens, at 1,536 straight away, after 3,000 steps."""


SECOND = "from position 2"
"""Hierarchical with α = 0.4 and ``origin=2``, longarc's default; the others are as published."""


@dataclass(frozen=True)
class Size:
    """How much is measured: n positions, and numbers of texts and of values of α."""

    n: int
    learned: int
    adapted: int
    tested: int
    alphas: tuple[float, ...]


FULL = Size(128, learned=800, adapted=120, tested=60, alphas=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8))
QUICK = Size(32, learned=1, adapted=1, tested=2, alphas=(0.2, 0.4))


@dataclass(frozen=True)
class Way:
    """One way to get more positions, and what was measured with it.

    ``codes`` is the mean cosine between the code of a window where it was trained to be read and
    its code one and two blocks further on; ``straight`` and ``trained`` (texts, BLOCKS) are the
    share of masked tokens restored, right after stretching and after training at that length.
    """

    name: str
    alpha: float | None
    codes: float
    straight: Tensor
    trained: Tensor | None


def positions(quick: bool = False) -> StudyResult:
    """Stretch MiniLM threefold in every way; measure what it restores before and after training.

    ``quick`` does so with its first 32 positions and hardly any text: it shows that the study runs,
    and its numbers say nothing.
    """
    size = QUICK if quick else FULL
    texts = masked_texts(size.n, size.tested + size.learned + size.adapted)
    tested, rest = texts[: size.tested], texts[size.tested :]
    untouched = minilm_for_masked_tokens(size.n)
    model = copy.deepcopy(untouched)
    learn(model, rest[: size.learned].windows())
    further = rest[size.learned :]

    in_windows = _by_text(accuracy(model, tested.windows()))
    ways = [
        _measure(untouched, model, tested, further, "hierarchical", a, train=a == 0.4)
        for a in size.alphas
    ]
    for name in (SECOND, "copy", "interpolate"):
        train = name != "interpolate"
        ways.append(_measure(untouched, model, tested, further, name, None, train=train))
    unchanged = _largest_change(model, tested.windows())
    learn(model, further.windows())  # as many texts as the stretched ones get, in windows
    in_windows_after = _by_text(accuracy(model, tested.windows()))
    found = _findings(ways, in_windows, in_windows_after, unchanged)
    return StudyResult(
        title="Positions decomposed into a coarse and a fine index",
        text=_text(size, untouched),
        findings=found,
        table=[
            _row("windows", None, None, in_windows, in_windows_after),
            *(_row(w.name, w.alpha, w.codes, w.straight, w.trained) for w in ways),
        ],
        figures=figures(ways, in_windows, PUBLISHED, untouched),
        source=(
            "Su Jianlin 2020, “Hierarchically decomposed positions, so that BERT can handle very "
            "long text” (in Chinese, kexue.fm/archives/7947): RoBERTa-base, Chinese, accuracy of "
            "masked tokens at 1,536 tokens 38 % straight after stretching and, within 3,000 steps, "
            "55 % again, its value at 512; α = 0.4 the best of those tried."
        ),
        conclusion=_conclusion(found),
    )


def _conclusion(found: Sequence[Finding]) -> Conclusion:
    ahead = "Straight after stretching, α = 0.4 restores no less than"
    return conclude(
        "Trained positions, combined by a coarse and a fine index, are said to serve longer texts "
        "after a short training, α = 0.4 being the best",
        found,
        "of masked tokens the stretched model restores "
        f"{measured(found, 'Straight after stretching, fewer')} in windows straight away and "
        f"{measured(found, 'After a short training')} after the training measured",
        "It depends on α and on the training: the cosine of a later block’s code to the first "
        f"one’s goes {measured(found, 'The greater α')}, the α that restores most is "
        f"{measured(found, 'No other α')}, and copying has {measured(found, f'{ahead} copying')}",
    )


def _text(size: Size, untouched: BertForMaskedLM) -> tuple[str, ...]:
    length = BLOCKS * (size.n - 2) + 2
    table: Any = untouched.bert.embeddings.position_embeddings
    first, *others = table.weight.detach().norm(dim=1).tolist()
    return (
        "From trained positions p_1 … p_n come n² with q_{(i−1)n+j} = p_j + α/(1−α) (p_i − p_1): "
        "block i is the trained table moved by one vector. With α near 0 that is copying the "
        "table; the greater α, the better blocks are told apart, and the further all but the "
        "first are from what the model was trained on.",
        f"The model is all-MiniLM-L6-v2 with its first {size.n} positions, stretched to {length}: "
        "so short, that a machine without a GPU can train it on enough texts. It gets a new head "
        "for masked tokens (the table of words, not trained, is its last layer), and "
        f"learns to restore 15 % of the tokens of {size.learned} licence texts, in windows of "
        f"{size.n}. Then {size.tested} other texts are read as a whole, with the same tokens "
        "masked as in windows. “After training” is one more pass over "
        f"{size.adapted} further texts at full length (for the windows, in windows). Licence texts "
        "resemble each other, so accuracies are above those of ordinary text; one seed; "
        "differences count from two standard errors over the texts.",
        f"The model’s first position, that of [CLS], is unlike the others: its norm is "
        f"{first:.2f}, theirs {sum(others) / len(others):.2f} on average. So p_i − p_1 is much the "
        "same for every i, and all blocks but the first are moved by one large vector. “From "
        "position 2” is α = 0.4 with blocks moved by α/(1−α) (p_{i+1} − p_2) instead, which is "
        "not published, and longarc’s default.",
        "Before any of that, the untouched encoder reads windows with the position ids of the "
        "second and third block: the cosine between a window’s code there and its code in the "
        "first block says what new positions alone do to it. Published figures are of a larger "
        "model and thousands of steps: compare directions, not values.",
    )


def _measure(
    untouched: BertForMaskedLM,
    model: BertForMaskedLM,
    tested: MaskedTexts,
    further: MaskedTexts,
    name: str,
    alpha: float | None,
    *,
    train: bool,
) -> Way:
    n = model.config.max_position_embeddings
    length = BLOCKS * (n - 2) + 2
    how: dict[str, Any] = {"method": name}
    if name in ("hierarchical", SECOND):
        how = {"alpha": alpha or 0.4, "origin": 2 if name == SECOND else 1}
    home = _codes(untouched, tested, 0)
    moved = stretch_positions(copy.deepcopy(untouched), BLOCKS * n, **how)
    away = torch.cat([_codes(moved, tested, block) for block in range(1, BLOCKS)])
    codes = functional.cosine_similarity(away, home.repeat(BLOCKS - 1, 1))
    stretched = stretch_positions(copy.deepcopy(model), length, **how)
    straight = accuracy(stretched, tested)
    trained = None
    if train:
        learn(stretched, further)
        trained = accuracy(stretched, tested)
    return Way(name, alpha, float(codes.mean()), straight, trained)


@torch.inference_mode()
def _codes(model: BertForMaskedLM, texts: MaskedTexts, block: int) -> Tensor:
    """The mean of the states (texts, d) of each text's first window, read in a later block."""
    ids, _ = texts[:].windows()[:: texts.tokens.shape[1]].inputs()
    places = torch.arange(ids.shape[1])[None] + block * ids.shape[1]
    encoder: Any = model.bert
    return torch.cat(
        [
            mean_pool(encoder(input_ids=row[None], position_ids=places).last_hidden_state)
            for row in ids
        ]
    )


@torch.inference_mode()
def _largest_change(model: BertForMaskedLM, windows: MaskedTexts) -> float:
    """How far a stretch moves the states of a text that needed none."""
    ids, _ = windows[:1].inputs()
    stretched: Any = stretch_positions(copy.deepcopy(model), BLOCKS * ids.shape[1])
    before: Any = model.bert
    change = stretched.bert(ids).last_hidden_state - before(ids).last_hidden_state
    return float(change.abs().max())


def _by_text(shares: Tensor) -> Tensor:
    """Windows' shares (texts · BLOCKS, 1) as (texts, BLOCKS)."""
    return shares.view(-1, BLOCKS)


def _findings(
    ways: Sequence[Way], windows: Tensor, windows_after: Tensor, unchanged: float
) -> list[Finding]:
    chosen = next(way for way in ways if way.alpha == 0.4)
    others = [way for way in ways if way.alpha is not None]
    second, copied, drawn = (
        next(w for w in ways if w.name == name) for name in (SECOND, "copy", "interpolate")
    )
    trained = chosen.straight if chosen.trained is None else chosen.trained
    loss, noise = _difference(chosen.straight, windows)
    back, back_noise = _difference(trained, windows_after)
    best = max(others, key=lambda way: float(way.straight.mean()))
    ahead, ahead_noise = _difference(best.straight, chosen.straight)
    tested = f"{len(windows)} texts; ± is one standard error of the difference over texts"
    return [
        Finding(
            "A text that fits the trained positions is read as before, to the bit.",
            0.0,
            unchanged,
            unchanged == 0,
            "Largest difference of any state of one window, before and after the stretch.",
        ),
        Finding(
            "Straight after stretching, fewer masked tokens are restored than in windows.",
            "38 % against 55 %",
            f"{chosen.straight.mean():.1%} against {windows.mean():.1%}",
            loss < -2 * noise,
            f"α = 0.4; difference {loss:+.1%} ± {noise:.1%}; {tested}.",
        ),
        Finding(
            "After a short training at the new length, as many are restored as in windows.",
            "55 % against 55 %",
            f"{trained.mean():.1%} against {windows_after.mean():.1%}",
            back >= -2 * back_noise,
            f"Windows trained on the same texts; difference {back:+.1%} ± {back_noise:.1%}; "
            f"{tested}. Holds unless it is below zero by more than two.",
        ),
        Finding(
            "No other α restores measurably more than 0.4 straight after stretching.",
            0.4,
            best.alpha or 0.0,
            ahead <= 2 * ahead_noise,
            f"The best α is ahead of 0.4 by {ahead:.1%} ± {ahead_noise:.1%}; {tested}.",
        ),
        *(
            _against(chosen, other, label, tested)
            for other, label in (
                (copied, "copying"),
                (drawn, "interpolation"),
                (second, "the same with blocks measured from position 2"),
            )
        ),
        Finding(
            "The greater α, the more a later block changes what a window means.",
            "falling",
            ", ".join(f"{way.codes:.3f}" for way in others),
            all(a.codes > b.codes for a, b in itertools.pairwise(others)),
            "Cosine to the code in the first block, for α = "
            + ", ".join(f"{way.alpha:g}" for way in others)
            + "; the untouched encoder. Copying has 1 by construction.",
        ),
    ]


def _against(chosen: Way, other: Way, label: str, tested: str) -> Finding:
    ahead, noise = _difference(chosen.straight, other.straight)
    return Finding(
        f"Straight after stretching, α = 0.4 restores no less than {label} does.",
        "no less",
        f"{chosen.straight.mean():.1%} against {other.straight.mean():.1%}",
        ahead >= -2 * noise,
        f"longarc’s question, not published; difference {ahead:+.1%} ± {noise:.1%}; {tested}.",
    )


def _difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Mean difference of two shares (texts, BLOCKS) and its standard error over the texts."""
    by_text = one.mean(1) - other.mean(1)
    return float(by_text.mean()), float(by_text.std() / len(by_text) ** 0.5)


def _row(
    name: str, alpha: float | None, codes: float | None, straight: Tensor, trained: Tensor | None
) -> dict[str, str | float]:
    return {
        "positions": name if alpha is None else f"{name}, α = {alpha:g}",
        "straight": float(straight.mean()),
        **{f"block {i + 1}": float(straight[:, i].mean()) for i in range(BLOCKS)},
        "after training": "" if trained is None else float(trained.mean()),
        "code, cosine": "" if codes is None else codes,
    }
