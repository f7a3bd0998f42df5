"""Contributions add up, and are those of the update written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, jacrev, vmap

import longarc
from longarc.attribution.products import by_forward_mode, by_layers
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.errors import OptionError
from longarc.objectives.losses.registry import build_loss, loss_names
from longarc.training.batches import Documents, PaddedBatches

TIGHT = 1e-11
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-6}


def adds_up(found, bound=1e-9):
    for e in found:
        parts = e.initial + e.contributions.sum() + e.decay + e.elsewhere + e.residual
        assert parts == pytest.approx(e.final, abs=1e-12)
        assert e.relative_residual <= bound, e
        assert e.steps.sum() == pytest.approx(e.contributions.sum(), abs=1e-12)
        assert np.abs(e.contributions).sum() > 1e-6


optimizers = st.one_of(
    st.fixed_dictionaries(
        {
            "optim": st.just("sgd"),
            "optim_args": st.sampled_from(
                [None, "momentum=0.9", "momentum=0.8,dampening=0.3", "momentum=0.9,nesterov=True"]
            ),
            "learning_rate": st.sampled_from([0.02, 0.2]),
        }
    ),
    st.fixed_dictionaries(
        {
            "optim": st.sampled_from(["adamw_torch", "adamw_torch_fused"]),
            "adam_beta1": st.sampled_from([0.0, 0.9]),
            "adam_beta2": st.sampled_from([0.9, 0.999]),
            "adam_epsilon": st.sampled_from([1e-8, 1e-3]),
            "learning_rate": st.sampled_from([1e-3, 2e-2]),
        }
    ),
)


@settings(
    max_examples=12, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    optimizer=optimizers,
    weight_decay=st.sampled_from([0.0, 0.1]),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.sampled_from([0, 2]),
    max_grad_norm=st.sampled_from([0.0, 0.3, 5.0]),
    accumulation=st.sampled_from([1, 2]),
    dropout=st.sampled_from([0.0, 0.3]),
)
def test_the_parts_add_up_for_every_option(
    record, small, optimizer, weight_decay, schedule, warmup, max_grad_norm, accumulation, dropout
):
    run = record(
        model=small.Net(dropout), weight_decay=weight_decay, lr_scheduler_type=schedule,
        warmup_steps=warmup, max_grad_norm=max_grad_norm, gradient_accumulation_steps=accumulation,
        max_steps=7, train_sampling_strategy="random", **optimizer,
    )  # fmt: skip
    adds_up(run.explain(tolerance=TIGHT))


@pytest.mark.parametrize("name", [n for n in loss_names() if n != "radius-margin"])
def test_the_parts_add_up_for_every_loss(record, small, name):
    several = name in ("binary-cross-entropy", "multilabel-softmax", "asymmetric")
    loss = build_loss(name, class_counts=[5, 3, 3], num_examples=11, multi_label=several)
    data = small.Points(11)
    if several:
        data.y = (torch.arange(3) <= data.y[:, None]).double()
    run = record(loss=loss, data=data, gradient_accumulation_steps=2, **ADAMW)
    adds_up(run.explain(tolerance=TIGHT), bound=1e-8)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_parts_add_up_with_each_documents_loss_flooded(record, small, accumulation):
    """Where a document's loss lies below the level, its gradient is turned round."""
    flooding = longarc.Flooding(level=1.0, per_example=True)
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 6} | ADAMW
    run = record(model=small.Net(0.3), regularizers=[flooding], **options)
    plain = record(model=small.Net(0.3), **options)
    (recorder,) = (c for c in run.trainer.callback_handler.callbacks if hasattr(c, "verify"))
    assert {drift.difference for drift in recorder.verify()} == {0.0}
    found = run.explain(tolerance=TIGHT)
    adds_up(found)
    assert abs(found[0].final - plain.explain(tolerance=TIGHT)[0].final) > 1e-3


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adams_coupled_decay_and_amsgrad(tiny, small, tmp_path, optimizer, amsgrad):
    model, data = small.Net(), small.Points(11)
    trainer = longarc.Trainer(
        model,
        tiny.make_arguments(tmp_path, max_steps=6, max_grad_norm=0.5),
        train_dataset=data,
        loss=longarc.CrossEntropyLoss(),
        optimizers=(
            optimizer(model.parameters(), lr=1e-2, weight_decay=0.1, amsgrad=amsgrad),
            None,
        ),
        callbacks=[longarc.PathRecorder()],
    )
    trainer.train()
    path = longarc.training.recording.recorded_path.RecordedPath(tmp_path / "path")
    x = torch.ones(1, 4, dtype=torch.float64)
    found = explain(
        path, model, data, trainer.data_collator, [Query({"x": x}, measure("logit", 0))],
        tolerance=TIGHT,
    )  # fmt: skip
    adds_up(found)
    assert abs(found[0].decay) > 1e-4


