from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.data.lengths import LONGEST_TEXT
from longarc.training.batches import Documents, LengthGroupedSampler, PaddedBatches

LENGTHS = st.builds(
    lambda number, longest, seed: np.random.default_rng(seed).integers(1, longest + 1, number),
    st.integers(1, 400), st.integers(1, 600), st.integers(0, 2**32),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 100))
def test_every_order_is_a_permutation_that_starts_with_the_longest(lengths, batch, seed, epoch):
    sampler = LengthGroupedSampler(lengths, batch, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert len(sampler) == len(order)
    assert lengths[order[0]] == max(lengths)


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 100))
def test_the_order_is_a_function_of_seed_and_epoch(lengths, batch, seed, epoch):
    one, other = (LengthGroupedSampler(lengths, batch, seed) for _ in range(2))
    one.set_epoch(epoch)
    first = list(one)
    np.random.random(5), torch.rand(5), random.random()  # noqa: NPY002  (global state moves)
    list(other)  # an earlier epoch was visited
    other.set_epoch(epoch)
    assert list(other) == first


def test_epochs_and_seeds_have_orders_of_their_own():
    lengths = np.random.default_rng(0).integers(1, 500, 300)
    orders = set()
    for seed in range(3):
        sampler = LengthGroupedSampler(lengths, 8, seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 9


def padded(order, lengths, batch):
    cut = [lengths[order[i : i + batch]] for i in range(0, len(order), batch)]
    return sum(len(part) * part.max() for part in cut)


def test_skewed_lengths_are_padded_far_less_than_in_random_order():
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.5, 1.0, 3000).astype(int), 3, 4000)
    grouped = padded(np.array(list(LengthGroupedSampler(lengths, 16, 0))), lengths, 16)
    plain = padded(random.permutation(len(lengths)), lengths, 16)
    waste, plain_waste = grouped / lengths.sum() - 1, plain / lengths.sum() - 1
    assert waste < 0.15 * plain_waste


def test_batches_come_in_random_order_of_length():
    """Sorted inside a pool, but not over the epoch: the lengths' trend would be a curriculum."""
    lengths = np.random.default_rng(0).integers(1, 500, 1600)
    order = np.array(list(LengthGroupedSampler(lengths, 16, 0)))
    means = lengths[order].reshape(100, 16).mean(axis=1)[1:]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_documents_are_truncated_and_keep_their_targets(tiny, tokenizer):
    texts, target = tiny.make_table(20)
    documents = Documents(texts, tokenizer, 10, target)
    assert documents.lengths.max() == 10
    assert [documents[i]["labels"] for i in range(20)] == target.tolist()
    assert documents[3]["input_ids"][0] == tokenizer.cls_token_id
    assert documents[3]["input_ids"][-1] == tokenizer.sep_token_id
    assert "labels" not in Documents(texts, tokenizer, 10)[0]


def test_sorting_by_length_keeps_texts_and_targets_together(tiny, tokenizer):
    texts, target = tiny.make_table(30)
    documents = Documents(texts, tokenizer, 64, target)
    ordered = documents.sorted_by_length()
    assert (np.diff(ordered.lengths) <= 0).all()
    pairs = lambda d: sorted((tuple(i["input_ids"]), int(i["labels"])) for i in d)  # noqa: E731
    assert pairs(ordered[i] for i in range(30)) == pairs(documents[i] for i in range(30))


def test_no_more_than_the_longest_text_reaches_the_tokenizer(tokenizer):
    seen = []

    class Watched(type(tokenizer)):
        def __call__(self, texts, **options):
            seen.extend(map(len, texts))
            return super().__call__(texts, **options)

    watched = Watched(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]")
    text = "oil " * (LONGEST_TEXT // 4 + 100)
    documents = Documents([text, "oil", ""], watched, 32)
    assert seen == [LONGEST_TEXT, 3, 0]
    assert documents.lengths.tolist() == [32, 3, 2]


def test_no_documents(tokenizer):
    documents = Documents([], tokenizer, 32)
    assert len(documents) == 0
    assert len(documents.sorted_by_length()) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_padding(lengths, max_length):
    class Tokenizer:
        pad_token_id, pad_token_type_id = 7, 3

    items = [
        {"input_ids": list(range(100, 100 + n)), "token_type_ids": [0] * n, "labels": np.int64(n)}
        for n in lengths
    ]
    batch = PaddedBatches(Tokenizer(), max_length)(items)
    b, width = batch["input_ids"].shape
    assert b == len(lengths)
    assert width >= max(lengths)
    if max_length is None or width > max_length:
        assert width % 8 == 0 or width == max(lengths)
    if max_length is not None and max(lengths) <= max_length:
        assert width <= max_length
    for row, n in enumerate(lengths):
        assert batch["input_ids"][row].tolist() == items[row]["input_ids"] + [7] * (width - n)
        assert batch["token_type_ids"][row].tolist() == [0] * n + [3] * (width - n)
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (width - n)
    assert batch["labels"].tolist() == lengths


def test_multi_hot_labels_become_a_float_matrix(tokenizer):
    target = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.float32)
    documents = Documents(["oil", "a pump"], tokenizer, 16, target)
    labels = PaddedBatches(tokenizer)([documents[0], documents[1]])["labels"]
    assert labels.dtype == torch.float32
    assert torch.equal(labels, torch.from_numpy(target))


@pytest.mark.parametrize("length", [20, 24, 30])
def test_padding_stays_within_the_models_positions(tiny, tokenizer, length):
    """30 positions are no multiple of 8; a full batch must not be padded to 32."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=128, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=length,
    )  # fmt: skip
    documents = Documents(["oil " * 100, "a"], tokenizer, length)
    batch = PaddedBatches(tokenizer, length)([documents[0], documents[1]])
    assert BertModel(config)(**batch).last_hidden_state.shape[1] == length
