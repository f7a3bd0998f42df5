"""Views of a text: what is kept, what is drawn, and that it is drawn the same again."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.data.augment import TextViews, delete_tokens, mask_tokens, shuffle_spans, two_crops
from longarc.errors import OptionError

CLS, SEP, PAD, MASK = 101, 102, 0, 103
SPECIAL = frozenset({CLS, SEP, PAD, MASK})
# Different tokens, so that a place can be told from what stands there.
LENGTHS = st.integers(0, 200)
SHARES = st.floats(0, 0.99)
CROPS = st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(lambda s: tuple(sorted(s)))


def text(n):
    return list(range(1000, 1000 + n))


def is_passage(part, whole):
    return part == [] or part == whole[part[0] - 1000 :][: len(part)]


@settings(deadline=None)
@given(
    n=LENGTHS, crop=CROPS, overlap=st.booleans(), shortest=st.integers(1, 40), seed=st.integers()
)
def test_crops(n, crop, overlap, shortest, seed):
    if not overlap:
        crop = (crop[0] / 2, crop[1] / 2)
    tokens = text(n)
    crops = two_crops(tokens, random.Random(seed), crop, overlap=overlap, shortest=shortest)
    longest = n if overlap or n < 2 else n // 2
    for passage in crops:
        assert is_passage(passage, tokens)
        low = min(longest, max(shortest, round(n * crop[0])))
        high = min(longest, max(shortest, round(n * crop[1])))
        assert low <= len(passage) <= high
        assert passage or not n
    if not overlap and n >= 2:
        assert not set(crops[0]) & set(crops[1])


def test_crops_are_everywhere():
    """Every token is in some crop, either order occurs, and places are uniform."""
    tokens, rng = text(12), random.Random(0)
    for overlap in (True, False):
        starts = Counter()
        ahead = 0
        for _ in range(3000):
            first, second = two_crops(tokens, rng, (0.25, 0.25), overlap=overlap)
            ahead += first[0] < second[0]
            starts[first[0] - 1000] += 1
        assert set(starts) == set(range(10))
        assert ahead / 3000 == pytest.approx(0.45 if overlap else 0.5, abs=0.05)
        if overlap:
            assert max(starts.values()) / min(starts.values()) < 1.4


@pytest.mark.parametrize("overlap", [True, False])
def test_views_shorter_than_crops_are_everywhere_too(overlap):
    """A tenth of 600 tokens is more than a view has; the ends are in as many as elsewhere."""
    ids = [CLS, *text(600), SEP]
    make = TextViews(overlap=overlap, max_tokens=32, special=SPECIAL)
    views = [view[1:-1] for index in range(3000) for view in make(ids, index=index)]
    assert all(len(view) == 30 for view in views)
    seen = Counter(token for view in views for token in view)
    tenths = [sum(seen[1000 + i] for i in range(at, at + 60)) for at in range(0, 600, 60)]
    # A token within 30 of an end has fewer places from which it is seen.
    assert max(tenths[1:-1]) / min(tenths[1:-1]) < 1.25
    assert min(tenths[0], tenths[-1]) / max(tenths[1:-1]) > 0.6


def test_separate_crops_are_uniform_over_pairs_of_places():
    """Two passages of 2 tokens in 6: 6 ways to place them, in 2 orders."""
    rng, seen = random.Random(0), Counter()
    for _ in range(6000):
        first, second = two_crops(text(6), rng, (1 / 3, 1 / 3), overlap=False)
        seen[first[0], second[0]] += 1
    assert len(seen) == 12
    assert max(seen.values()) / min(seen.values()) < 1.4


@given(n=LENGTHS, length=st.integers(1, 50), seed=st.integers())
def test_spans_are_shuffled_whole(n, length, seed):
    tokens = text(n)
    found = shuffle_spans(tokens, random.Random(seed), length)
    assert sorted(found) == tokens
    spans = [tokens[i : i + length] for i in range(0, n, length)]
    assert all(found[found.index(s[0]) :][: len(s)] == s for s in spans)


@given(n=LENGTHS, share=SHARES, seed=st.integers(), marked=st.sets(st.integers(0, 200)))
def test_deleting_and_masking(n, share, seed, marked):
    tokens = [CLS if i in marked else 1000 + i for i in range(n)]
    plain = [token for token in tokens if token != CLS]
    number = round(share * len(plain))
    kept = delete_tokens(tokens, random.Random(seed), share, SPECIAL)
    assert len(kept) == max(n - number, min(n, 1))
    assert kept.count(CLS) == tokens.count(CLS)
    assert [token for token in kept if token != CLS] == sorted(set(kept) - {CLS})
    masked = mask_tokens(tokens, random.Random(seed), share, MASK, SPECIAL)
    assert masked.count(MASK) == number
    assert all(new in (old, MASK) for new, old in zip(masked, tokens, strict=True))
    assert all(new == CLS for new, old in zip(masked, tokens, strict=True) if old == CLS)


VIEWS = st.builds(
    lambda crop, overlap, **more: TextViews(
        crop=crop and (crop if overlap else (crop[0] / 2, crop[1] / 2)),
        overlap=overlap, mask_id=MASK, special=SPECIAL, **more,
    ),
    crop=st.none() | CROPS,
    overlap=st.booleans(),
    min_tokens=st.integers(1, 30),
    max_tokens=st.none() | st.integers(1, 100),
    shuffle=st.none() | st.integers(1, 30),
    delete=SHARES,
    mask=SHARES,
    seed=st.integers(0, 5),
)  # fmt: skip


@settings(deadline=None)
@given(make=VIEWS, n=LENGTHS, index=st.integers(0, 5), epoch=st.integers(0, 5))
def test_views(make, n, index, epoch):
    """Framed, of the text's own tokens, within the length, and the same again."""
    tokens = text(n)
    ids = [CLS, *tokens, SEP, PAD, PAD]
    views = make(ids, index=index, epoch=epoch)
    assert make(ids, index=index, epoch=epoch) == views
    assert ids == [CLS, *tokens, SEP, PAD, PAD]
    for view in views:
        assert view[0] == CLS
        assert view[-3:] == [SEP, PAD, PAD]
        inside = view[1:-3]
        assert set(inside) <= {*tokens, MASK}
        plain = [token for token in inside if token != MASK]
        assert len(plain) == len(set(plain))
        assert inside or not n or (make.max_tokens or 9) <= 4
        if make.max_tokens is not None:
            assert len(view) <= max(make.max_tokens, 4)
        if make.shuffle is None:
            assert plain == sorted(plain)