def brute_force(run, value, *, beta1, beta2, eps, decay, max_norm):
    """AdamW written out: every example's share of every momentum, kept as a vector of its own."""
    model, path, data = run.trainer.model, run.path, run.data
    tensors = path.snapshot(0)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    theta = torch.cat([tensors[f"parameter.{n}"].flatten() for n in shapes])
    sizes = [s.numel() for s in shapes.values()]

    def unflatten(flat):
        return {n: p.view(s) for (n, s), p in zip(shapes.items(), flat.split(sizes), strict=True)}

    def loss(flat, x, y):
        z = functional_call(model, unflatten(flat), (x[None],))["logits"][0]
        return torch.nn.functional.cross_entropy(z, y)

    decays = torch.cat(
        [
            torch.full((s.numel(),), decay if len(s) > 1 else 0.0, dtype=torch.float64)
            for s in shapes.values()
        ]
    )
    model.eval()
    nodes, weights = np.polynomial.legendre.leggauss(24)
    shares = torch.zeros(len(data), len(theta), dtype=torch.float64)
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    contributions, decayed = torch.zeros(len(data), dtype=torch.float64), 0.0
    for t, batches in enumerate(path.batches(0, path.end), start=1):
        documents = [i for batch in batches for i in batch.documents]
        each = vmap(grad(loss), in_dims=(None, 0, 0))(
            theta, data.x[documents], data.y[documents]
        ) / len(documents)
        clip = min(1.0, max_norm / (float(each.sum(0).norm()) + 1e-6))
        each = each * clip
        shares *= beta1
        for i, g in zip(documents, each, strict=True):
            shares[i] += (1 - beta1) * g
        m = beta1 * m + (1 - beta1) * each.sum(0)
        v = beta2 * v + (1 - beta2) * each.sum(0) ** 2
        rate = batches[0].learning_rates[0]
        scale = rate / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
        delta = -scale * m - rate * decays * theta
        mean = sum(
            w / 2 * grad(value)(theta + (1 + s) / 2 * delta)
            for s, w in zip(nodes, weights, strict=True)
        )
        contributions += (shares * -scale) @ mean
        decayed -= rate * float((decays * theta) @ mean)
        theta = theta + delta
    end = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(theta, end, atol=1e-12), "the update written out must be the training's"
    return contributions.numpy(), decayed


