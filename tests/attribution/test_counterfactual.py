"""Effects are the derivatives of the training written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import functional_call

import longarc
from longarc.attribution.counterfactual import _Back, effects
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.errors import ModelError, OptionError
from longarc.objectives.losses.f1_weighted import F1WeightedCrossEntropy
from longarc.objectives.regularizers.changed_loss import ChangedLoss
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.recording.recorded_path import RecordedPath
from longarc.training.recording.replay import Replay

ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-6}
X = torch.tensor([[0.3, -0.2, 0.5, 1.0]], dtype=torch.float64)
QUERIES = [
    Query({"x": X}, measure("logit", 1)),
    Query({"x": -X}, measure("margin", 0, 2)),
]


def written_out(run, weights, level=None, loss_of=None):
    """The recorded training as a function of the documents' weights in its loss; the end values."""
    model, path, data = run.trainer.model, run.path, run.data
    about, tensors = path.about, path.snapshot(0)
    theta = {n: tensors[f"parameter.{n}"] for n, _ in model.named_parameters()}
    options = {n: g["options"] for g in about["groups"] for n in g["parameters"]}
    m = {n: torch.zeros_like(p) for n, p in theta.items()}
    v = {n: torch.zeros_like(p) for n, p in theta.items()}
    steps = dict.fromkeys(theta, 0)  # of each parameter: those that brought it a gradient
    model.eval()
    for t, batches in enumerate(path.batches(0, path.end), start=1):
        documents = [i for batch in batches for i in batch.documents]
        for p in theta.values():
            if not p.requires_grad:
                p.requires_grad_()
        logits = functional_call(model, theta, (data.x[documents],))["logits"]
        each = torch.nn.functional.cross_entropy(logits, data.y[documents], reduction="none")
        size = len(documents)
        if loss_of is not None:
            loss_of.set_progress((t - 1) / about["steps"])
            each = loss_of(logits, data.y[documents], reduction="none")
            size = loss_of.denominator(data.y[documents], 3)
        if level is not None:
            each = (each - level).abs() + level
        loss = (each * weights[documents]).sum() / size
        each = torch.autograd.grad(loss, list(theta.values()), create_graph=True, allow_unused=True)
        grads = {n: g for n, g in zip(theta, each, strict=True) if g is not None}
        if about["max_grad_norm"]:
            norm = torch.cat([g.flatten() for g in grads.values()]).norm()
            left = (about["max_grad_norm"] / (norm + 1e-6)).clamp(max=1)
            grads = {n: g * left for n, g in grads.items()}
        new = dict(theta)
        for n, g in grads.items():
            p, o, rate = theta[n], options[n], batches[0].learning_rates[0]
            steps[n] += 1
            if about["optimizer"] == "SGD":
                g = g + o["weight_decay"] * p
                m[n] = g if steps[n] == 1 else o["momentum"] * m[n] + (1 - o["dampening"]) * g
                new[n] = p - rate * (g + o["momentum"] * m[n] if o["nesterov"] else m[n])
                continue
            (beta1, beta2), decay = o["betas"], o["weight_decay"]
            m[n] = beta1 * m[n] + (1 - beta1) * g
            v[n] = beta2 * v[n] + (1 - beta2) * g**2
            root = (v[n] / (1 - beta2 ** steps[n])).sqrt() + o["eps"]
            new[n] = p * (1 - rate * decay) - rate * m[n] / (1 - beta1 ** steps[n]) / root
        theta = new
    for n, p in model.named_parameters():
        assert torch.allclose(theta[n], p, atol=1e-12), "written out, it must be the training's"
    values = [functional_call(model, theta, (q.inputs["x"],))["logits"][0] for q in QUERIES]
    return torch.stack([q.value(z) for q, z in zip(QUERIES, values, strict=True)])


