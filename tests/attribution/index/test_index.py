"""An index against gradients written out; interruptions, shards, batches; what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jacrev

import longarc
from longarc.attribution.index.answer import explain_by_index
from longarc.attribution.index.build import build_index
from longarc.attribution.index.search import scores, top
from longarc.attribution.index.store import Index
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.errors import DataError, ModelError, OptionError, RunError
from longarc.training.recording.recorded_path import RecordedPath

X = torch.tensor([[0.3, -0.2, 0.5, 1.0]], dtype=torch.float64)
WHOLE = {"dimensions": None, "dtype": "float64", "checkpoints": 99}
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-6}


def queries():
    return [Query({"x": X}, measure("logit", 1)), Query({"x": -X}, measure("loss", 2))]


def index_of(run, **options):
    return build_index(run.path, run.trainer.model, run.data, run.trainer.data_collator, **options)


def answer(run, index, asked=None):
    return explain_by_index(index, run.path, run.trainer.model, asked or queries())


def by_hand(run, reach, scale, clips):
    """−Σ_t e_t κ_t ⟨s_t ⊙ ∇f(θ_t), J_i(θ_t)ᵀ δ_it⟩ with a snapshot at every step, by autograd."""
    model, total = run.trainer.model.eval(), np.zeros((2, len(run.data)))
    for t in range(run.path.kept):
        tensors = run.path.snapshot(t)
        theta = {n: tensors[f"parameter.{n}"] for n, _ in model.named_parameters()}

        def logits(theta, x):
            return functional_call(model, theta, (x[None],))["logits"][0]

        for q, query in enumerate(queries()):
            gradient = grad(lambda th, q=query: q.value(logits(th, q.inputs["x"][0])))(theta)
            for batch in run.path.batches(t, t + 1)[0]:
                for i, alpha in zip(batch.documents, batch.gradient, strict=True):
                    jacobian = jacrev(logits)(theta, run.data.x[i])
                    for n, each in jacobian.items():
                        one = torch.tensordot(alpha, each, dims=1)
                        product = (scale(t, n) * gradient[n] * one).sum()
                        total[q, i] -= reach[t] * clips[t] * float(product)
    return total


def test_in_full_it_is_tracin(record):
    """One checkpoint a step, plain gradient descent: Σ lr ⟨∇f, ∇ℓ_i⟩, by autograd."""
    run = record(max_steps=3, lr_scheduler_type="linear", learning_rate=0.2)
    rates = [0.2, 0.2 * 2 / 3, 0.2 / 3]
    expected = by_hand(run, rates, lambda t, n: 1.0, [1.0] * 3)
    found = answer(run, index_of(run, **WHOLE))
    for e, values in zip(found, expected, strict=True):
        assert np.allclose(e.contributions, values, rtol=0, atol=1e-12)
        assert not e.errors.any()
        assert e.method == "indexed"
        parts = e.initial + e.contributions.sum() + e.decay + e.elsewhere + e.residual
        assert parts == pytest.approx(e.final, abs=1e-12)
        assert e.steps.sum() == pytest.approx(e.contributions.sum())
    assert np.abs(expected).sum() > 0.1


@pytest.mark.parametrize("momentum", [None, "momentum=0.8,dampening=0.3",
                                      "momentum=0.8,nesterov=True"])  # fmt: skip
def test_momentum_and_clipping(record, momentum):
    run = record(max_steps=3, max_grad_norm=0.1, optim_args=momentum, learning_rate=0.1)
    mu = 0.8 if momentum else 0.0
    gains = [1.0, *[0.7 if momentum and "damp" in momentum else 1.0] * 2]
    reach = []
    for t in range(3):
        later = sum(0.1 * mu ** (s - t) for s in range(t, 3)) * gains[t]
        reach.append(0.1 + mu * later if momentum and "nesterov" in momentum else later)
    clips = []
    for t in range(3):
        tensors = run.path.snapshot(t)
        theta = {n: tensors[f"parameter.{n}"] for n, _ in run.trainer.model.named_parameters()}
        (batch,) = run.path.batches(t, t + 1)[0]

        def loss(theta, batch=batch):
            x = run.data.x[list(batch.documents)]
            return (functional_call(run.trainer.model, theta, (x,))["logits"]
                    * batch.gradient).sum()  # fmt: skip

        norm = sum(g.square().sum() for g in grad(loss)(theta).values()) ** 0.5
        clips.append(min(1.0, 0.1 / (float(norm) + 1e-6)))
    assert max(clips) < 1
    expected = by_hand(run, reach, lambda t, n: 1.0, clips)
    found = answer(run, index_of(run, **WHOLE))
    assert np.allclose([e.contributions for e in found], expected, rtol=0, atol=1e-12)


def test_adamw(record):
    """Step sizes from the second moments after the steps that a checkpoint stands for."""
    run = record(max_steps=3, weight_decay=0.1, **ADAMW)
    lr, b1, b2 = 1e-2, 0.9, 0.999
    reach = [
        (1 - b1) * sum(lr * b1 ** (s - t) / (1 - b1 ** (s + 1)) for s in range(t, 3))
        for t in range(3)
    ]

    def scale(t, name):
        at = t + 1
        square = run.path.snapshot(at)[f"state.{name}.exp_avg_sq"] / (1 - b2**at)
        return 1 / (square.sqrt() + 1e-6)

    expected = by_hand(run, reach, scale, [1.0] * 3)
    found = answer(run, index_of(run, **WHOLE))
    assert np.allclose([e.contributions for e in found], expected, rtol=0, atol=1e-12)
    assert found[0].decay != 0


def test_with_small_steps_it_is_the_exact_explanation(record):
    """What checkpoints miss falls with the step; decay and the parameters left out likewise."""
    errors = []
    for rate in (1e-1, 1e-3):
        run = record(max_steps=3, learning_rate=rate, weight_decay=0.1, optim_args="momentum=0.5")
        exact = run.explain(queries(), parameters=lambda n: "first" not in n)
        index = index_of(run, parameters=lambda n: "first" not in n, **WHOLE)
        for e, f in zip(exact, answer(run, index), strict=True):
            size = np.abs(e.contributions).sum()
            errors.append(np.abs(e.contributions - f.contributions).sum() / size)
            assert f.final == pytest.approx(e.final, abs=1e-12)
            assert abs(f.decay - e.decay) < rate * size
            assert abs(f.elsewhere - e.elsewhere) < rate * abs(e.elsewhere)
            assert e.elsewhere != 0
    assert max(errors[2:]) < 1e-2
    assert max(errors[2:]) < max(errors[:2]) / 30


@pytest.fixture(scope="module")
def bert(tiny, tmp_path_factory):
    """A tiny BERT fine-tuned with AdamW in groups, dropout and clipping; its path and queries."""
    folder = tmp_path_factory.mktemp("bert")
    recorder = longarc.PathRecorder()
    trainer = tiny.make_resumable(
        folder / "run", callbacks=(recorder,), learning_rate=2e-3, num_train_epochs=2
    )
    trainer.train()
    path = RecordedPath(folder / "run" / "path")
    batch = trainer.data_collator([trainer.eval_dataset[i] for i in range(2)])
    asked = [
        Query({k: v[i : i + 1] for k, v in batch.items() if k != "labels"}, measure("logit", c))
        for i in range(2)
        for c in range(2)
    ]
    return SimpleNamespace(
        trainer=trainer, path=path, data=trainer.train_dataset, queries=asked, folder=folder
    )


def test_sketches_of_a_bert(bert):
    """Estimates are within their errors of the whole gradients' products, and near the exact."""
    whole = index_of(bert, folder=bert.folder / "whole", checkpoints=4, dimensions=None)
    sketch = index_of(bert, folder=bert.folder / "sketch", checkpoints=4, dimensions=2048)
    exact = explain(
        bert.path, bert.trainer.model, bert.data, bert.trainer.data_collator, bert.queries
    )
    one, two = (answer(bert, index, bert.queries) for index in (whole, sketch))
    for e, f, g in zip(one, two, exact, strict=True):
        assert not e.errors.any()
        off = (f.contributions - e.contributions)[f.errors > 0] / f.errors[f.errors > 0]
        assert 0.6 < np.sqrt((off**2).mean()) < 1.5
        assert abs(f.contributions.sum() - e.contributions.sum()) < 4 * f.sum_error
        assert np.corrcoef(e.contributions, g.contributions)[0, 1] > 0.95
        assert f.final == pytest.approx(g.final, abs=1e-5)  # kept.safetensors has its weights
        assert [c.error for c in f.supporting(1)] == [f.errors[f.supporting(1)[0].document]]