@pytest.mark.parametrize("accumulation", [1, 2])
def test_contributions_are_those_of_adamw_written_out(record, accumulation):
    run = record(
        gradient_accumulation_steps=accumulation, max_grad_norm=0.4, weight_decay=0.1,
        warmup_steps=2, lr_scheduler_type="linear", max_steps=6, **ADAMW,
    )  # fmt: skip
    model = run.trainer.model
    shapes = {n: p.shape for n, p in model.named_parameters()}
    x = torch.tensor([[0.3, -0.2, 0.5, 1.0]], dtype=torch.float64)

    def value(flat):
        parts = flat.split([s.numel() for s in shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        return functional_call(model, named, (x,))["logits"][0, 1]

    expected, decayed = brute_force(
        run, value, beta1=0.9, beta2=0.999, eps=1e-6, decay=0.1, max_norm=0.4
    )
    (found,) = run.explain([Query({"x": x}, measure("logit", 1))], tolerance=TIGHT)
    assert found.contributions == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert found.decay == pytest.approx(decayed, rel=1e-8)


def test_plain_gradient_descent_is_a_kernel_machine(record):
    """f_T(x) = f_0(x) + Σ_i Σ_t γ α_i(t) K_t(x, x_i), K the tangent kernel of Δ's mean and θ_t."""
    run = record(optim="sgd", learning_rate=0.1, per_device_train_batch_size=11, max_steps=3)
    model, data, path = run.trainer.model, run.data, run.path
    x = torch.tensor([[0.3, -0.2, 0.5, 1.0]], dtype=torch.float64)
    (found,) = run.explain([Query({"x": x}, measure("logit", 1))], tolerance=TIGHT)
    model.eval()
    theta = {k[10:]: v for k, v in path.snapshot(0).items() if k.startswith("parameter.")}

    def logits(p, x):
        return functional_call(model, p, (x,))["logits"]

    nodes, weights = np.polynomial.legendre.leggauss(16)
    expected = torch.zeros(11, dtype=torch.float64)
    for _ in range(3):
        z = logits(theta, data.x)
        alpha = (torch.eye(3)[data.y] - z.softmax(1)).double() / 11
        jacobian = jacrev(logits)(theta, data.x)  # name → (N, C, …)
        step = {n: 0.1 * torch.einsum("ic,ic...->...", alpha, j) for n, j in jacobian.items()}
        for s, w in zip((1 + nodes) / 2, weights / 2, strict=True):
            there = {n: theta[n] + s * step[n] for n in theta}
            of_query = jacrev(lambda p: logits(p, x)[0, 1])(there)
            kernel = sum(
                torch.einsum("icp,p->ic", j.flatten(2), of_query[n].flatten())
                for n, j in jacobian.items()
            )
            expected += w * 0.1 * (alpha * kernel).sum(1)
        theta = {n: theta[n] + step[n] for n in theta}
    assert found.contributions == pytest.approx(expected.numpy(), rel=1e-8, abs=1e-12)


def test_contributions_do_not_depend_on_how_a_batch_is_cut(record):
    found = [
        record(per_device_train_batch_size=b, gradient_accumulation_steps=a, max_grad_norm=0.5,
               max_steps=4, **ADAMW).explain(tolerance=TIGHT)
        for b, a in ((8, 1), (4, 2), (2, 4))
    ]  # fmt: skip
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert mine.contributions == pytest.approx(theirs.contributions, rel=1e-6, abs=1e-11)


def test_queries_do_not_depend_on_each_other(record):
    run = record(**ADAMW)
    x = torch.ones(1, 4, dtype=torch.float64)
    queries = [Query({"x": s * x}, measure("logit", 1)) for s in (0.5, -1.0, 2.0)]
    together = run.explain(queries)
    for query, found in zip(queries, together, strict=True):
        (alone,) = run.explain([query])
        assert found.contributions == pytest.approx(alone.contributions, rel=1e-9, abs=1e-14)


def test_the_tolerance_bounds_the_residual(record):
    run = record(optim="sgd", learning_rate=1.0, max_steps=6)
    residuals = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        for e in run.explain(tolerance=tolerance):
            assert e.within
            assert abs(e.residual) <= e.tolerance
            assert e.residual == pytest.approx(e.quadrature, abs=1e-12)
        residuals.append(max(abs(e.residual) for e in run.explain(tolerance=tolerance)))
    assert residuals[0] > 100 * residuals[2]


def test_a_part_of_the_parameters(record):
    run = record(weight_decay=0.1, **ADAMW)
    whole = run.explain(tolerance=TIGHT)
    head = run.explain(tolerance=TIGHT, parameters=lambda name: name.startswith("last"))
    rest = run.explain(tolerance=TIGHT, parameters=lambda name: not name.startswith("last"))
    adds_up(head)
    for a, b, c in zip(whole, head, rest, strict=True):
        assert b.contributions + c.contributions == pytest.approx(a.contributions, abs=1e-12)
        assert abs(b.elsewhere) > 1e-6
    with pytest.raises(OptionError, match=r"no trained parameter.*first\.weight"):
        run.explain(parameters=lambda name: False)


def test_frozen_parameters(record, small):
    model = small.Net()
    model.first.requires_grad_(False)
    adds_up(record(model=model, **ADAMW).explain(tolerance=TIGHT))


def test_parameters_outside_known_layers_take_the_forward_mode(record, small):
    run = record(model=small.Net(0.2, odd=True), **ADAMW)
    adds_up(run.explain(tolerance=TIGHT))


@pytest.mark.parametrize("odd", [False, True])
def test_a_weight_that_two_layers_share(record, small, odd):
    class Tied(small.Net):
        def forward(self, x, labels=None):
            return super().forward(x + self.tied(torch.tanh(self.again(x))))

    model = Tied(odd=odd)
    model.again, model.tied = torch.nn.Linear(4, 4).double(), torch.nn.Linear(4, 4).double()
    model.tied.weight = model.again.weight
    adds_up(record(model=model, **ADAMW).explain(tolerance=TIGHT))


def test_a_layer_that_is_not_what_it_seems_takes_the_forward_mode(record, small):
    model = small.Net()
    plain = model.first.forward
    model.first.forward = lambda x: plain(x) ** 2
    adds_up(record(model=model, **ADAMW).explain(tolerance=TIGHT))


def test_layers_and_forward_mode_agree_on_a_bert_with_dropout(tiny):
    tokenizer = tiny.make_tokenizer()
    texts, target = tiny.make_table(5)
    batch = PaddedBatches(tokenizer)([*Documents(texts, tokenizer, 48, target)])
    del batch["labels"]
    model = tiny.make_model(0.2).double().train()
    torch.manual_seed(0)
    directions = {n: torch.randn(2, *p.shape).double() for n, p in model.named_parameters()}
    alpha = torch.randn(5, 3).double()

    def forward():
        torch.manual_seed(7)
        return model(**batch).logits

    def backward():
        logits = forward()
        logits.backward(alpha)
        return logits

    layers = by_layers(model, directions, backward)
    summed = sum(
        (directions[n] * p.grad).flatten(1).sum(1)
        for n, p in model.named_parameters()
        if p.grad is not None
    )
    assert torch.allclose(layers.sum(dim=1), summed)
    assert torch.allclose(layers, by_forward_mode(model, directions, forward, alpha))


def test_a_fine_tuned_bert(tiny, tmp_path):
    """In float32, with dropout, warm-up, clipping, decay and step sizes by depth."""
    recorder = longarc.PathRecorder()
    trainer = tiny.make_resumable(
        tmp_path, callbacks=(recorder,), learning_rate=2e-3, num_train_epochs=2
    )
    trainer.train()
    batch = trainer.data_collator([trainer.eval_dataset[i] for i in range(2)])
    queries = [
        Query({k: v[i : i + 1] for k, v in batch.items() if k != "labels"}, measure("logit", c))
        for i in range(2)
        for c in range(3)
    ]
    path = longarc.training.recording.recorded_path.RecordedPath(tmp_path / "path")
    found = explain(
        path, trainer.model, trainer.train_dataset, trainer.data_collator, queries, end=path.end
    )
    assert max(e.relative_residual for e in found) < 1e-3


@pytest.mark.parametrize("odd", [False, True])
def test_nothing_is_left_behind(record, small, odd):
    run = record(model=small.Net(odd=odd), **ADAMW)
    before = {n: v.clone() for n, v in run.trainer.model.state_dict().items()}
    files = set(run.path.folder.iterdir())
    run.explain(parameters=lambda name: not name.endswith("bias"))
    assert set(run.path.folder.iterdir()) == files
    assert list(run.trainer.model.state_dict()) == list(before)
    for name, value in run.trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_start_alone_has_no_contributions(record):
    (e, *_) = record(**ADAMW).explain(end=0)
    assert e.initial == e.final
    assert not e.contributions.any()


def test_no_query_is_refused(record):
    run = record(**ADAMW)
    with pytest.raises(OptionError, match="nothing to explain"):
        run.explain([])
    with pytest.raises(OptionError, match="steps 0 to 5"):
        run.explain(end=99)
    with pytest.raises(OptionError, match="tolerance must be above 0; found 0"):
        run.explain(tolerance=0)