def test_nothing_but_dropout():
    views = TextViews(crop=None, special=SPECIAL)
    ids = [CLS, *text(5), SEP]
    assert views(ids, index=0) == (ids, ids)
    first, second = views(ids, index=0)
    assert first is not second
    assert first is not ids
    assert TextViews(crop=None, special=SPECIAL, max_tokens=4)(ids, index=0)[0] == [
        CLS, 1000, 1001, SEP,
    ]  # fmt: skip


def test_special_tokens_inside():
    """Cut and moved like others, never masked or deleted."""
    ids = [CLS, *text(20), SEP, *text(20), SEP]
    views = TextViews(crop=None, delete=0.9, mask=0.9, mask_id=MASK, special=SPECIAL)
    for view in views(ids, index=0):
        assert [token for token in view if token in (CLS, SEP)] == [CLS, SEP, SEP]


def test_seed_epoch_and_index_each_matter():
    ids = text(100)
    base = TextViews()(ids, index=1, epoch=1)
    for other in (
        TextViews(seed=1)(ids, index=1, epoch=1),
        TextViews()(ids, index=2, epoch=1),
        TextViews()(ids, index=1, epoch=2),
        TextViews()(ids, index=11, epoch=0),
    ):
        assert other != base
    assert base[0] != base[1]


def test_another_process_draws_the_same_and_needs_no_torch():
    """Whatever PYTHONHASHSEED is."""
    program = (
        "import sys; from longarc.data.augment import TextViews; "
        "print(TextViews(shuffle=3, delete=0.2)(list(range(60)), index=3, epoch=2)); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    here = TextViews(shuffle=3, delete=0.2)(list(range(60)), index=3, epoch=2)
    assert done.stdout.strip() == str(here)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0.5, 0.1)}, r"0 < shortest ≤ longest ≤ 1; found \(0.5, 0.1\)"),
        ({"crop": (0, 0.5)}, "crop must be two shares"),
        ({"crop": 0.5}, "crop must be two shares of the text.*found 0.5"),
        ({"crop": ("a", "b")}, "crop must be two shares"),
        ({"crop": (0.1, 0.6), "overlap": False}, "up to 0.6 of the text cannot always be kept"),
        ({"mask": 0.1}, "mask=0.1 needs mask_id.*tokenizer.mask_token_id"),
        ({"mask": 1.0, "mask_id": 3}, "mask must be a finite number"),
        ({"delete": -0.1}, "delete must be"),
        ({"shuffle": 0}, "shuffle must be a whole number"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"min_tokens": 0}, "min_tokens must be"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(OptionError, match=message):
        TextViews(**options)