def test_batches_and_padding_do_not_matter(bert):
    found, visited = [], []
    for name, size, part in (("a", 1, 1024), ("b", 7, 1024), ("c", 32, 5)):
        index = index_of(
            bert, folder=bert.folder / name, batch_size=size, part=part, dimensions=128,
            dtype="float32", checkpoints=2,
        )  # fmt: skip
        parts = [part for c in index.checkpoints for part in index.each_part(c.step)]
        found.append(torch.cat([rows * scales[:, None] for _, scales, rows in parts]))
        visited.append(torch.cat([documents for documents, _, _ in parts]).tolist())
    assert visited[0] == visited[1] == visited[2]
    assert set(visited[0]) == set(range(40))
    assert torch.allclose(found[0], found[1], atol=2e-5 * float(found[0].abs().max()))
    assert torch.allclose(found[0], found[2], atol=2e-5 * float(found[0].abs().max()))


class InterruptError(Exception):
    pass


def test_an_interrupted_index_goes_on(record):
    run = record(max_steps=4, **ADAMW)
    whole = index_of(run, folder=run.path.folder / "whole", part=3, dimensions=128)

    class Stop:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __call__(self, rows):
            self.done = getattr(self, "done", 0) + rows
            if self.done > 5:
                raise InterruptError

    with pytest.raises(InterruptError):
        index_of(run, part=3, dimensions=128, progress=lambda total: Stop())
    begun = Index(run.path.folder / "index")
    assert 0 < len(begun.missing) < len(begun.parts)
    with pytest.raises(RunError, match=r"is not whole: \d+ of \d+ parts are missing"):
        answer(run, begun)
    kept = {f: f.stat().st_mtime_ns for f in begun.folder.glob("part-*")}
    totals = []

    def progress(total):
        totals.append(total)
        return torch.no_grad()  # any block will do

    ended = index_of(run, part=3, dimensions=128, batch_size=3)
    assert not ended.missing
    assert all(f.stat().st_mtime_ns == at for f, at in kept.items())
    for part in ended.parts:
        assert whole.part_file(*part).read_bytes() == ended.part_file(*part).read_bytes()
    index_of(run, part=3, dimensions=128, progress=progress)
    assert totals == []  # nothing was left to do


