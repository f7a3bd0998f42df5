"""The trainer's choice of the best weights, and the signals and records of a run."""

from __future__ import annotations

import json
import os
import signal
import threading

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from longarc.errors import Interrupted, ModelError
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.objectives.losses.ldam import LDAMLoss
from longarc.objectives.losses.radius_margin import RadiusMarginLoss
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.callbacks import (
    Bar,
    CheckpointClock,
    FiniteLoss,
    Interruption,
    RunLog,
    train_interruptibly,
)
from longarc.training.progress import Advance, Reporter
from longarc.training.trainer import Trainer


def test_when_training_only_makes_it_worse_the_start_is_kept(tiny, tmp_path):
    """Trained with a sound rate first, then with a ruinous one."""
    good = tiny.make_resumable(tmp_path / "good", dropout=0.0, rows=80, num_train_epochs=6)
    good.train()
    trainer = tiny.make_resumable(tmp_path / "bad", learning_rate=30.0, num_train_epochs=2)
    trainer.model.load_state_dict(good.model.state_dict())
    start = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    weights = tiny.Weights()
    trainer.add_callback(weights)
    trainer.train()
    scores = [r["eval_accuracy"] for r in trainer.state.log_history if "eval_accuracy" in r]
    assert scores[0] == max(scores) > max(scores[1:]), "the rate must be ruinous"
    assert trainer.state.best_global_step == 0
    assert not torch.equal(weights.last["classifier.weight"], start["classifier.weight"])
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, start[name]), name


def test_without_eval_on_start_an_epoch_is_the_best(tiny, tmp_path):
    trainer = tiny.make_resumable(tmp_path, eval_on_start=False, num_train_epochs=1)
    trainer.train()
    assert trainer.state.best_global_step == 5
    assert not (tmp_path / "checkpoint-0").exists()


def test_the_order_of_the_documents_is_the_samplers(tiny, tokenizer, tmp_path):
    texts, target = tiny.make_table(30)
    documents = Documents(texts, tokenizer, 48, target)
    collate = tiny.Order(PaddedBatches(tokenizer))
    arguments = tiny.make_arguments(
        tmp_path, train_sampling_strategy="group_by_length", num_train_epochs=2, seed=4,
        data_seed=9,
    )  # fmt: skip
    loss = tiny.build_loss("cross-entropy", class_counts=[1, 1, 1])
    trainer = Trainer(
        tiny.make_model(), arguments, train_dataset=documents, data_collator=collate, loss=loss
    )
    trainer.train()
    from longarc.training.batches import LengthGroupedSampler

    expected = []
    for epoch in range(2):
        sampler = LengthGroupedSampler(documents.lengths, 8, seed=9)
        sampler.set_epoch(epoch)
        expected += [documents[i]["input_ids"] for i in sampler]
    assert [ids for batch in collate.seen for ids in batch] == expected


def test_a_loss_that_is_no_number_stops_the_run(tiny, tmp_path):
    # Plain SGD: AdamW's steps are bounded, so that even a mad rate stays finite for long.
    trainer = tiny.make_resumable(
        tmp_path, learning_rate=1e30, optim="sgd", max_grad_norm=0.0, callbacks=(FiniteLoss(),),
        save_strategy="no", load_best_model_at_end=False, eval_strategy="epoch",
        warmup_steps=0,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"loss is (nan|inf) at step \d+.*--learning-rate"):
        trainer.train()


