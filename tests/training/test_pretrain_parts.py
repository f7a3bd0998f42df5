"""Parts of a pretraining: splits, order, learners, step sizes, evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertForMaskedLM, BertModel

from longarc.data.token_file import TokenFile
from longarc.errors import DataError
from longarc.models.loading import load_masked_lm
from longarc.models.pooled_encoder import PooledEncoder
from longarc.objectives.siamese.byol import BYOL
from longarc.objectives.siamese.heads import prediction_head, projection_head
from longarc.objectives.siamese.parameter_groups import rate_schedule
from longarc.training.pretraining.config import PretrainConfig
from longarc.training.pretraining.documents import (
    Drawn,
    EpochSampler,
    MaskedBatches,
    TwoViews,
    split_documents,
)
from longarc.training.pretraining.evaluation import HeldOut, _neighbours, _probe
from longarc.training.pretraining.learners import (
    MaskedTokenLearner,
    TwoViewLearner,
    build_views,
)
from longarc.training.pretraining.trainer import parameter_groups, warmup_and_decay


def file_of(
    documents: list[list[int]], labels: list[int] | None = None, keys: list[int] | None = None
) -> TokenFile:
    n = len(documents)
    return TokenFile(
        tokens=np.array([token for ids in documents for token in ids], np.uint16),
        offsets=np.cumsum([0, *map(len, documents)]),
        keys=np.array(range(n) if keys is None else keys, np.uint64),
        labels=np.array([-1] * n if labels is None else labels, np.int32),
        names=[] if labels is None else [str(i) for i in range(max(labels) + 1)],
        about={},
    )


def documents_of(n: int) -> list[list[int]]:
    return [[2, 10 + i, 11 + i, 3] for i in range(n)]


def test_no_text_stands_on_both_sides():
    keys = [i % 30 for i in range(60)]  # each text twice
    file = file_of(documents_of(60), keys=keys)
    split = split_documents(file, held_out=100, labelled=10, batch=4, seed=0)
    assert len(split.held_out) == 6  # a fifth of the different ones
    held = {keys[i] for i in split.held_out}
    assert len(held) == 6
    assert held.isdisjoint(keys[i] for i in split.train)
    assert len(split.train) == 60 - 12
    assert len(split.labelled) == 0
    again, other = (
        split_documents(file, held_out=100, labelled=10, batch=4, seed=seed) for seed in (0, 1)
    )
    assert again.held_out.tolist() == split.held_out.tolist() != other.held_out.tolist()


def test_documents_with_labels_are_held_out():
    labels = [i % 2 if i < 20 else -1 for i in range(60)]
    file = file_of(documents_of(60), labels)
    split = split_documents(file, held_out=8, labelled=100, batch=4, seed=0)
    assert len(split.held_out) == 8
    assert all(labels[i] >= 0 for i in (*split.held_out, *split.labelled))
    assert set(split.labelled) == set(range(20)) - set(split.held_out)
    assert set(split.labelled) <= set(split.train)


@pytest.mark.parametrize(
    ("n", "labels", "message"), [(9, None, "smaller --batch-size"), (40, [0] * 40, "--label")]
)
def test_what_cannot_be_split_is_refused(n, labels, message):
    file = file_of(documents_of(n), labels)
    with pytest.raises(DataError, match=message):
        split_documents(file, held_out=8, labelled=10, batch=8, seed=0)


def test_an_item_depends_on_epoch_and_document_alone():
    calls = []
    drawn = Drawn(
        file_of(documents_of(5)),
        np.array([1, 3, 4]),
        lambda ids, **at: calls.append((ids, at)) or (ids, ids),
    )
    assert len(drawn) == 3
    assert drawn[7, 2] == ([2, 14, 15, 3], [2, 14, 15, 3])
    assert calls == [([2, 14, 15, 3], {"index": 4, "epoch": 7})]


def test_the_order_is_another_in_each_epoch():
    sampler = EpochSampler(50, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert sorted(p for _, p in first) == sorted(p for _, p in second) == list(range(50))
    assert [p for _, p in first] != [p for _, p in second]


def test_batches_are_padded_each_view_by_itself(tokenizer):
    batch = TwoViews(tokenizer, 64)([([2, 9, 3], [2, 3]), ([2, 9, 9, 9, 9, 9, 9, 9, 3], [2, 3])])
    assert batch["first"]["input_ids"].shape == (2, 16)
    assert batch["second"]["input_ids"].shape == (2, 8)
    assert batch["first"]["attention_mask"].sum(1).tolist() == [3, 9]
    masked = MaskedBatches(tokenizer, 64)([([2, 4, 3], [-100, 9, -100]), ([2, 3], [-100, -100])])
    assert masked["targets"][0].tolist() == [-100, 9, *[-100] * 6]


def test_the_masked_loss_is_that_of_transformers_and_its_gradients(tiny):
    torch.manual_seed(0)
    model = BertForMaskedLM(tiny.make_config()).train()
    ids = torch.randint(5, 100, (3, 12))
    attention = torch.ones_like(ids)
    attention[1, 8:] = 0
    targets = torch.full_like(ids, -100)
    targets[0, 2], targets[1, 5], targets[2, 3], targets[2, 9] = 7, 8, 9, 10
    theirs = model(input_ids=ids, attention_mask=attention, labels=targets).loss
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    learner = MaskedTokenLearner(model)
    ours = learner(ids, attention, targets)["loss"]
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5)
    whole = learner.pooled({"input_ids": ids, "attention_mask": attention})
    assert whole.shape == (3, 32)  # outside of the loss all states are there


def byol(tiny) -> TwoViewLearner:
    torch.manual_seed(0)
    encoder = PooledEncoder(BertModel(tiny.make_config()))
    return TwoViewLearner(BYOL(encoder, projection_head(32), prediction_head(32), decay=0.5))


def test_the_target_follows(tiny):
    learner = byol(tiny)
    pairs = list(
        zip(
            learner.objective.average.network[0].parameters(),
            learner.pooled.parameters(),
            strict=True,
        )
    )
    before = [kept.clone() for kept, _ in pairs]
    with torch.no_grad():
        for _, mine in pairs:
            mine.add_(1.0)
    learner.update_target(0.0)
    for old, (kept, mine) in zip(before, pairs, strict=True):
        torch.testing.assert_close(kept, (old + mine) / 2)


def test_every_weight_that_learns_has_its_step_size(tiny):
    learner = byol(tiny)
    config = PretrainConfig(
        objective="byol", learning_rate=1e-4, head_learning_rate=1e-2, predictor_factor=10,
        fixed_predictor_rate=True,
    )  # fmt: skip
    groups = parameter_groups(learner, config)
    found = {id(p): group for group in groups for p in group["params"]}
    parts = {
        "encoder": (learner.objective.encoder, 1e-4, False),
        "projector": (learner.objective.projector, 1e-2, False),
        "predictor": (learner.objective.predictor, 1e-1, True),
    }
    number = 0
    for part, rate, fixed in parts.values():
        for parameter in part.parameters():
            group = found[id(parameter)]
            assert group["lr"] == pytest.approx(rate)
            assert group["fixed_rate"] is fixed
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)
            number += 1
    assert number == len(found)  # the averaged copy learns nothing
    assert groups[0]["lr"] == 1e-4  # the rate that is logged
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = rate_schedule(optimizer, warmup_and_decay(10, 0))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert {round(g["lr"], 6) for g in optimizer.param_groups} == {5e-5, 5e-3, 1e-1}


def test_a_head_that_was_loaded_learns_like_the_encoder(tiny, tmp_path):
    """Of BertForMaskedLM everything is known, of BertModel's files the head is not."""
    torch.manual_seed(0)
    config = PretrainConfig(objective="mlm", learning_rate=1e-4, head_learning_rate=1e-2)
    for kind, of_head in ((BertForMaskedLM, 1e-4), (BertModel, 1e-2)):
        folder = tmp_path / kind.__name__
        kind(tiny.make_config()).save_pretrained(folder)
        model, new = load_masked_lm(folder)
        learner = MaskedTokenLearner(model, new)
        rates = {
            id(p): group["lr"]
            for group in parameter_groups(learner, config)
            for p in group["params"]
        }
        assert rates.keys() == {id(p) for p in model.parameters()}
        assert {rates[id(p)] for p in model.base_model.parameters()} == {1e-4}
        assert rates[id(model.cls.predictions.transform.dense.weight)] == of_head
        assert rates[id(model.cls.predictions.bias)] == of_head


