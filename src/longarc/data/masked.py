"""Masked tokens to restore: what a masked language model reads, and what it is to say."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from longarc.errors import OptionError
from longarc.options import check_number, check_whole

IGNORED = -100
"""The target of a token that is not to be restored, as transformers' losses have it."""


@dataclass(frozen=True)
class MaskedTokens:
    """A window of a document with some tokens to restore; the same for (seed, epoch, index).

    Of the chosen tokens 80 % become ``mask_id``, 10 % a random token and 10 % stay, BERT's
    proportions: a model that sees a mask wherever something is asked says nothing of other tokens.
    At least one token is chosen. Special tokens that frame the document frame the window.

    Args:
        mask_id: the tokenizer's ``mask_token_id``.
        vocabulary: number of tokens, from which the random ones are drawn.
        special: the tokenizer's ``all_special_ids``; never chosen, and never drawn.
        share: of the tokens that are chosen.
        max_tokens: most tokens of a window with its frame.
        seed: of all windows.

    Raises:
        OptionError: a share outside [0, 1), or no token but special ones.

    Source: Devlin et al. 2019, "BERT" (arXiv 1810.04805), section 3.1.

    >>> masked = MaskedTokens(mask_id=4, vocabulary=100, special={2, 3, 4}, share=0.3, max_tokens=8)
    >>> masked([2, 10, 11, 12, 13, 14, 15, 16, 17, 3], index=0)
    ([2, 12, 13, 4, 15, 4, 17, 3], [-100, -100, -100, 14, -100, 16, -100, -100])
    """

    mask_id: int
    vocabulary: int
    special: Collection[int] = field(default=frozenset())
    share: float = 0.15
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("share", self.share, below=1.0)
        check_whole("max_tokens", self.max_tokens, at_least=3)
        object.__setattr__(self, "special", frozenset(self.special))
        if self.vocabulary <= len(self.special):
            raise OptionError(f"All {self.vocabulary} tokens are special: none can be restored.")

    def __call__(
        self, ids: Sequence[int], *, index: int, epoch: int = 0
    ) -> tuple[list[int], list[int]]:
        """Return ids to read and the targets, −100 where none is asked, of the same length."""
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        window = self._window(list(ids), rng)
        targets = [IGNORED] * len(window)
        places = [i for i, token in enumerate(window) if token not in self.special]
        chosen = rng.sample(places, min(len(places), max(1, round(self.share * len(places)))))
        for place in chosen:
            targets[place] = window[place]
            kind = rng.random()
            if kind < 0.8:
                window[place] = self.mask_id
            elif kind < 0.9:
                window[place] = self._any_token(rng)
        return window, targets

    def _window(self, ids: list[int], rng: random.Random) -> list[int]:
        if len(ids) <= self.max_tokens:
            return ids
        first, last = ids[:1], ids[-1:]
        head = first if first[0] in self.special else []
        tail = last if last[0] in self.special else []
        inner = ids[len(head) : len(ids) - len(tail)]
        room = self.max_tokens - len(head) - len(tail)
        start = rng.randint(0, len(inner) - room)
        return head + inner[start : start + room] + tail

    def _any_token(self, rng: random.Random) -> int:
        while (token := rng.randrange(self.vocabulary)) in self.special:
            pass
        return token
