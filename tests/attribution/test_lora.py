"""Adapters of LoRA, by peft: the path is of the adapters, and the parts add up."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import longarc
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.training.recording.recorded_path import RecordedPath


class Sentences(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        ids = torch.randint(0, 50, (8,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": i % 3}


@pytest.mark.parametrize("saved", [None, ["classifier"]])
def test_the_parts_add_up(tiny, tmp_path, saved):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=3, max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    adapters = LoraConfig(
        r=4, lora_dropout=0.1, target_modules=["query", "value"], modules_to_save=saved
    )
    bert = transformers.BertForSequenceClassification(config)
    model = get_peft_model(bert, adapters).double()
    recorder = longarc.PathRecorder()
    collate = transformers.default_data_collator
    trainer = longarc.Trainer(
        model,
        tiny.make_arguments(
            tmp_path, max_steps=8, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.5,
            per_device_train_batch_size=4, optim="adamw_torch",
        ),
        train_dataset=Sentences(),
        loss=longarc.CrossEntropyLoss(),
        callbacks=[recorder],
        data_collator=collate,
    )  # fmt: skip
    trainer.train()
    assert {drift.difference for drift in recorder.verify()} == {0.0}
    path = RecordedPath(tmp_path / "path")
    trained = {name for group in path.about["groups"] for name in group["parameters"]}
    assert len(trained) == (10 if saved else 8)
    assert all("lora" in name or "classifier" in name for name in trained)
    model.eval()
    ids = torch.arange(8)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    queries = [Query(inputs, measure("logit", 0)), Query(inputs, measure("margin", 1, 2))]
    found = explain(path, model, Sentences(), collate, queries, tolerance=1e-11)
    for e in found:
        parts = e.initial + e.contributions.sum() + e.decay + e.elsewhere + e.residual
        assert parts == pytest.approx(e.final, abs=1e-12)
        assert e.relative_residual < 1e-9
        assert abs(e.contributions).sum() > 1e-4
