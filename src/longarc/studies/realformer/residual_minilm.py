"""Residual attention put into a pretrained encoder: what is lost at once, what comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from transformers import BertForMaskedLM

from longarc.models.attention.residual_interface import set_residual_attention
from longarc.studies.shared.masked_tokens import (
    BLOCKS,
    MaskedTexts,
    accuracy,
    learn,
    masked_texts,
    minilm_for_masked_tokens,
)

WAYS = ("none", "plain", "gate")
"""No residual attention; scores added in full; scores added by gates that are 0 at the start."""


@dataclass(frozen=True)
class Introduced:
    """Shares (texts,) of masked tokens restored, before and after the training that follows."""

    way: str
    before: Tensor
    after: Tensor


def introduce(
    n: int,
    *,
    learned: int,
    adapted: int,
    tested: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Introduced]:
    """Give MiniLM residual attention in each way, and train it on the same texts.

    It learns to restore masked tokens first, in windows of n tokens of ``learned`` texts; then come
    ``adapted`` more with the attention it was given. ``tested`` other texts are measured.
    """
    texts = masked_texts(n, tested + learned + adapted)
    held_out, rest = texts[:tested].windows(), texts[tested:]
    model = minilm_for_masked_tokens(n)
    learn(model, rest[:learned].windows())
    advance()
    found = []
    for way in WAYS:
        changed = copy.deepcopy(model)
        if way != "none":
            set_residual_attention(changed, gate=way == "gate")
        before = _by_text(changed, held_out)
        learn(changed, rest[learned:].windows())
        found.append(Introduced(way, before, _by_text(changed, held_out)))
        advance()
    return found


def _by_text(model: BertForMaskedLM, windows: MaskedTexts) -> Tensor:
    return accuracy(model, windows).view(-1, BLOCKS).mean(1)
