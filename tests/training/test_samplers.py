"""What is drawn under each sampler, and that (seed, epoch) alone decide it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc.errors import DataError
from longarc.training.batches import Documents, LengthGroupedSampler, PaddedBatches, SeededSampler
from longarc.training.recipes.sampling import sampling_weights
from longarc.training.trainer import Trainer

CLASSES = st.lists(st.integers(1, 60), min_size=2, max_size=8).map(
    lambda counts: np.repeat(np.arange(len(counts)), counts)
)
RULES = {"class-balanced": np.ones_like, "square-root": np.sqrt}


@settings(max_examples=60, deadline=None)
@given(CLASSES, st.sampled_from(sorted(RULES)))
def test_classes_have_the_shares_that_the_name_says(target, sampler):
    weights = sampling_weights(target, sampler)
    found = np.array([weights[target == c].sum() for c in range(target.max() + 1)])
    wanted = RULES[sampler](np.bincount(target).astype(float))
    np.testing.assert_allclose(found, wanted / wanted.sum())
    for c in range(target.max() + 1):
        assert np.ptp(weights[target == c]) == 0


def test_random_needs_no_weights():
    assert sampling_weights(np.array([0, 0, 1]), "random") is None


def test_several_labels_weigh_as_the_rarest_and_none_as_the_median():
    target = np.zeros((12, 3), dtype=np.float32)
    target[:8, 0] = target[6:10, 1] = target[7, 2] = 1  # 8, 4 and 1 documents; 10 and 11 have none
    rarest = np.array([8.0] * 6 + [4, 1, 4, 4])
    for sampler, power in (("class-balanced", -1), ("square-root", -0.5)):
        expected = rarest**power
        expected = np.append(expected, [np.median(expected)] * 2)
        found = sampling_weights(target, sampler)
        np.testing.assert_allclose(found, expected / expected.sum())


TARGET = np.repeat([0, 1, 2], [900, 90, 10])
LENGTHS = np.random.default_rng(0).integers(1, 500, 1000)


@pytest.fixture(params=["grouped", "plain"])
def make(request):
    def made(seed=0, epoch=0, weights=None):
        if request.param == "grouped":
            sampler = LengthGroupedSampler(LENGTHS, 16, seed, weights)
        else:
            sampler = SeededSampler(1000, seed, weights)
        sampler.set_epoch(epoch)
        return sampler

    return made


@pytest.mark.parametrize("sampler", RULES)
def test_epochs_draw_the_classes_as_often(make, sampler):
    weights = sampling_weights(TARGET, sampler)
    drawn = np.concatenate([list(make(epoch=e, weights=weights)) for e in range(20)])
    assert len(drawn) == 20 * 1000
    share = RULES[sampler](np.array([900.0, 90.0, 10.0]))
    share /= share.sum()
    found = np.bincount(TARGET[drawn]) / len(drawn)
    assert (abs(found - share) < 4 * np.sqrt(share * (1 - share) / len(drawn))).all()
    assert len(set(drawn[TARGET[drawn] == 2])) == 10


def test_seed_and_epoch_alone_decide(make):
    weights = sampling_weights(TARGET, "class-balanced")
    first = list(make(3, 5, weights))
    np.random.random(5), random.random()  # noqa: NPY002  (global state moves)
    assert list(make(3, 5, weights)) == first
    others = [list(make(seed, epoch, weights)) for seed, epoch in ((3, 4), (4, 5), (4, 4))]
    assert len({tuple(order) for order in [first, *others]}) == 4
    assert sorted(make()) == list(range(1000)), "without weights each comes once"


def test_drawn_documents_are_grouped_and_the_longest_comes_first():
    weights = sampling_weights(TARGET, "class-balanced")
    order = np.array(list(LengthGroupedSampler(LENGTHS, 16, 0, weights)))
    drawn = LENGTHS[order]
    assert drawn[0] == drawn.max()
    cut = [drawn[i : i + 16] for i in range(0, 1000, 16)]
    padded = sum(len(part) * part.max() for part in cut)
    assert padded < 1.1 * drawn.sum()


def test_weights_of_another_number_of_documents_are_refused():
    with pytest.raises(DataError, match=r"shape \(3,\) for 4 documents. Expected \(4,\)"):
        SeededSampler(4, 0, np.ones(3) / 3)


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_the_trainer_visits_what_is_drawn(tiny, tokenizer, tmp_path, strategy):
    texts, target = tiny.make_table(30)
    documents = Documents(texts, tokenizer, 48, target)
    collate = tiny.Order(PaddedBatches(tokenizer))
    weights = sampling_weights(target, "class-balanced")
    arguments = tiny.make_arguments(
        tmp_path, train_sampling_strategy=strategy, num_train_epochs=2, seed=4
    )
    trainer = Trainer(
        tiny.make_model(), arguments, train_dataset=documents, data_collator=collate,
        loss=tiny.build_loss("cross-entropy", class_counts=[1, 1, 1]), sampling_weights=weights,
    )  # fmt: skip
    trainer.train()
    if strategy == "random":
        expected = SeededSampler(30, 4, weights)
    else:
        expected = LengthGroupedSampler(documents.lengths, 8, 4, weights)
    order = []
    for epoch in range(2):
        expected.set_epoch(epoch)
        order += list(expected)
    seen = [ids for batch in collate.seen for ids in batch]
    assert seen == [documents[i]["input_ids"] for i in order]
    assert len(set(order[:30])) < 30
