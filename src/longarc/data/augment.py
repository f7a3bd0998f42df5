"""Two views of a text, for self-supervision: crops, shuffled spans, deleted and masked tokens.

Everything works on lists of token ids and needs no torch. Legend: n tokens without those that frame
the text.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from longarc.errors import OptionError
from longarc.options import check_number, check_whole


@dataclass(frozen=True)
class TextViews:
    """Makes two views of a document, the same ones again for the same (seed, epoch, index).

    Crops first, then shuffles spans, deletes and masks, each for both views anew. With none of
    these both views are the text itself: what differs is then the encoder's dropout, as in SimCSE.

    Special tokens at the start and the end of a text (``[CLS]``, ``[SEP]``) frame every view of it.
    Within the text they are cut and moved like others, but never deleted or masked.

    Args:
        crop: shortest and longest crop, as shares of the n tokens; None for no crops. Two random
            passages of a long document say related things in other words, which dropout does not
            give. A tenth to a half by default, as Contriever's.
        overlap: whether crops may overlap. False takes two separate passages, each half the text
            at most.
        min_tokens: no crop is shorter than this, in texts that have as many.
        max_tokens: most tokens of a view with its frame, the encoder's length. No crop is longer,
            so that one may come from anywhere in the text; a text that is not cropped is cut at
            the end.
        shuffle: length of the spans that are put in random order; None for no shuffling.
        delete: share of the tokens that are left out.
        mask: share of the tokens that ``mask_id`` replaces.
        mask_id: the tokenizer's ``mask_token_id``.
        special: the tokenizer's special ids, as ``special_ids`` gives them.
        seed: of all views.

    Raises:
        OptionError: shares outside [0, 1), crops that cannot be, lengths below 1, masking without
            a ``mask_id``.

    Source: random crops, Izacard et al. 2022, "Unsupervised Dense Information Retrieval with
    Contrastive Learning" (arXiv 2112.09118), section 3.2; that crops are better than dropout, arXiv
    2508.03453; deletion and spans, Wu et al. 2020, "CLEAR" (arXiv 2012.15466); dropout, Gao et al.
    2021 (arXiv 2104.08821).

    >>> views = TextViews(crop=(0.3, 0.5), overlap=False, min_tokens=1, special={101, 102})
    >>> views([101, 1, 2, 3, 4, 5, 6, 7, 8, 102], index=0)
    ([101, 1, 2, 3, 102], [101, 5, 6, 7, 102])
    >>> TextViews(crop=None, special={101, 102})([101, 1, 2, 102], index=0)
    ([101, 1, 2, 102], [101, 1, 2, 102])
    """

    crop: tuple[float, float] | None = (0.1, 0.5)
    overlap: bool = True
    min_tokens: int = 16
    max_tokens: int | None = None
    shuffle: int | None = None
    delete: float = 0.0
    mask: float = 0.0
    mask_id: int | None = None
    special: Collection[int] = field(default=frozenset())
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop is not None:
            _check_crop(self.crop, self.overlap)
        check_whole("min_tokens", self.min_tokens, at_least=1)
        for name in ("max_tokens", "shuffle"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), at_least=1)
        check_number("delete", self.delete, below=1.0)
        if check_number("mask", self.mask, below=1.0) and self.mask_id is None:
            raise OptionError(
                f"mask={self.mask} needs mask_id, the id that takes the tokens' place: "
                "tokenizer.mask_token_id."
            )
        object.__setattr__(self, "special", frozenset(self.special))

    def __call__(
        self, ids: Sequence[int], *, index: int, epoch: int = 0
    ) -> tuple[list[int], list[int]]:
        """Return two views of a text's ids, those of example ``index`` in ``epoch``."""
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        start, tokens, end = self._framed(list(ids))
        room = len(tokens)
        if self.max_tokens is not None:
            room = max(0, self.max_tokens - len(start) - len(end))
        if self.crop is None:
            passages = tokens, tokens
        else:
            passages = two_crops(
                tokens, rng, self.crop, overlap=self.overlap, shortest=self.min_tokens, longest=room
            )
        first, second = (start + self._changed(passage[:room], rng) + end for passage in passages)
        return first, second

    def _framed(self, ids: list[int]) -> tuple[list[int], list[int], list[int]]:
        """Special tokens at the start, the text, special tokens at the end."""
        begin, end = 0, len(ids)
        while begin < end and ids[begin] in self.special:
            begin += 1
        while end > begin and ids[end - 1] in self.special:
            end -= 1
        return ids[:begin], ids[begin:end], ids[end:]

    def _changed(self, tokens: list[int], rng: random.Random) -> list[int]:
        if self.shuffle is not None:
            tokens = shuffle_spans(tokens, rng, self.shuffle)
        if self.delete:
            tokens = delete_tokens(tokens, rng, self.delete, self.special)
        if self.mask and self.mask_id is not None:
            tokens = mask_tokens(tokens, rng, self.mask, self.mask_id, self.special)
        return tokens


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The special ids of a transformers tokenizer, without that of unknown words.

    A text in a script that the tokenizer does not know may begin with unknown words, which are its
    words and no frame.
    """
    return frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def two_crops(
    tokens: Sequence[int],
    rng: random.Random,
    share: tuple[float, float] = (0.1, 0.5),
    *,
    overlap: bool = True,
    shortest: int = 1,
    longest: int | None = None,
) -> tuple[list[int], list[int]]:
    """Return two passages, each of a random share of the tokens between the two given ones.

    Places are uniform. None is longer than ``longest`` tokens, which goes before ``shortest``.
    Passages that must not overlap have half of the tokens at most; of fewer than 2 tokens both are
    the whole.

    >>> two_crops(range(8), random.Random(1), (0.25, 0.5), overlap=False)
    ([2, 3, 4, 5], [0, 1])
    """
    _check_crop(share, overlap)
    n = len(tokens)
    apart = not overlap and n >= 2
    most = min(n // 2 if apart else n, n if longest is None else longest)
    one, other = (min(most, max(shortest, round(n * rng.uniform(*share)))) for _ in range(2))
    if not apart:
        starts = [rng.randint(0, n - one), rng.randint(0, n - other)]
    else:
        # Two different places among what is not taken, in order: the passages stand there.
        before, until = sorted(rng.sample(range(n - one - other + 2), 2))
        starts = [before, until - 1 + one]
    crops = [list(tokens[s : s + size]) for s, size in zip(starts, (one, other), strict=True)]
    if rng.random() < 0.5:
        crops.reverse()
    return crops[0], crops[1]


def shuffle_spans(tokens: Sequence[int], rng: random.Random, length: int) -> list[int]:
    """Return the tokens with their spans of ``length`` in random order; the last may be shorter.

    >>> shuffle_spans(range(7), random.Random(0), 3)
    [0, 1, 2, 6, 3, 4, 5]
    """
    check_whole("length", length, at_least=1)
    spans = [list(tokens[i : i + length]) for i in range(0, len(tokens), length)]
    rng.shuffle(spans)
    return [token for span in spans for token in span]


def delete_tokens(
    tokens: Sequence[int], rng: random.Random, share: float, special: Collection[int] = ()
) -> list[int]:
    """Return the tokens without a random ``share`` of those not ``special``; one stays at least.

    >>> delete_tokens(range(8), random.Random(0), 0.5)
    [1, 2, 4, 5]
    """
    out = set(_drawn(tokens, rng, share, special)[: max(0, len(tokens) - 1)])
    return [token for i, token in enumerate(tokens) if i not in out]


def mask_tokens(
    tokens: Sequence[int],
    rng: random.Random,
    share: float,
    mask_id: int,
    special: Collection[int] = (),
) -> list[int]:
    """Return the tokens with ``mask_id`` in place of a random ``share`` of those not ``special``.

    >>> mask_tokens(range(8), random.Random(0), 0.25, -1)
    [0, 1, 2, 3, 4, 5, -1, -1]
    """
    masked = set(_drawn(tokens, rng, share, special))
    return [mask_id if i in masked else token for i, token in enumerate(tokens)]


def _drawn(
    tokens: Sequence[int], rng: random.Random, share: float, special: Collection[int]
) -> list[int]:
    """Random places of a share of the tokens that are not special: always the same number."""
    check_number("share", share, below=1.0)
    places = [i for i, token in enumerate(tokens) if token not in special]
    return rng.sample(places, round(share * len(places)))


def _check_crop(crop: Any, overlap: bool) -> None:
    pair = isinstance(crop, tuple | list) and len(crop) == 2
    if (
        not pair
        or not all(isinstance(s, int | float) for s in crop)
        or not (0 < crop[0] <= crop[1] <= 1)
    ):
        raise OptionError(
            f"crop must be two shares of the text, 0 < shortest ≤ longest ≤ 1; found {crop!r}."
        )
    if not overlap and crop[1] > 0.5:
        raise OptionError(
            f"Crops of up to {crop[1]:g} of the text cannot always be kept apart. Take at most "
            "0.5, or let them overlap."
        )
