"""The kernel machine is the network; its kernel, weights and ledger are those written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import functional_call, jacrev

import longarc
from longarc.errors import DataError, OptionError
from longarc.objectives.losses.registry import build_loss
from longarc.objectives.regularizers.changed_loss import ChangedLoss

TIGHT = 1e-11
DESCENT = {"optim": "sgd", "learning_rate": 0.1, "per_device_train_batch_size": 11, "max_steps": 3}
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "adam_epsilon": 1e-6}


def machine_of(run, **options):
    options = {"tolerance": TIGHT} | options
    trainer = run.trainer
    return longarc.KernelMachine(
        run.path, trainer.model, run.data, trainer.data_collator, **options
    )


def some_items(number=3, seed=5):
    x = torch.randn(number, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [{"x": row} for row in x]


def logits_of(model, items):
    model.eval()
    with torch.no_grad():
        return model(torch.stack([item["x"] for item in items]))["logits"].numpy()


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    momentum=st.sampled_from([None, "momentum=0.9", "adam"]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    clip=st.sampled_from([0.0, 0.3]),
    together=st.sampled_from([1, 4, 32]),
)
def test_the_machine_predicts_what_the_network_says(
    record, small, momentum, weight_decay, clip, together
):
    adam = momentum == "adam"
    optimizer = ADAMW if adam else {"optim": "sgd", "learning_rate": 0.1, "optim_args": momentum}
    run = record(
        model=small.Net(0.2), weight_decay=weight_decay, max_grad_norm=clip,
        lr_scheduler_type="linear", max_steps=4, **optimizer,
    )  # fmt: skip
    items = some_items(2)
    machine = machine_of(run, together=together)
    found = machine.predict(items)
    assert found == pytest.approx(logits_of(run.trainer.model, items), abs=1e-9)
    terms = machine.terms(items)
    parts = terms.initial + terms.contributions.sum(2) + terms.decay + terms.elsewhere
    assert found == pytest.approx(parts, abs=1e-12)
    assert terms.contributions.shape == (2, 3, 11)


class WrittenOut:
    """Plain gradient descent on all of the data, with every Jacobian whole."""

    def __init__(self, run, items):
        self.model, self.data, self.path = run.trainer.model.eval(), run.data, run.path
        self.x = torch.stack([item["x"] for item in items])
        snapshot = self.path.snapshot(0).items()
        self.theta = {k[10:]: v for k, v in snapshot if k.startswith("parameter.")}
        self.rate = 0.1

    def logits(self, p, x):
        return functional_call(self.model, p, (x,))["logits"]

    def flat(self, theta, x):
        jacobian = jacrev(self.logits)(theta, x)
        return torch.cat([jacobian[n].flatten(2) for n in self.theta], dim=2)  # (n, C, P)

    def walk(self):
        """Each step's pulls (N, C), mean Jacobian of the items on it, the place where it began."""
        nodes, weights = np.polynomial.legendre.leggauss(16)
        theta = self.theta
        for _ in range(3):
            z = self.logits(theta, self.data.x)
            pull = (torch.eye(3)[self.data.y] - z.softmax(1)).double() / len(self.data)
            each = jacrev(self.logits)(theta, self.data.x)
            step = {n: self.rate * torch.einsum("ic,ic...->...", pull, j) for n, j in each.items()}
            mean = sum(
                w / 2 * self.flat({n: theta[n] + (1 + s) / 2 * step[n] for n in theta}, self.x)
                for s, w in zip(nodes, weights, strict=True)
            )
            yield pull, mean, theta
            theta = {n: theta[n] + step[n] for n in theta}


def test_the_kernel_is_the_mean_over_the_path(record):
    run = record(**DESCENT)
    items, others = some_items(2), some_items(4, seed=6)
    machine = machine_of(run)
    x = torch.stack([item["x"] for item in others])
    written = WrittenOut(run, items)
    full = sum(
        torch.einsum("acp,bdp->acbd", mean, written.flat(theta, x))
        for _, mean, theta in written.walk()
    ) / 3  # fmt: skip
    one = full[:, 1, :, 1].numpy()
    assert machine.kernel(items, others, label=1) == pytest.approx(one, rel=1e-8)
    trace = torch.einsum("acbc->ab", full).numpy() / 3
    assert machine.kernel(items, others) == pytest.approx(trace, rel=1e-8)
    training = [run.data[i] for i in range(11)]
    assert machine.kernel(items, label=0) == pytest.approx(
        machine.kernel(items, training, label=0), rel=1e-10
    )