class Progress(CrossEntropyLoss):
    """Cross-entropy that writes down what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def set_progress(self, fraction):
        self.told.append(fraction)


def test_the_loss_is_told_before_each_update_how_far_it_is(tiny, tmp_path):
    loss = Progress()
    trainer = tiny.make_resumable(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    trainer.loss = loss
    trainer.train()
    assert loss.told == [step / 10 for step in range(10)]  # whatever the accumulation
    trainer.evaluate()
    assert len(loss.told) == 10

    resumed = tiny.make_resumable(
        tmp_path, num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    resumed.loss = Progress()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.loss.told == [step / 10 for step in range(5, 10)]


def test_deferred_weights_come_in_at_their_step(tiny, tokenizer, tmp_path):
    """Against a loop of five steps in which torch's cross-entropy has weights in the last."""
    texts, target = tiny.make_table(40)
    counts = np.bincount(target)
    documents = Documents(texts, tokenizer, 48, target)
    collate = PaddedBatches(tokenizer)
    loss = LDAMLoss(counts, max_margin=0.0, reweight_after=0.8, beta=0.9)
    arguments = tiny.make_arguments(
        tmp_path, num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    Trainer(
        model := tiny.make_model(), arguments, train_dataset=documents, data_collator=collate,
        loss=loss,
    ).train()  # fmt: skip

    expected = tiny.make_model()
    optimizer = torch.optim.SGD(expected.parameters(), lr=arguments.learning_rate)
    late = torch.tensor((1 - 0.9) / (1 - 0.9**counts), dtype=torch.float32)
    for step in range(5):
        batch = collate([documents[i] for i in range(8 * step, 8 * step + 8)])
        labels = batch.pop("labels")
        logits = expected(**batch).logits
        weight = late if step == 4 else None
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels, weight=weight).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_loss_that_wants_the_class_vectors_gets_those_of_the_head(tiny, tokenizer, tmp_path):
    texts, target = tiny.make_table(8)
    batch = PaddedBatches(tokenizer)(
        list(map(Documents(texts, tokenizer, 48, target).__getitem__, range(8)))
    )
    model = tiny.make_model().eval()
    trainer = Trainer(
        model, tiny.make_arguments(tmp_path), loss=RadiusMarginLoss(radii=[0.1, 0.5, 2.0])
    )
    trainer.compute_loss(model, batch).backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters()}

    model.zero_grad()
    labels = batch.pop("labels")
    reach = torch.tensor([0.1, 0.5, 2.0])[labels][:, None] * model.classifier.weight.norm(dim=1)
    away = 1 - 2 * torch.nn.functional.one_hot(labels, 3)
    logits = model(**batch).logits + away * reach
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.grad, msg=name)
    assert found["classifier.weight"].norm() > 0


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def begin(log, step, tiny, tmp_path):
    state = TrainerState(global_step=step, max_steps=9)
    log.on_train_begin(tiny.make_arguments(tmp_path), state, TrainerControl())


