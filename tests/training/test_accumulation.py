"""However a step is cut into batches, it is the same step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertForSequenceClassification

from longarc.objectives.losses.f1_weighted import F1WeightedCrossEntropy
from longarc.objectives.losses.registry import build_loss
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.trainer import Trainer

COUNTS = [30, 10, 3]
STEPS = 3


def textbook(name, logits, target):
    counts = torch.tensor(COUNTS, dtype=logits.dtype)
    if name == "cross-entropy":
        return F.cross_entropy(logits, target)
    if name == "class-weighted":
        return F.cross_entropy(logits, target, weight=1 / counts)
    if name == "logit-adjusted":
        return F.cross_entropy(logits + (counts / counts.sum()).log(), target)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def plain_loop(model, documents, collate, name, rate=0.1, size=8):
    """SGD on big batches, in order, without any trainer."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    starts = list(range(0, len(documents), size)) * STEPS
    for start in starts[:STEPS]:
        rows = range(start, min(start + size, len(documents)))
        batch = collate([documents[i] for i in rows])
        labels = batch.pop("labels")
        optimizer.zero_grad()
        if name is None:
            model(**batch, labels=labels).loss.backward()
        else:
            textbook(name, model(**batch).logits, labels).backward()
        optimizer.step()


def train(tiny, model, documents, collate, loss, out, batch, accumulation):
    arguments = tiny.make_arguments(
        out,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
    )
    trainer = Trainer(
        model, arguments, train_dataset=documents, data_collator=collate, loss=loss
    )  # fmt: skip
    trainer.train()
    return trainer


def assert_same(model, expected, tolerance):
    for (name, value), other in zip(
        model.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("rows", [24, 13])
@pytest.mark.parametrize(
    "name", ["cross-entropy", "class-weighted", "logit-adjusted", "binary-cross-entropy"]
)
def test_weights_do_not_depend_on_how_a_step_is_cut(tiny, tokenizer, tmp_path, name, rows):
    texts, target = tiny.make_table(rows)
    several = name == "binary-cross-entropy"
    if several:
        target = (np.arange(tiny.CLASSES) <= target[:, None]).astype(np.float32)
    documents = Documents(texts, tokenizer, 48, target)
    collate = PaddedBatches(tokenizer)
    expected = tiny.make_model().double()
    start = expected.classifier.weight.detach().clone()
    plain_loop(expected, documents, collate, name)
    assert (expected.classifier.weight - start).abs().max() > 1e-3, "the loop must learn"
    for batch, accumulation in [(8, 1), (4, 2), (2, 4)]:
        loss = build_loss(name, class_counts=COUNTS, num_examples=43, multi_label=several)
        model = tiny.make_model().double()
        train(tiny, model, documents, collate, loss, tmp_path, batch, accumulation)
        assert_same(model, expected, 1e-12)


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (2, 4)])
def test_a_model_with_its_own_loss(tiny, tokenizer, tmp_path, batch, accumulation):
    texts, target = tiny.make_table(24)
    documents = Documents(texts, tokenizer, 48, target)
    collate = PaddedBatches(tokenizer)

    def make():
        torch.manual_seed(0)
        config = tiny.make_config(num_labels=tiny.CLASSES)
        return BertForSequenceClassification(config).double()

    expected = make()
    plain_loop(expected, documents, collate, None)
    model = make()
    train(tiny, model, documents, collate, None, tmp_path, batch, accumulation)
    assert_same(model, expected, 1e-12)


def test_ignored_rows_do_not_count(tiny, tokenizer, tmp_path):
    texts, target = tiny.make_table(24)
    target[[1, 2, 3, 4, 5, 6, 9, 17]] = -100  # of the first eight only two are left
    documents = Documents(texts, tokenizer, 48, target)
    collate = PaddedBatches(tokenizer)
    expected = tiny.make_model().double()
    plain_loop(expected, documents, collate, "cross-entropy")
    model = tiny.make_model().double()
    loss = build_loss("cross-entropy", class_counts=COUNTS)
    train(tiny, model, documents, collate, loss, tmp_path, 2, 4)
    assert_same(model, expected, 1e-12)


def test_a_step_of_ignored_rows_alone_changes_nothing(tiny, tokenizer, tmp_path):
    texts, target = tiny.make_table(24)
    documents = Documents(texts, tokenizer, 48, np.full_like(target, -100))
    model = tiny.make_model()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    loss = build_loss("class-weighted", class_counts=COUNTS)
    train(tiny, model, documents, PaddedBatches(tokenizer), loss, tmp_path, 4, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_logged_loss_is_the_mean_over_the_step(tiny, tokenizer, tmp_path):
    texts, target = tiny.make_table(24)
    documents = Documents(texts, tokenizer, 48, target)
    collate = PaddedBatches(tokenizer)
    model = tiny.make_model().double()
    batch = collate([documents[i] for i in range(8)])
    labels = batch.pop("labels")
    first = textbook("class-weighted", model(**batch).logits, labels).item()
    loss = build_loss("class-weighted", class_counts=COUNTS)
    trainer = train(tiny, model, documents, collate, loss, tmp_path, 2, 4)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_running_f1_moves_once_a_batch(tiny, tokenizer, tmp_path, checkpointing):
    """As in a plain loop, and anew in a second training, whatever the first one left."""
    texts, target = tiny.make_table(24)
    documents, collate = Documents(texts, tokenizer, 48, target), PaddedBatches(tokenizer)
    loss, by_hand = F1WeightedCrossEntropy("running"), F1WeightedCrossEntropy("running")
    expected = tiny.make_model().double().train()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for first in range(0, 8 * STEPS, 8):
        optimizer.zero_grad()
        for start in (first, first + 4):
            batch = collate([documents[i] for i in range(start, start + 4)])
            labels = batch.pop("labels")
            (by_hand(expected(**batch).logits, labels, reduction="sum") / 8).backward()
        optimizer.step()
    for _ in range(2):
        model = tiny.make_model().double()
        if checkpointing:
            model.gradient_checkpointing_enable()
        train(tiny, model, documents, collate, loss, tmp_path, 4, 2)
        assert_same(model, expected, 1e-12)
        torch.testing.assert_close(loss._sums, by_hand._sums)
