"""Monitors: what they write is what an onlooker computes, and the training does not notice them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from longarc.training.callbacks import RunLog
from longarc.training.checkpoint import last_checkpoint
from longarc.training.monitors import SharpnessMonitor, UpdateMonitor
from longarc.training.parameters import parameter_groups
from longarc.training.recipes.sampling import sampling_weights


class Onlooker(TrainerCallback):
    """Keeps weights, gradients and rates around every update."""

    def __init__(self):
        self.before, self.after, self.gradients, self.rates = [], [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        self.before.append({n: p.detach().clone() for n, p in model.named_parameters()})
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        self.rates.append({n: rates[id(p)] for n, p in model.named_parameters()})

    def on_step_end(self, args, state, control, model=None, **_):
        self.after.append({n: p.detach().clone() for n, p in model.named_parameters()})


class Batches(TrainerCallback):
    """The batches of every update, by a trainer that is told of it."""

    def __init__(self):
        self.trainer, self.seen = None, []

    def on_step_begin(self, *_, **__):
        self.seen.append([dict(batch) for batch in self.trainer._update])


def monitored(tiny, out, *, shares=(1e9, 1e9), callbacks=(), monitors=True, **options):
    """(trainer, records by event) after a training with both monitors."""
    log = RunLog(out / "log.jsonl")
    trainer = tiny.make_resumable(out, callbacks=(log, *callbacks), **options)
    for callback in callbacks:
        if isinstance(callback, Batches):
            callback.trainer = trainer
    if monitors:
        trainer.add_callback(UpdateMonitor(log.write, shares[0]))
        trainer.add_callback(SharpnessMonitor(log.write, trainer.update_loss, shares[1]))
    checkpoint = last_checkpoint(out)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    records = [json.loads(line) for line in log.path.read_text().splitlines()]
    return trainer, records


def events(records, event):
    return [record for record in records if record["event"] == event]


def textbook_loss(trainer, batches):
    """Balanced softmax by its formula, in eval mode where there is no dropout."""
    counts = torch.tensor([float((trainer.train_dataset.targets == c).sum()) for c in range(3)])
    losses, rows = 0, 0
    for batch in batches:
        inputs = dict(batch)
        labels = inputs.pop("labels")
        logits = trainer.model(**inputs).logits + (counts / counts.sum()).log()
        losses = losses + F.cross_entropy(logits, labels, reduction="sum")
        rows += len(labels)
    return losses / rows


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_update_records_are_what_an_onlooker_computes(tiny, tmp_path, optim):
    onlooker, batches = Onlooker(), Batches()
    trainer, records = monitored(
        tiny, tmp_path, dropout=0.0, max_grad_norm=0.05, callbacks=(onlooker, batches), optim=optim,
        gradient_accumulation_steps=2, per_device_train_batch_size=4,
    )  # fmt: skip
    train, updates = events(records, "train"), events(records, "update")
    assert [r["step"] for r in updates] == [r["step"] for r in train] == list(range(1, 16))
    groups = parameter_groups(trainer.model, learning_rate=1.0, layer_decay=0.8)
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    depths = {names[id(p)]: g["depth"] for g in groups for p in g["params"]}
    assert set(depths.values()) == {"head", "layer 1", "layer 0", "embeddings"}
    for i, record in enumerate(updates):
        before, after = onlooker.before[i], onlooker.after[i]
        trainer.model.load_state_dict(before, strict=False)
        trainer.model.zero_grad()
        textbook_loss(trainer, batches.seen[i]).backward()
        gradient = {n: p.grad for n, p in trainer.model.named_parameters()}
        norm = sum(float(g.square().sum()) for g in gradient.values()) ** 0.5
        assert norm > 0.05, "clipped, so that the difference shows"
        assert train[i]["gradient_norm"] == pytest.approx(norm, rel=1e-4), "before clipping"
        penalty = sum(
            onlooker.rates[i][n] * float(g.square().sum()) for n, g in gradient.items()
        )  # fmt: skip
        assert record["implicit_penalty"] == pytest.approx(penalty / 4, rel=1e-3)
        assert record["implicit_share"] == pytest.approx(penalty / 4 / train[i]["loss"], rel=1e-3)
        for depth in (None, *set(depths.values())):
            chosen = [n for n in before if depth in (None, depths[n])]
            moved = sum(float((after[n] - before[n]).square().sum()) for n in chosen)
            size = sum(float(before[n].square().sum()) for n in chosen)
            ratio = record["update_ratio"] if depth is None else record["update_ratios"][depth]
            assert ratio == pytest.approx((moved / size) ** 0.5, rel=1e-3)
    assert updates[0]["implicit_penalty"] == 0, "the schedule starts at a rate of 0"
    assert updates[3]["implicit_penalty"] > 0


def test_sharpness_records_are_where_the_loss_is_back(tiny, tmp_path):
    """Along the step from before to after, looked at in small steps, without dropout."""
    onlooker, batches = Onlooker(), Batches()
    trainer, records = monitored(
        tiny, tmp_path, dropout=0.0, callbacks=(onlooker, batches), learning_rate=3e-3
    )
    found = events(records, "sharpness")
    assert [r["step"] for r in found][:2] == [2, 3]
    assert len(found) == 14, "a share so large allows every step but the first"
    compared = 0
    for record in found:
        i = record["step"] - 1
        before, after = onlooker.before[i], onlooker.after[i]
        rate = record["learning_rate"]
        assert record["threshold"] == pytest.approx(2 / rate)
        (head,) = {r for n, r in onlooker.rates[i].items() if "classifier" in n}
        assert rate == pytest.approx(head)
        if record["critical_learning_rate"] in (0, None):
            continue
        assert record["critical_sharpness"] == pytest.approx(2 / record["critical_learning_rate"])

        def at(multiple, before=before, after=after, i=i):
            moved = {n: before[n] + multiple * (after[n] - before[n]) for n in before}
            trainer.model.load_state_dict(moved, strict=False)
            with torch.no_grad():
                return float(textbook_loss(trainer, batches.seen[i]))

        start, critical = at(0), record["critical_learning_rate"] / rate
        assert at(0.85 * critical) < start <= at(1.15 * critical)
        compared += 1
    assert compared >= 8


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    torch.set_num_threads(1)
    return monitored(tiny, tmp_path_factory.mktemp("plain"), monitors=False)


def same(one, two):
    return all(torch.equal(value, two.state_dict()[n]) for n, value in one.state_dict().items())


def test_training_does_not_notice_its_monitors(tiny, tmp_path, plain):
    """With dropout, so random numbers that a monitor drew would show."""
    trainer, records = monitored(tiny, tmp_path)
    assert len(events(records, "sharpness")) == 14
    assert same(trainer.model, plain[0].model)
    for event in ("train", "validation"):
        seen, expected = (events(r, event) for r in (records, plain[1]))
        clocks = {"time"}
        assert [{k: v for k, v in r.items() if k not in clocks} for r in seen] == [
            {k: v for k, v in r.items() if k not in clocks} for r in expected
        ]


def test_a_resumed_run_goes_on_and_has_each_record_once(tiny, tmp_path, plain):
    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 10

    monitored(tiny, tmp_path, callbacks=(Stop(),))
    lines = (tmp_path / "log.jsonl").read_text()
    late = json.dumps({"event": "sharpness", "step": 12}) + "\n"  # beyond the checkpoint
    (tmp_path / "log.jsonl").write_text(lines + late)
    trainer, records = monitored(tiny, tmp_path)
    assert same(trainer.model, plain[0].model)
    assert [r["step"] for r in events(records, "update")] == list(range(1, 16))
    assert [r["step"] for r in events(records, "sharpness")] == [*range(2, 11), 12, 13, 14, 15]


def test_measurements_stay_within_their_share(tiny, tmp_path):
    _, none = monitored(tiny, tmp_path / "none", shares=(0.0, 0.0))
    assert len(events(none, "update")) <= 1  # the first costs nothing known yet
    assert events(none, "sharpness") == []
    share = 0.5
    trainer, some = monitored(tiny, tmp_path / "some", shares=(0.1, share), num_train_epochs=12)
    measured = events(some, "sharpness")
    assert 1 <= len(measured) < 30
    assert measured[0]["step"] == 2
    monitors = [c for c in trainer.callback_handler.callbacks if isinstance(c, SharpnessMonitor)]
    assert 0 < monitors[0].share <= 2 * share  # at every step it would be more than twice the steps
    gaps = np.diff([r["step"] for r in measured])
    assert len(gaps) == 0 or gaps.max() < 60
    assert len(events(some, "update")) < 60


@pytest.mark.parametrize("steps", [100, 200, 300, 1000, 3000])
def test_the_share_is_kept_to_by_a_clock_of_its_own(monkeypatch, steps):
    """A step takes 1, a forward pass a third; of one measurement alone the place is the middle."""
    now = 0.0
    monkeypatch.setattr("longarc.training.monitors.time.perf_counter", lambda: now)
    weight = torch.ones(3, dtype=torch.float64)
    optimizer = SimpleNamespace(param_groups=[{"params": [weight], "lr": 1e-3, "initial_lr": 1e-3}])
    args = SimpleNamespace(learning_rate=1e-3)
    records = []

    def loss():
        nonlocal now
        now += 1 / 3
        return (weight**4).sum()

    monitor = SharpnessMonitor(lambda _, **record: records.append(record), loss)
    state = SimpleNamespace(global_step=0, max_steps=steps, is_world_process_zero=True)
    monitor.on_train_begin(args, state, None)
    for _ in range(steps):
        monitor.on_step_begin(args, state, None)
        now += 1.0
        monitor.on_pre_optimizer_step(args, state, None, optimizer=optimizer)
        weight -= 1e-3 * 4 * weight**3
        monitor.on_optimizer_step(args, state, None, optimizer=optimizer)
        state.global_step += 1
        monitor.on_step_end(args, state, None)
    assert monitor.spent <= monitor.limit * steps
    assert all(record["passes"] <= monitor.PASSES for record in records)
    places = [record["step"] for record in records]
    expected = int(monitor.limit * steps / (monitor.PASSES / 3))
    assert len(places) >= expected
    if expected == 0:
        assert not places
    elif expected == 1:
        assert places[0] == pytest.approx(steps / 2, abs=2)
    else:
        assert places[0] == 2
        assert max(np.diff(places)) < 2 * steps / expected


def test_a_weighted_order_and_a_loss_of_the_models_own(tiny, tmp_path):
    """Without a longarc loss the trainer has no denominator: means are averaged."""
    from transformers import BertForSequenceClassification

    batches = Batches()
    torch.manual_seed(0)
    log = RunLog(tmp_path / "log.jsonl")
    trainer = tiny.make_resumable(tmp_path, callbacks=(log, batches), dropout=0.0)
    target = trainer.train_dataset.targets
    trainer = type(trainer)(
        BertForSequenceClassification(tiny.make_config(num_labels=3)),
        tiny.make_arguments(tmp_path, num_train_epochs=1, gradient_accumulation_steps=2),
        train_dataset=trainer.train_dataset,
        data_collator=trainer.data_collator,
        sampling_weights=sampling_weights(target, "class-balanced"),
        callbacks=[log, batches],
    )
    batches.trainer = trainer
    measured = []

    class Look(TrainerCallback):
        def on_step_end(self, *_, **__):
            measured.append((float(trainer.update_loss()), [dict(b) for b in trainer._update]))

    trainer.add_callback(Look())
    trainer.train()
    loss, seen = measured[-1]
    with torch.no_grad():
        expected = sum(float(trainer.model(**batch).loss) for batch in seen) / len(seen)
    assert loss == pytest.approx(expected, rel=1e-5)
