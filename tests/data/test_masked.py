"""Masked tokens: which are chosen, what replaces them, and that it can be repeated."""

from __future__ import annotations

from collections import Counter

import pytest

from longarc.data.masked import IGNORED, MaskedTokens
from longarc.errors import OptionError

SPECIAL = {0, 1, 2, 3, 4}
IDS = [2, *range(10, 210), 3]


def make(**options) -> MaskedTokens:
    return MaskedTokens(
        **{"mask_id": 4, "vocabulary": 1000, "special": SPECIAL, "max_tokens": 512} | options
    )


def test_targets_say_what_stood_there_and_nothing_else_changes():
    read, targets = make(share=0.2)(IDS, index=5)
    assert len(read) == len(targets) == len(IDS)
    asked = [i for i, target in enumerate(targets) if target != IGNORED]
    assert len(asked) == 40
    assert all(targets[i] == IDS[i] for i in asked)
    assert all(read[i] == IDS[i] for i in range(len(IDS)) if i not in asked)
    assert (read[0], read[-1]) == (2, 3)


def test_the_proportions_are_berts():
    kinds: Counter[str] = Counter()
    for index in range(200):
        read, targets = make()(IDS, index=index)
        for now, was in zip(read, targets, strict=True):
            if was != IGNORED:
                kinds["mask" if now == 4 else "same" if now == was else "random"] += 1
                assert now == 4 or now not in SPECIAL
    total = sum(kinds.values())
    assert total == 200 * 30
    for kind, share in (("mask", 0.8), ("random", 0.1), ("same", 0.1)):
        assert kinds[kind] / total == pytest.approx(share, abs=0.02)  # 4 standard deviations


def test_the_same_for_seed_epoch_and_index_and_no_other():
    again = make()(IDS, index=1, epoch=2)
    assert make()(IDS, index=1, epoch=2) == again
    others = [
        make()(IDS, index=1),
        make()(IDS, index=2, epoch=2),
        make(seed=1)(IDS, index=1, epoch=2),
    ]
    assert all(other != again for other in others)


def test_a_long_document_gives_a_window_in_its_frame():
    starts = set()
    for index in range(20):
        read, targets = make(max_tokens=12)(IDS, index=index)
        assert len(read) == 12
        assert (read[0], read[-1]) == (2, 3)
        whole = [t if t != IGNORED else r for r, t in zip(read, targets, strict=True)]
        assert whole[1:-1] == list(range(whole[1], whole[1] + 10))
        starts.add(whole[1])
    assert len(starts) > 10
    read, _ = make(max_tokens=12)(list(range(10, 100)), index=0)
    assert len(read) == 12


def test_one_token_at_least_and_none_of_nothing():
    _, targets = make(share=0.01)([2, 10, 3], index=0)
    assert targets == [IGNORED, 10, IGNORED]
    assert make()([2, 3], index=0) == ([2, 3], [IGNORED, IGNORED])
    assert make()([], index=0) == ([], [])


def test_what_cannot_be_is_refused():
    with pytest.raises(OptionError, match="share"):
        make(share=1.0)
    with pytest.raises(OptionError, match="special"):
        make(vocabulary=5)