def test_shards_make_the_whole(record, monkeypatch):
    run = record(max_steps=4, **ADAMW)
    whole = index_of(run, folder=run.path.folder / "whole", part=2, dimensions=128)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        shards = index_of(run, part=2, dimensions=128)
        assert bool(shards.missing) == (rank == "1")
        assert len(shards.missing) <= len(shards.parts) / 2
    for part in whole.parts:
        assert whole.part_file(*part).read_bytes() == shards.part_file(*part).read_bytes()


def test_scores_and_top_are_those_of_a_dense_matrix(record):
    run = record(max_steps=4, **ADAMW)
    index = index_of(run, part=3, dimensions=128, checkpoints=2)
    generator = torch.Generator().manual_seed(0)
    asked = [torch.randn(5, 128, generator=generator).double() for _ in index.checkpoints]
    found = scores(index, asked, 128, queries=len(asked[0]))
    dense = np.zeros((5, len(run.data)))
    for checkpoint, direction in zip(index.checkpoints, asked, strict=True):
        for documents, scales, rows in index.each_part(checkpoint.step):
            assert rows.dtype == torch.float16
            for document, scale, row in zip(documents, scales, rows, strict=True):
                dense[:, document] += float(scale) * (direction @ row.double()).numpy()
    assert np.allclose(found.values, dense, rtol=1e-12, atol=1e-12)
    assert np.allclose(found.sums.sum(axis=1), dense.sum(axis=1))
    documents, values = top(found.values, 4)
    order = np.argsort(-dense, axis=1)[:, :4]
    assert np.array_equal(documents, order)
    assert np.allclose(values, np.take_along_axis(dense, order, axis=1))