def held_out_of(tiny, tokenizer, encoder: nn.Module, **options: Any) -> HeldOut:
    texts, target = tiny.make_table(60)
    file = file_of(tokenizer(texts)["input_ids"], target.tolist())
    split = split_documents(file, held_out=12, labelled=40, batch=8, seed=0)
    config = PretrainConfig(max_length=24)
    settings = {"max_length": 24, "bf16": False, "batch_size": 7} | options
    return HeldOut(encoder, file, split, build_views(config, tokenizer), tokenizer, **settings)


def test_an_evaluation_leaves_everything_as_it_was(tiny, tokenizer):
    torch.manual_seed(0)
    encoder = PooledEncoder(BertModel(tiny.make_config(dropout=0.3))).train()
    held_out = held_out_of(tiny, tokenizer, encoder)
    before = torch.get_rng_state(), {k: v.clone() for k, v in encoder.state_dict().items()}
    first = held_out.evaluate()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(v, before[1][k]) for k, v in encoder.state_dict().items())
    assert encoder.training
    assert held_out.evaluate() == first
    other = held_out_of(tiny, tokenizer, encoder, batch_size=3).evaluate()
    assert other["uniformity"] == pytest.approx(first["uniformity"], abs=1e-5)


def test_perfect_codes_score_one_and_noise_like_chance():
    random = torch.Generator().manual_seed(0)
    known = np.arange(90) % 3
    truth = np.arange(60) % 3
    centres = 3 * torch.eye(3, 8)
    noise = [torch.randn(n, 8, generator=random) for n in (90, 60)]
    good = [
        functional.normalize(centres[y] + 0.3 * e)
        for y, e in ((known, noise[0]), (truth, noise[1]))
    ]
    for predict in (_neighbours, _probe):
        assert (predict(good[0], known, good[1]) == truth).mean() == 1
        assert (predict(noise[0], known, noise[1]) == truth).mean() < 0.6


def test_a_class_without_a_labelled_document_counts_as_an_error(tiny, tokenizer):
    torch.manual_seed(0)
    held_out = held_out_of(tiny, tokenizer, PooledEncoder(BertModel(tiny.make_config())))
    file, split = held_out.file, held_out.split
    labels = np.asarray(file.labels).copy()
    labels[split.held_out] = 2
    labels[split.labelled] = np.arange(len(split.labelled)) % 2
    held_out.file = dataclasses.replace(file, labels=labels)
    found = held_out.evaluate()
    for name in ("knn", "probe"):
        assert found[name]["accuracy"]["value"] == 0
        assert found[name]["macro_f1"]["value"] == 0