def test_support_weights_and_the_machine_with_constant_ones(record):
    run = record(**DESCENT)
    items = some_items(2)
    machine = machine_of(run)
    written = WrittenOut(run, items)
    steps = list(written.walk())
    support = sum(0.1 * pull for pull, _, _ in steps)
    assert machine.support == pytest.approx(support.numpy(), rel=1e-8)
    kernel = sum(
        torch.einsum("acp,idp->acid", mean, written.flat(theta, run.data.x))
        for _, mean, theta in steps
    ) / 3  # fmt: skip
    start = written.logits(written.theta, written.x)
    expected = start + torch.einsum("acid,id->ac", kernel, support)
    assert machine.predict(items, constant=True) == pytest.approx(expected.numpy(), rel=1e-8)
    assert np.abs(machine.predict(items, constant=True) - machine.predict(items)).max() > 1e-6


def test_clipping_is_in_the_support(record):
    free, clipped = (
        machine_of(record(max_grad_norm=norm, **(DESCENT | {"max_steps": 1})))
        for norm in (0.0, 0.01)
    )
    ratio = clipped.support / free.support
    assert ratio == pytest.approx(np.full_like(ratio, ratio[0, 0]), rel=1e-6)
    assert ratio[0, 0] < 0.5


def test_forgetting_takes_contributions_off(record):
    run = record(**ADAMW)
    items = some_items()
    machine = machine_of(run)
    terms = machine.terms(items)
    edited = machine.forget([2, 7]).forget(2)
    expected = machine.predict(items) - terms.contributions[:, :, [2, 7]].sum(2)
    assert edited.predict(items) == pytest.approx(expected, abs=1e-12)
    assert machine.forgotten == frozenset()
    with pytest.raises(OptionError, match="no training example 11; they are numbered 0 to 10"):
        machine.forget(11)
    with pytest.raises(OptionError, match="take no edits"):
        edited.predict(items, constant=True)


def test_learning_adds_the_new_examples_pulls(record):
    run = record(**DESCENT)
    items, new = some_items(2), some_items(2, seed=8)
    machine = machine_of(run)
    written = WrittenOut(run, items)
    x, labels = torch.stack([item["x"] for item in new]), torch.tensor([2, 0])
    expected = 0
    for _, mean, theta in written.walk():
        pull = (torch.eye(3)[labels] - written.logits(theta, x).softmax(1)).double() / 11
        kernel = torch.einsum("acp,ldp->acld", mean, written.flat(theta, x))
        expected = expected + 0.1 * torch.einsum("acld,ld->acl", kernel, pull)
    learned = machine.learn(new[:1], [2]).learn(new[1:], [0])
    assert learned.terms(items).learned == pytest.approx(expected.numpy(), rel=1e-8)
    gained = learned.predict(items) - machine.predict(items)
    assert gained == pytest.approx(expected.sum(2).numpy(), abs=1e-10)
    back = learned.forget(range(11)).predict(items)
    assert back == pytest.approx(machine.terms(items).initial + gained, abs=1e-9)


@pytest.mark.parametrize("options", [ADAMW, {"optim": "sgd", "optim_args": "momentum=0.9"}])
def test_learning_what_is_known_doubles_it(record, options):
    """A twin of a training example, with all of them in each batch, adds what that one did."""
    run = record(max_grad_norm=0.3, **(DESCENT | options))
    items = some_items(2)
    machine = machine_of(run)
    twin = machine.learn([{"x": run.data.x[4]}], [int(run.data.y[4])])
    terms = twin.terms(items)
    assert terms.learned[:, :, 0] == pytest.approx(terms.contributions[:, :, 4], rel=1e-8)


def test_learning_takes_the_loss_as_it_was_at_each_step(record, small):
    """The twin again, of a rare class, with weights that come in halfway."""
    data = small.Points(11)

    def ldam():
        counts = torch.bincount(data.y, minlength=3)
        return longarc.LDAMLoss(counts, reweight_after=0.5, beta=0.9)

    run = record(data=data, loss=ldam(), **(DESCENT | {"max_steps": 4}))
    rarest = int((data.y == torch.bincount(data.y).argmin()).nonzero()[0])
    twin = machine_of(run, loss=ldam()).learn([{"x": data.x[rarest]}], [int(data.y[rarest])])
    terms = twin.terms(some_items(2))
    assert terms.learned[:, :, 0] == pytest.approx(terms.contributions[:, :, rarest], rel=1e-8)