def test_the_log_is_cut_back_to_the_checkpoint(tiny, tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    for step in range(1, 6):
        log.write("train", step=step, loss=1.0)
    with log.path.open("a") as file:
        file.write('{"event": "train", "st')  # a killed process was in the midst of a line
    begin(log, 3, tiny, tmp_path)
    found = records(log.path)
    assert [r.get("step") for r in found] == [1, 2, 3, None]
    assert (found[-1]["event"], found[-1]["resumed_from"], found[-1]["steps"]) == ("start", 3, 9)


def test_the_log_is_valid_json_whatever_the_figures(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write("train", step=1, loss=float("nan"), gradient_norm=float("inf"), learning_rate=0.5)

    def refuse(name):
        raise AssertionError(name)

    record = json.loads(log.path.read_text(), parse_constant=refuse)
    assert (record["loss"], record["gradient_norm"], record["learning_rate"]) == (None, None, 0.5)


def test_the_log_follows_its_schema(tiny, tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    tiny.make_resumable(tmp_path / "run", callbacks=(log,), num_train_epochs=1).train()
    by_event = {}
    for record in records(log.path):
        by_event.setdefault(record["event"], []).append(set(record) - {"event", "time"})
    assert by_event["start"] == [{"steps", "resumed_from"}]
    assert by_event["train"] == 5 * [{"step", "epoch", "loss", "gradient_norm", "learning_rate"}]
    assert by_event["validation"] == 2 * [{"step", "epoch", "loss", "accuracy"}]
    assert by_event["checkpoint"] == [{"step", "path"}]


def test_the_clock_saves_when_it_is_time(tiny, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("longarc.training.callbacks.time.monotonic", lambda: now[0])
    clock = CheckpointClock(minutes=10)
    arguments = tiny.make_arguments(tmp_path)
    due = []
    for seconds, epoch in [(599, 0.2), (601, 0.4), (1200, 0.6), (1202, 0.8), (1900, 1.0)]:
        now[0] = seconds
        control = TrainerControl()
        state = TrainerState(global_step=1, max_steps=9, epoch=epoch)
        clock.on_step_end(arguments, state, control)
        due.append(control.should_save)
        if control.should_save:
            clock.on_save(arguments, state, control)
    # The end of an epoch has its own checkpoint, after the evaluation.
    assert due == [False, True, False, True, False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_saves_and_gives_the_signals_back(tiny, tmp_path, number):
    before = signal.getsignal(number)
    interruption = Interruption()
    stop = tiny.SignalAt(3, "step", number)
    trainer = tiny.make_resumable(tmp_path, callbacks=(stop, interruption))
    trainer.train()
    assert interruption.stopped
    assert trainer.state.global_step == 3
    assert (tmp_path / "checkpoint-3").is_dir()
    assert signal.getsignal(number) is before


def test_an_interruption_after_the_last_step_stops_what_would_follow(tiny, tmp_path):
    class InEvaluation(TrainerCallback):
        def on_evaluate(self, args, state, control, **_):
            if state.global_step == state.max_steps:
                os.kill(os.getpid(), signal.SIGTERM)

    interruption = Interruption()
    trainer = tiny.make_resumable(
        tmp_path, callbacks=(interruption, InEvaluation()), num_train_epochs=1
    )
    with pytest.raises(Interrupted, match="after step 5 of 5; its state is saved"):
        train_interruptibly(trainer, interruption)
    assert (tmp_path / "checkpoint-5").is_dir()


def test_a_second_interruption_stops_at_once(tiny, tmp_path):
    class Impatient(tiny.SignalAt):
        def on_step_end(self, args, state, control, **_):
            self._send("step", state)
            self._send("step", state)

    interruption = Interruption()
    stop = Impatient(2, "step", signal.SIGINT)
    trainer = tiny.make_resumable(tmp_path, callbacks=(stop, interruption))
    # A shell's background jobs ignore SIGINT, and so would these tests there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_in_another_thread_listens_to_no_signal(tiny, tmp_path):
    """Python allows handlers in the main thread only."""
    before = signal.getsignal(signal.SIGINT)
    failed = []

    def train():
        try:
            tiny.make_resumable(
                tmp_path, callbacks=(Interruption(),), num_train_epochs=1, save_strategy="no",
                load_best_model_at_end=False,
            ).train()  # fmt: skip
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert failed == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_resumed_bar_starts_where_it_stopped(tiny, tmp_path):
    advance = Advance(Reporter(None), "fine-tuning", None)
    bar = Bar(advance)
    state = TrainerState(global_step=4, max_steps=10)
    bar.on_train_begin(tiny.make_arguments(tmp_path), state, TrainerControl())
    bar.on_step_end(tiny.make_arguments(tmp_path), state, TrainerControl())
    assert (advance.done, advance.total) == (5, 10)


def test_evaluation_uses_the_loss_and_leaves_ignored_rows_out(tiny, tokenizer, tmp_path):
    texts, target = tiny.make_table(8)
    target[0] = -100
    documents = Documents(texts, tokenizer, 48, target)
    loss = tiny.build_loss("logit-adjusted", class_counts=[30, 10, 3])
    trainer = Trainer(
        tiny.make_model(), tiny.make_arguments(tmp_path), eval_dataset=documents,
        data_collator=PaddedBatches(tokenizer), loss=loss,
    )  # fmt: skip
    found = trainer.evaluate()["eval_loss"]
    logits = torch.from_numpy(np.asarray(trainer.predict(documents).predictions))
    prior = (torch.tensor([30.0, 10.0, 3.0]) / 43).log()
    expected = torch.nn.functional.cross_entropy(logits + prior, torch.from_numpy(target))
    assert found == pytest.approx(float(expected), abs=1e-5)