@pytest.mark.parametrize(
    "options",
    [
        {**ADAMW, "max_grad_norm": 0.4, "weight_decay": 0.1, "gradient_accumulation_steps": 2},
        {**ADAMW, "max_grad_norm": 0.0, "lr_scheduler_type": "linear", "warmup_steps": 2},
        {"optim": "sgd", "learning_rate": 0.2, "max_grad_norm": 0.5, "weight_decay": 0.1},
        {"optim": "sgd", "optim_args": "momentum=0.8,dampening=0.3", "learning_rate": 0.1},
        {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=True", "learning_rate": 0.1},
    ],
    ids=["adamw, clipped", "adamw", "sgd, clipped", "momentum", "nesterov"],
)
def test_effects_are_the_derivatives_of_the_training(record, options):
    run = record(max_steps=6, **options)
    weights = torch.ones(len(run.data), dtype=torch.float64, requires_grad=True)
    values = written_out(run, weights)
    expected = [torch.autograd.grad(v, weights, retain_graph=True)[0].numpy() for v in values]
    found = effects(run.path, run.trainer.model, run.data, run.trainer.data_collator, QUERIES)
    assert found == pytest.approx(np.stack(expected), rel=1e-7, abs=1e-11)
    assert np.abs(found).max() > 1e-4


def test_a_parameter_is_as_far_as_its_own_gradients(record, small):
    """Adam corrects its moments by the parameter's steps, not by those of the training."""

    class Sometimes(small.Net):
        def __init__(self):
            super().__init__()
            self.extra = torch.nn.Linear(6, 6).double()

        def forward(self, x, labels=None):
            hidden = self.norm(torch.tanh(self.first(x)))
            if x[:, 0].mean() > 0:
                hidden = hidden + self.extra(hidden)
            return {"logits": self.last(hidden)}

    run = record(model=Sometimes(), max_steps=6, max_grad_norm=0.5, **ADAMW)
    batches = run.path.batches(0, run.path.end)
    assert len({bool(run.data.x[list(b.documents), 0].mean() > 0) for (b,) in batches}) == 2
    weights = torch.ones(len(run.data), dtype=torch.float64, requires_grad=True)
    value = written_out(run, weights)[0]
    (expected,) = torch.autograd.grad(value, weights)
    found = effects(run.path, run.trainer.model, run.data, run.trainer.data_collator, QUERIES[:1])
    assert found[0] == pytest.approx(expected.numpy(), rel=1e-7, abs=1e-11)


def test_a_flooded_loss_of_each_document(record):
    flooding = longarc.Flooding(level=1.0, per_example=True)
    run = record(regularizers=[flooding], max_steps=6, gradient_accumulation_steps=2, **ADAMW)
    given = (run.path, run.trainer.model, run.data, run.trainer.data_collator)
    weights = torch.ones(len(run.data), dtype=torch.float64, requires_grad=True)
    values = written_out(run, weights, level=1.0)
    expected = [torch.autograd.grad(v, weights, retain_graph=True)[0].numpy() for v in values]
    with pytest.raises(OptionError, match="is not the one that was recorded"):
        effects(*given, QUERIES)
    found = effects(*given, QUERIES, loss=ChangedLoss(longarc.CrossEntropyLoss(), [flooding]))
    assert found == pytest.approx(np.stack(expected), rel=1e-7, abs=1e-11)


@pytest.mark.parametrize("level", [None, 1.0])
def test_a_loss_that_changes_on_the_way_is_what_it_was_at_each_step(record, level):
    """Deferred re-weighting: from half of the training on, rare classes count more."""

    def ldam():
        return longarc.LDAMLoss([9, 2, 1], reweight_after=0.5, beta=0.9)

    flooding = [] if level is None else [longarc.Flooding(level=level, per_example=True)]
    run = record(loss=ldam(), regularizers=flooding, max_steps=6, **ADAMW)
    weights = torch.ones(len(run.data), dtype=torch.float64, requires_grad=True)
    values = written_out(run, weights, level=level, loss_of=ldam())
    expected = [torch.autograd.grad(v, weights, retain_graph=True)[0].numpy() for v in values]
    given = ldam()
    given.set_progress(1.0)
    loss = ChangedLoss(given, flooding) if flooding else given
    model, collate = run.trainer.model, run.trainer.data_collator
    found = effects(run.path, model, run.data, collate, QUERIES, loss=loss)
    assert found == pytest.approx(np.stack(expected), rel=1e-7, abs=1e-11)
    assert given.reweights, "the loss that was given is left as it was"


def test_the_loss_is_where_the_model_is(record, small):
    loss = longarc.LogitAdjustedLoss([6, 3, 2])
    run = record(model=small.Net(odd=True), loss=loss, max_steps=1, **ADAMW)
    model = small.Net(odd=True).to("meta")
    replay = Replay(run.path, model, run.data, run.trainer.data_collator)
    back = _Back(replay, QUERIES, loss, None)
    assert {b.device.type for b in back.loss.buffers()} == {"meta"}
    assert {b.device.type for b in loss.buffers()} == {"cpu"}


def test_layers_that_are_not_known_take_the_forward_mode(record, small):
    run = record(model=small.Net(odd=True), max_steps=4, **ADAMW)
    weights = torch.ones(len(run.data), dtype=torch.float64, requires_grad=True)
    values = written_out(run, weights)
    (expected,) = torch.autograd.grad(values[0], weights)
    found = effects(run.path, run.trainer.model, run.data, run.trainer.data_collator, QUERIES)
    assert found[0] == pytest.approx(expected.numpy(), rel=1e-7, abs=1e-11)


def test_what_cannot_be_foretold_is_refused(record):
    run = record(max_steps=3, loss=longarc.LogitAdjustedLoss([6, 3, 2]), **ADAMW)
    given = (run.path, run.trainer.model, run.data, run.trainer.data_collator)
    with pytest.raises(OptionError, match="CrossEntropyLoss is not the one that was recorded"):
        effects(*given, QUERIES)
    effects(*given, QUERIES, loss=longarc.LogitAdjustedLoss([6, 3, 2]))
    with pytest.raises(OptionError, match="nothing to ask"):
        effects(*given, [])
    unlabelled = [{"x": x} for x in run.data.x]
    with pytest.raises(OptionError, match="labels"):
        effects(given[0], given[1], unlabelled, given[3], QUERIES)


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise NotImplementedError
        return gradient


def test_a_layer_without_a_second_derivative_that_shows_late_is_named(record, small):
    data = small.Points(11)

    class Odd(small.Net):
        def forward(self, x, labels=None):
            logits = super().forward(x)["logits"]
            return {"logits": OnceOnly.apply(logits) if (x == data.x[4]).all(1).any() else logits}

    run = record(model=Odd(), data=data, max_steps=2, train_sampling_strategy="sequential", **ADAMW)
    with pytest.raises(ModelError, match=r"the training twice.*contributions instead"):
        effects(run.path, run.trainer.model, data, run.trainer.data_collator, QUERIES)


@pytest.mark.parametrize("level", [None, 1.0])
def test_a_loss_with_running_statistics_is_refused_for_what_it_is(record, level):
    loss = F1WeightedCrossEntropy("running")
    flooding = [] if level is None else [longarc.Flooding(level=level, per_example=True)]
    run = record(loss=loss, regularizers=flooding, max_steps=2, **ADAMW)
    given = ChangedLoss(loss, flooding) if flooding else loss
    model, collate = run.trainer.model, run.trainer.data_collator
    with pytest.raises(OptionError, match=r"remembers the batches before it.*contributions"):
        effects(run.path, model, run.data, collate, QUERIES, loss=given)


def test_with_tiny_steps_effects_are_contributions(tiny, tmp_path):
    """On a BERT with embeddings, attention and dropout, where nothing has time to react."""
    model, tokenizer = tiny.make_model(0.2).double(), tiny.make_tokenizer()
    texts, target = tiny.make_table(12)
    data, collate = Documents(texts, tokenizer, 48, target), PaddedBatches(tokenizer)
    trainer = longarc.Trainer(
        model, tiny.make_arguments(tmp_path, max_steps=3, learning_rate=1e-6), train_dataset=data,
        data_collator=collate, loss=longarc.CrossEntropyLoss(), callbacks=[longarc.PathRecorder()],
    )  # fmt: skip
    trainer.train()
    path = RecordedPath(tmp_path / "path")
    asked = Documents(["pump oil", "court law liability the a notice of bank"], tokenizer, 48)
    queries = [Query(collate([asked[i]]), measure("margin", i, 2)) for i in range(2)]
    found = effects(path, model, data, collate, queries)
    exact = explain(path, model, data, collate, queries)
    assert found == pytest.approx(np.stack([e.contributions for e in exact]), rel=1e-3, abs=1e-12)
    assert np.abs(found).max() > 1e-8


def test_layers_that_are_known_serve_every_step(tiny, tmp_path):
    """The gradient that the replay leaves behind is no part of a batch's own."""
    model, tokenizer = tiny.make_model(0.2).double(), tiny.make_tokenizer()
    texts, target = tiny.make_table(12)
    data, collate = Documents(texts, tokenizer, 48, target), PaddedBatches(tokenizer)
    trainer = longarc.Trainer(
        model, tiny.make_arguments(tmp_path, max_steps=3, learning_rate=1e-3), train_dataset=data,
        data_collator=collate, loss=longarc.CrossEntropyLoss(), callbacks=[longarc.PathRecorder()],
    )  # fmt: skip
    trainer.train()
    asked = Documents(["pump oil"], tokenizer, 48)
    queries = [Query(collate([asked[0]]), measure("margin", 0, 2))]
    with Replay(RecordedPath(tmp_path / "path"), model, data, collate) as replay:
        back = _Back(replay, queries, longarc.CrossEntropyLoss(), None)
        back.run(3)
        assert back.layers_serve