@pytest.mark.parametrize("name", ["soft-f1", "f1-weighted"])
def test_a_loss_of_the_batch_teaches_no_single_example(record, name):
    run = record(**(DESCENT | {"max_steps": 1}))
    flooding = [longarc.Flooding(level=1.0, per_example=True)]
    given = build_loss(name, class_counts=[4, 4, 3])
    for loss in (given, ChangedLoss(given, flooding)):
        with pytest.raises(OptionError, match=r"belongs to the batch.*no pull of its own"):
            machine_of(run, loss=loss).learn(some_items(1), [0])
    alone = machine_of(run, loss=ChangedLoss(longarc.CrossEntropyLoss(), flooding))
    assert len(alone.learn(some_items(1), [0]).newcomers) == 1


def test_learning_has_the_loss_where_the_model_is(record, small):
    loss = longarc.LogitAdjustedLoss([6, 3, 2])
    run = record(loss=loss, **DESCENT)
    machine = machine_of(run, loss=loss).learn(some_items(2), [0, 1])
    machine.model = small.Net().to("meta")
    logits = torch.zeros(2, 3, dtype=torch.float64, device="meta")
    assert machine._learning().pushes(logits, 1.0, 0, 0).device.type == "meta"


def test_the_svm_is_scikit_learns_on_the_kernel(record, small):
    from sklearn.svm import SVC

    data = small.Points(11)
    data.y = (data.x[:, 0] > 0).long()
    run = record(data=data, **(DESCENT | {"max_steps": 6}))
    machine = machine_of(run, tolerance=1e-6)
    labels = data.y.tolist()
    fitted = machine.svm(labels, strength=np.float32(10.0), label=1)
    training = [data[i] for i in range(11)]
    gram = machine.kernel(training, training, label=1)
    gram = (gram + gram.T) / 2
    assert np.linalg.eigvalsh(gram).min() > -1e-2 * np.trace(gram)
    expected = SVC(kernel="precomputed", C=10.0 / np.diag(gram).mean()).fit(gram, labels)
    query = machine.kernel(some_items(), label=1)
    assert fitted.decision_function(query) == pytest.approx(expected.decision_function(query))
    assert fitted.score(gram, labels) > 0.8
    with pytest.raises(DataError, match="3 labels were given for a training set of 11"):
        machine.svm([0, 1, 1])
    with pytest.raises(OptionError, match="strength must be above 0; found 0"):
        machine.svm(labels, strength=0)


def test_what_cannot_be_asked(record):
    machine = machine_of(record(**DESCENT), names=["a", "b", "c"])
    with pytest.raises(OptionError, match="nothing to ask"):
        machine.predict([])
    with pytest.raises(OptionError, match="no label 'd'"):
        machine.kernel(some_items(), label="d")
    with pytest.raises(OptionError, match="no class 3"):
        machine.learn(some_items(1), [3])
    with pytest.raises(DataError, match="2 labels were given for 1 examples"):
        machine.learn(some_items(1), [0, 1])
    assert len(machine) == 11


@pytest.fixture
def two(small):
    class Two(small.Net):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(6, 2).double()
            self.config.num_labels = 2

    return Two()


def test_two_labels_of_one_example_are_no_rivals(record, small, two):
    data = small.Points(11)
    data.y = (data.x[:, :2] > 0).double()
    loss = longarc.BinaryCrossEntropyLoss()
    machine = machine_of(record(model=two, data=data, loss=loss, **DESCENT), loss=loss)
    items = some_items(2)
    each = [machine.kernel(items, label=c) for c in (0, 1)]
    assert machine.kernel(items) == pytest.approx(sum(each) / 2, rel=1e-10)
    told = [np.int64(1), np.array([1]), [np.int64(1)], [1], 1]
    for one in told:
        assert machine.learn(items[:1], [one]).newcomers[0][1].tolist() == [0.0, 1.0]


def test_two_classes_have_the_margins_kernel(record, small, two):
    data = small.Points(11)
    data.y = data.y.clamp(max=1)
    machine = machine_of(record(model=two, data=data, **DESCENT))
    items = some_items(2)
    margin = machine.kernel(items)
    sides = machine.kernel(items, label=0) + machine.kernel(items, label=1)
    assert margin.shape == (2, 11)
    assert not np.allclose(margin, sides, rtol=1e-3)  # the cross terms are in the margin's
    assert np.all(np.diag(machine.kernel(items, items)) > 0)