def test_half_precision_costs_little(record):
    run = record(max_steps=4, **ADAMW)
    fine = index_of(run, folder=run.path.folder / "fine", dimensions=128, dtype="float64")
    half = index_of(run, dimensions=128)
    for e, f in zip(answer(run, fine), answer(run, half), strict=True):
        off = np.abs(e.contributions - f.contributions).max()
        assert 0 < off < 1e-3 * np.abs(e.contributions).max()


def test_the_model_comes_out_as_it_went_in(record):
    run = record(max_steps=4, max_grad_norm=0.1, **ADAMW)
    before = {n: v.clone() for n, v in run.trainer.model.state_dict().items()}
    answer(run, index_of(run, dimensions=128))
    for name, value in run.trainer.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad and p.grad is None for p in run.trainer.model.parameters())


def test_what_does_not_fit_is_refused(record, small):
    run = record(max_steps=4)
    index = index_of(run, dimensions=128)
    with pytest.raises(RunError, match="dimensions 128, not 192"):
        index_of(run, dimensions=192)
    with pytest.raises(RunError, match="at most so many checkpoints: 5, not 2"):
        index_of(run, dimensions=128, checkpoints=2)
    with pytest.raises(OptionError, match="multiple of 64; found 130"):
        index_of(run, dimensions=130)
    with pytest.raises(OptionError, match="no trained parameter is left"):
        index_of(run, parameters=lambda n: False)
    with pytest.raises(OptionError, match="nothing to explain"):
        explain_by_index(index, run.path, run.trainer.model, [])
    other = record(max_steps=3)
    with pytest.raises(RunError, match="of another training path"):
        answer(other, index)
    with pytest.raises(RunError, match="of another training path"):
        index_of(other, folder=index.folder, dimensions=128)
    with pytest.raises(RunError, match="no index at"):
        Index(run.path.folder / "none")
    run.data.x[0] += 1
    with pytest.raises(DataError, match="not what the model was trained on"):
        index_of(run, folder=run.path.folder / "more")


def test_a_layer_of_another_kind_is_refused(record, small):
    run = record(model=small.Net(odd=True), max_steps=3)
    with pytest.raises(ModelError, match="gate is held by a Net, whose gradients cannot be"):
        index_of(run)
    (e, _) = answer(run, index_of(run, parameters=lambda n: n != "gate", **WHOLE))
    assert e.elsewhere != 0


def test_a_layer_that_is_used_otherwise_is_refused(record, small):
    class Twisted(small.Net):
        def forward(self, x, labels=None):
            out = super().forward(x)["logits"]
            return {"logits": out + self.first.weight.sum() * x[:, :3]}

    run = record(model=Twisted(), max_steps=3)
    with pytest.raises(ModelError, match="do not add up to that of their batch"):
        index_of(run, **WHOLE)


def test_a_disk_that_is_too_small(record, monkeypatch):
    run = record(max_steps=3)
    told = []
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OptionError, match=r"the index takes .* GB free"):
        index_of(run, say=told.append)
    assert "rows of 2060 bytes" in told[0]


def test_a_training_that_moved_nothing_has_no_contributions(record):
    run = record(**(ADAMW | {"learning_rate": 0.0}))
    for found, exact in zip(answer(run, index_of(run)), run.explain(queries()), strict=True):
        assert found.initial == found.final == pytest.approx(exact.final, rel=1e-12)
        assert found.residual == 0
        assert found.contributions.shape == (len(run.data),)
        assert not found.contributions.any()
        assert found.steps.shape == (0,)
