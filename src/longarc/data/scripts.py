"""Whether a tokenizer knows the script of the texts, in part, or takes words apart into letters.

A vocabulary of subwords that was made from other scripts often has the letters of this one, and no
more: nothing is unknown, and yet the model reads a sequence of letters, several times as long as
the words, whose meaning its training never showed it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SPELLED = 0.8
"""Tokens a letter from which words are spelled. English MiniLM's tokenizer takes 1.0 for Arabic and
Hebrew and 0.95 for Russian; for what it knows 0.25 (English) to 0.5 (Polish)."""

UNKNOWN = 0.5
"""Share of a text's letters from which it is unknown."""

UNKNOWN_TOGETHER = 0.2
"""The same for all Chinese and Japanese texts together. English MiniLM's tokenizer knows the
commonest characters, and lacks some half of those in a text; a multilingual one lacks next to none.
A short text can consist of common ones, so it is judged with the others."""

MULTILINGUAL = "intfloat/multilingual-e5-small"
"""A model that knows some hundred languages, to be named in advice."""

# Alphabets but the Latin one, and Korean. In Chinese and Japanese a character is a word or nearly,
# and a token for each is as it should be.
_WORD = re.compile("[\u0370-\u1dff\u1f00-\u1fff\ua000-\ud7ff\ufb1d-\ufdff\ufe70-\ufefc]{3,}")
_EAST_ASIAN = re.compile(
    "[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_READ = 1_000  # characters of a text that are looked at
_WORDS = 20  # and words: more say the same
_ENGLISH = ["international", "information", "understanding"]


@dataclass(frozen=True)
class Spelled:
    """The places of the texts whose words are spelled, their commonest script, and the evidence.

    ``tokens`` and ``letters`` are means of a word.
    """

    texts: list[int]
    script: str
    tokens: float
    letters: float


def unknown_texts(texts: Sequence[str], unknown: Sequence[float]) -> list[int]:
    """The places of the texts that a tokenizer does not know, or not enough of.

    Args:
        texts: n texts.
        unknown: of each the share of its letters that is unknown, as
            :func:`~longarc.data.lengths.measure` has it.

    >>> unknown_texts(["发票还没有支付", "日本", "Meeting with 渡辺"], [0.9, 0.0, 0.2])
    [0, 1]
    """
    east_asian = {place for place, text in enumerate(texts) if _is_east_asian(text[:_READ])}
    together = sum(unknown[place] for place in east_asian) / max(len(east_asian), 1)
    swept = east_asian if together > UNKNOWN_TOGETHER else set[int]()
    alone = {place for place, share in enumerate(unknown) if share > UNKNOWN}
    return sorted(alone | swept)


def _is_east_asian(text: str) -> bool:
    """Whether most letters are Chinese or Japanese characters."""
    return not text.isascii() and 2 * len(_EAST_ASIAN.findall(text)) > count_letters(text)


def spelled_texts(texts: Sequence[str], tokenizer: Any) -> Spelled | None:
    """The texts whose words a tokenizer takes apart into letters; None if there are none.

    A tokenizer that spells everything, English too, is meant to, and its model made for it.

    Args:
        texts: n texts; of each the first 20 words are looked at.
        tokenizer: any transformers tokenizer.
    """
    words = {
        place: found[:_WORDS]
        for place, text in enumerate(texts)
        if not text.isascii() and (found := _WORD.findall(text[:_READ]))
    }
    if not words:
        return None
    counted = _counted(sorted({word for found in words.values() for word in found}), tokenizer)
    spelled: dict[int, list[str]] = {}
    for place, found in words.items():
        known = [word for word in found if word in counted]
        tokens = sum(counted[word] for word in known)
        if known and tokens > SPELLED * sum(map(count_letters, known)):
            spelled[place] = known
    if not spelled:
        return None
    english = _counted(_ENGLISH, tokenizer)
    if english and sum(english.values()) > SPELLED * sum(map(len, english)):
        return None
    all_words = [word for found in spelled.values() for word in found]
    scripts = Counter(_script(word) for word in all_words)
    return Spelled(
        list(spelled),
        scripts.most_common(1)[0][0],
        sum(counted[word] for word in all_words) / len(all_words),
        sum(map(count_letters, all_words)) / len(all_words),
    )


def _counted(words: list[str], tokenizer: Any) -> dict[str, int]:
    """Tokens of each word; without those that are unknown in part, as others report them."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    encoded = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]
    return {
        word: len(ids)
        for word, ids in zip(words, encoded, strict=True)
        if count_letters(word) and unknown not in ids
    }


def count_letters(text: str) -> int:
    """How many characters are letters, of any script: no digits, marks, punctuation or emoji.

    >>> count_letters("ok 渡辺 2!")
    4
    """
    return sum(map(str.isalpha, text))


def _script(word: str) -> str:
    """The script of a word's first letter, as Unicode's names have it.

    >>> _script("счёт"), _script("قيمة")
    ('Cyrillic', 'Arabic')
    """
    first = next(character for character in word if character.isalpha())
    return unicodedata.name(first, "unknown").split()[0].capitalize()
