"""The path recorder: a replay is the training to the last bit, and what cannot be replayed is."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from torch import nn
from transformers import BertForSequenceClassification

import longarc
from longarc.errors import DataError, ModelError, OptionError, RunError
from longarc.objectives.regularizers.registry import build_regularizers
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.checkpoint import last_checkpoint
from longarc.training.recording.path_recorder import PathRecorder
from longarc.training.recording.recorded_path import RecordedPath
from longarc.training.recording.replay import Replay


def exact(drifts):
    assert drifts
    return all(drift.difference == 0 < drift.movement for drift in drifts)


@pytest.mark.parametrize("rows", [40, 37])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_replay_with_dropout_and_clipping_is_exact(tiny, tmp_path, rows, accumulation):
    recorder = PathRecorder()
    trainer = tiny.make_resumable(
        tmp_path, rows=rows, callbacks=(recorder,), gradient_accumulation_steps=accumulation,
        max_grad_norm=0.5,
    )  # fmt: skip
    trainer.train()
    assert exact(recorder.verify())
    path = RecordedPath(tmp_path / "path")
    assert path.end == trainer.state.max_steps
    assert path.kept == trainer.state.best_global_step


def test_training_is_not_changed_by_a_bit(tiny, tmp_path):
    recorded = tiny.make_resumable(tmp_path / "a", callbacks=(PathRecorder(),))
    recorded.train()
    plain = tiny.make_resumable(tmp_path / "b")
    plain.train()
    state = plain.model.state_dict()
    for name, mine in recorded.model.state_dict().items():
        assert torch.equal(mine, state[name]), name


@pytest.mark.parametrize(
    ("optim", "more"),
    [
        ("sgd", {}),
        ("sgd", {"optim_args": "momentum=0.9,nesterov=True"}),
        ("adamw_torch_fused", {"lr_scheduler_type": "cosine"}),
        ("adamw_torch", {"bf16": True}),
    ],
)
def test_replay_of_a_plain_transformers_trainer(tiny, tokenizer, tmp_path, optim, more):
    """Its own loss inside the model, its own sampler, an incomplete last batch."""
    texts, target = tiny.make_table(29)
    torch.manual_seed(3)
    model = BertForSequenceClassification(tiny.make_config(0.2, num_labels=3))
    recorder = PathRecorder(tmp_path / "elsewhere")
    trainer = transformers.Trainer(
        model,
        tiny.make_arguments(
            tmp_path, optim=optim, learning_rate=1e-2, num_train_epochs=2, max_grad_norm=1.0,
            train_sampling_strategy="random", label_smoothing_factor=0.1, **more,
        ),
        train_dataset=Documents(texts, tokenizer, 48, target),
        data_collator=PaddedBatches(tokenizer),
        callbacks=[recorder],
    )  # fmt: skip
    trainer.train()
    assert exact(recorder.verify())


def test_batches_are_the_documents_that_were_trained_on(tiny, tmp_path):
    trainer = tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),), sampler="class-balanced")
    collate = trainer.data_collator = tiny.Order(trainer.data_collator)
    trainer.train()
    path = RecordedPath(tmp_path / "path")
    recorded = [b for update in path.batches(0, path.end) for b in update]
    documents = trainer.train_dataset
    seen = [b for b in collate.seen if len(b) == 8]  # evaluation has 8 too; training comes first
    for batch, ids in zip(recorded[:5], (s for s in seen if s), strict=False):
        mine = [documents[i]["input_ids"] for i in batch.documents]
        assert mine == ids or mine in collate.seen
    counted = np.concatenate([b.documents for b in recorded])
    assert len(counted) == 3 * 40


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_training_goes_on_with_its_path(tiny, tmp_path, stop):
    """Saved after each step, stopped after one: in a segment, and on the edge of an epoch."""
    whole = PathRecorder(tmp_path / "whole" / "path")
    trainer = tiny.make_resumable(tmp_path / "whole", callbacks=(whole,))
    trainer.train()

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == stop

    steps = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": False}
    folder = tmp_path / "cut"
    tiny.make_resumable(folder, callbacks=(Stop(), PathRecorder()), **steps).train()
    assert RecordedPath(folder / "path").end == stop
    recorder = PathRecorder()
    resumed = tiny.make_resumable(folder, callbacks=(recorder,), **steps)
    resumed.train(resume_from_checkpoint=str(last_checkpoint(folder)))
    assert exact(recorder.verify())
    mine, other = (RecordedPath(f / "path") for f in (folder, tmp_path / "whole"))
    assert mine.end == other.end == 15
    for a, b in zip(mine.batches(0, 15), other.batches(0, 15), strict=True):
        assert [x.documents for x in a] == [x.documents for x in b]


def test_resuming_from_before_the_last_record_drops_what_lies_after(tiny, tmp_path):
    steps = {
        "save_strategy": "steps",
        "save_steps": 6,
        "save_total_limit": 9,
        "load_best_model_at_end": False,
    }
    tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),), **steps).train()
    recorder = PathRecorder()
    resumed = tiny.make_resumable(tmp_path, callbacks=(recorder,), **steps)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert exact(recorder.verify())


def test_resuming_with_other_options_is_refused(tiny, tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 5, "load_best_model_at_end": False}
    tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),), num_train_epochs=1, **steps).train()
    other = tiny.make_resumable(
        tmp_path, callbacks=(PathRecorder(),), max_grad_norm=0.5, num_train_epochs=2, **steps
    )
    with pytest.raises(RunError, match=r"other max_grad_norm than .*: 1\.0 then, 0\.5 now"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_resuming_without_a_record_of_the_start_is_refused(tiny, tmp_path):
    steps = {
        "save_strategy": "steps",
        "save_steps": 6,
        "save_total_limit": 9,
        "load_best_model_at_end": False,
    }
    tiny.make_resumable(tmp_path, **steps).train()
    resumed = tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),), **steps)
    with pytest.raises(RunError, match="no training path"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_the_budget_is_kept_with_fewer_snapshots(tiny, tmp_path):
    def train(name, budget):
        said = []
        recorder = PathRecorder(tmp_path / name, budget=budget, say=said.append)
        tiny.make_resumable(tmp_path, callbacks=(recorder,)).train()
        size = sum(f.stat().st_size for f in (tmp_path / name).iterdir())
        return recorder, size, said

    free, size, said = train("free", 10)
    assert (free.plan.every, free.plan.snapshots) == (3, 6)
    assert 0.8 * free.plan.bytes < size <= free.plan.bytes + 50_000  # headers
    assert f"{free.plan.bytes / 1e9:.2f} GB" in said[0]
    tight, size, _ = train("tight", 0.75 * free.plan.bytes / 1e9)
    assert tight.plan.every > 3
    assert size <= 0.75 * free.plan.bytes + 50_000
    assert exact(tight.verify())
    with pytest.raises(OptionError, match=r"takes at least .* GB.*budget is 0.0001 GB"):
        train("none", 0.0001)


def test_nothing_but_plain_files(tiny, tmp_path):
    tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),)).train()
    kinds = {f.suffix for f in (tmp_path / "path").iterdir()}
    assert kinds == {".json", ".safetensors", ".parquet"}
    table = pq.read_table(tmp_path / "path" / "steps-00000000.parquet")
    assert table["step"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["fgm", "sam", "flooding", "r-drop", "gradient-penalty"])
def test_regularizers_are_refused_with_the_reason(tiny, tmp_path, name):
    options = {"flooding": {"level": 0.1}}.get(name, {})
    trainer = tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),))
    trainer.regularizers = build_regularizers([{name: options}])
    with pytest.raises(OptionError, match="no plain sum"):
        trainer.train()


def test_a_loss_that_reads_the_heads_weights_is_refused(tiny, tmp_path):
    trainer = tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),))
    trainer.loss = longarc.RadiusMarginLoss([3, 2, 1])
    with pytest.raises(OptionError, match="past the logits"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"optim": "adafactor"}, "Adafactor"), ({"neftune_noise_alpha": 1.0}, "NEFTune")],
)
def test_what_cannot_be_replayed_is_refused(tiny, tmp_path, options, named):
    trainer = tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),), **options)
    with pytest.raises(OptionError, match=named):
        trainer.train()


def test_two_passes_for_a_batch_are_refused(tiny, tmp_path):
    class Twice(longarc.Trainer):
        def compute_loss(self, model, inputs, *rest, **more):
            model(**{k: v for k, v in inputs.items() if k != "labels"})
            return super().compute_loss(model, inputs, *rest, **more)

    trainer = tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),))
    trainer.__class__ = Twice
    with pytest.raises(OptionError, match="through the model once"):
        trainer.train()
    assert not trainer.model._forward_hooks


@pytest.fixture
def recorded(tiny, tmp_path):
    trainer = tiny.make_resumable(tmp_path, callbacks=(PathRecorder(),), num_train_epochs=1)
    trainer.train()
    return trainer, RecordedPath(tmp_path / "path")


def test_other_documents_or_models_are_refused(tiny, tokenizer, recorded):
    trainer, path = recorded
    texts, target = tiny.make_table(40, seed=9)
    other = Documents(texts, tokenizer, 48, target)
    with pytest.raises(DataError, match="not what the model was trained on"):
        Replay(path, trainer.model, other, trainer.data_collator).verify()
    short = Documents(texts[:7], tokenizer, 48, target[:7])
    with pytest.raises(DataError, match="7 documents"):
        Replay(path, trainer.model, short, trainer.data_collator)
    with pytest.raises(ModelError, match="no parameter"):
        Replay(path, nn.Linear(2, 2), trainer.train_dataset, trainer.data_collator)


def test_a_replay_leaves_the_model_and_the_random_state_alone(recorded):
    trainer, path = recorded
    before = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    state = torch.get_rng_state()
    Replay(path, trainer.model, trainer.train_dataset, trainer.data_collator).verify()
    assert torch.equal(state, torch.get_rng_state())
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_changed_snapshot_shows_as_drift(recorded):
    """The check can fail."""
    from safetensors.torch import load_file, save_file

    trainer, path = recorded
    file = path.folder / f"snapshot-{path.snapshots[1]:08d}.safetensors"
    tensors = load_file(file)
    tensors["parameter.classifier.weight"][0, 0] += 1e-3
    save_file(tensors, file)
    drifts = Replay(path, trainer.model, trainer.train_dataset, trainer.data_collator).verify()
    assert drifts[0].difference == pytest.approx(1e-3, rel=1e-3)


def test_a_folder_without_a_path_says_how_to_record_one(tmp_path):
    with pytest.raises(RunError, match="--record-path"):
        RecordedPath(tmp_path)
