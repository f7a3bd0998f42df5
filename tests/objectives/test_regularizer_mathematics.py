"""Each regularizer against its formula, written out for a small classifier in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.objectives.regularizers.divergence import divergence
from longarc.objectives.regularizers.fgm import FGM
from longarc.objectives.regularizers.flooding import Flooding
from longarc.objectives.regularizers.freelb import FreeLB
from longarc.objectives.regularizers.gradient_penalty import LONGEST, METHODS, GradientPenalty
from longarc.objectives.regularizers.input_gradient_penalty import InputGradientPenalty
from longarc.objectives.regularizers.pgd import PGD
from longarc.objectives.regularizers.r_drop import RDrop
from longarc.objectives.regularizers.registry import REGULARIZERS, build_regularizers
from longarc.objectives.regularizers.sam import SAM
from longarc.objectives.regularizers.step import regularized_backward
from longarc.objectives.regularizers.vat import VAT
from small_classifier import SPECIAL, cut, gradients, make_batch, make_model


@pytest.fixture
def model():
    return make_model(attn_implementation="eager")


@pytest.fixture
def batch():
    return make_batch()


def found(model, batch, *regularizers):
    loss = regularized_backward(model, batch, CrossEntropyLoss(), regularizers, special=SPECIAL)
    return loss, gradients(model)


def reported(model, batch, *regularizers):
    """The value of the objective, as a flooding outside would see it."""
    last, values = regularizers[-1], []
    inner = last.step

    def watched(sweep, step):
        values.append(inner(sweep, step))
        return values[-1]

    last.step = watched
    found(model, batch, *regularizers)
    return values[-1]


def embed(model, batch):
    return model.bert.embeddings.word_embeddings(batch["input_ids"])


def logits_at(model, batch, embeddings):
    return model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits


def losses_at(model, batch, embeddings):
    logits = logits_at(model, batch, embeddings)
    return F.cross_entropy(logits, batch["labels"], reduction="none")


def free(batch):
    ids = batch["input_ids"]
    return ((ids > 2) & (batch["attention_mask"] == 1)).double().unsqueeze(2)


def slope(model, batch, change):
    """∇ of each document's loss at its embeddings plus ``change``."""
    change = change.clone().requires_grad_()
    losses = losses_at(model, batch, embed(model, batch) + change)
    return torch.autograd.grad(losses.sum(), change)[0] * free(batch)


def normalised(x):
    return x / x.flatten(1).norm(dim=1)[:, None, None]


def zeros(model, batch):
    return torch.zeros_like(embed(model, batch)).detach()


def flat(model, scalar):
    """∇ of a scalar over all weights, one vector."""
    return torch.cat([
        (torch.zeros_like(w) if g is None else g).flatten()
        for w, g in zip(model.parameters(),
                        torch.autograd.grad(scalar, list(model.parameters()), allow_unused=True),
                        strict=True)
    ])  # fmt: skip


def same(left, right, tolerance=1e-10):
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def test_no_regularizer_is_the_loss(model, batch):
    loss, gradient = found(model, cut(batch, 2, 4))
    expected = F.cross_entropy(logits_at(model, batch, embed(model, batch)), batch["labels"])
    same(loss, expected.detach())
    same(gradient, flat(model, expected))


def test_fgm(model, batch):
    r = 0.7 * normalised(slope(model, batch, zeros(model, batch)))
    e = embed(model, batch)
    expected = losses_at(model, batch, e).mean() + 0.5 * losses_at(model, batch, e + r).mean()
    loss, gradient = found(model, batch, FGM(epsilon=0.7, weight=0.5))
    same(gradient, flat(model, expected))
    same(loss, losses_at(model, batch, e).mean().detach())


@pytest.mark.parametrize("epsilon", [0.6, 5.0])  # with and without a projection
def test_pgd(model, batch, epsilon):
    r = zeros(model, batch)
    for _ in range(3):
        r = r + 0.4 * normalised(slope(model, batch, r))
        length = r.flatten(1).norm(dim=1)[:, None, None]
        r = torch.where(length > epsilon, r * epsilon / length, r)
    e = embed(model, batch)
    expected = losses_at(model, batch, e).mean() + losses_at(model, batch, e + r).mean()
    chosen = PGD(epsilon=epsilon, step_size=0.4, steps=3)
    same(found(model, batch, chosen)[1], flat(model, expected))


def test_pgd_of_one_long_step_is_fgm(model, batch):
    _, fgm = found(model, batch, FGM(epsilon=0.3))
    same(found(model, batch, PGD(epsilon=0.3, step_size=2.0, steps=1))[1], fgm)


@pytest.mark.parametrize("epsilon", [0.6, 5.0])
def test_freelb(model, batch, epsilon):
    e, r, total = embed(model, batch), zeros(model, batch), 0.0
    for _ in range(3):
        total = total + losses_at(model, batch, e + r).mean() / 3
        r = r + 0.4 * normalised(slope(model, batch, r))
        length = r.flatten(1).norm(dim=1)[:, None, None]
        r = torch.where(length > epsilon, r * epsilon / length, r)
    chosen = FreeLB(epsilon=epsilon, step_size=0.4, steps=3)
    loss, gradient = found(model, batch, chosen)
    same(gradient, flat(model, total))
    same(loss, losses_at(model, batch, e).mean().detach())


def huber(length, delta):
    return torch.where(length <= delta, length**2, 2 * delta * length - delta**2)


@pytest.mark.parametrize("delta", [1e9, 2.0], ids=["squares", "huber"])
def test_input_gradient_penalty(model, batch, delta):
    def penalised():
        change = zeros(model, batch).requires_grad_()
        losses = losses_at(model, batch, embed(model, batch) + change)
        (g,) = torch.autograd.grad(losses.sum(), change, create_graph=True)
        length = (g * free(batch)).flatten(1).norm(dim=1)
        assert length.min() < delta
        assert length.max() > delta or delta == 1e9
        return losses.mean() + 0.3 * huber(length, delta).mean()

    expected = flat(model, penalised())
    plain = flat(model, losses_at(model, batch, embed(model, batch)).mean())
    exact = InputGradientPenalty(weight=0.3, method="double-backward", delta=delta)
    same(found(model, batch, exact)[1], expected)
    errors = []
    for epsilon in (1e-2, 1e-3):
        near = InputGradientPenalty(weight=0.3, epsilon=epsilon, delta=delta)
        errors.append((found(model, batch, near)[1] - expected).norm() / (expected - plain).norm())
    assert errors[0] < 0.1
    assert errors[1] < 0.15 * errors[0]  # of first order in ε


@pytest.mark.parametrize("delta", [1e9, 2.0], ids=["squares", "huber"])
def test_input_gradient_penalty_reports_its_objective(model, batch, delta):
    """By both methods, and cut into batches; so a flooding outside sees the same."""
    length = slope(model, batch, zeros(model, batch)).flatten(1).norm(dim=1)
    plain = losses_at(model, batch, embed(model, batch)).mean().detach()
    penalty = 0.3 * huber(length, delta).mean()
    assert penalty > 0.1 * plain
    exact = InputGradientPenalty(weight=0.3, method="double-backward", delta=delta)
    same(reported(model, cut(batch, 2, 4), exact), plain + penalty)
    errors = []
    for epsilon in (1e-2, 1e-3):
        near = InputGradientPenalty(weight=0.3, epsilon=epsilon, delta=delta)
        error = reported(model, cut(batch, 2, 4), near) - plain - penalty
        errors.append(float(error.abs() / penalty))
    assert errors[0] < 0.1
    assert errors[1] < 0.15 * errors[0]
    # Between the objective and that with twice the penalty, descent is right.
    chosen = InputGradientPenalty(weight=0.3, epsilon=1e-3, delta=delta)
    _, descent = found(model, batch, chosen)
    for level, sign in ((0.5, 1), (1.5, -1)):
        flooding = Flooding(float(plain + level * penalty))
        same(found(model, batch, chosen, flooding)[1], sign * descent)


def test_all_others_report_their_objective_too(model, batch):
    e, parts = embed(model, batch), cut(batch, 2, 4)

    def at(r):
        return losses_at(model, batch, e + r).mean().detach()

    plain, zero = at(0.0), zeros(model, batch)
    r = 0.4 * normalised(slope(model, batch, zero))
    same(reported(model, parts, FGM(epsilon=0.4, weight=0.5)), plain + 0.5 * at(r))
    further = r + 0.4 * normalised(slope(model, batch, r))
    twice = {"epsilon": 5.0, "step_size": 0.4, "steps": 2}
    same(reported(model, parts, PGD(**twice, weight=0.5)), plain + 0.5 * at(further))
    same(reported(model, parts, FreeLB(**twice)), (plain + at(r)) / 2)
    same(reported(model, parts, RDrop(alpha=0.7)), plain)  # without dropout
    same(reported(model, parts, Flooding(9.0)), 18.0 - plain)
    gradient = flat(model, losses_at(model, batch, embed(model, batch)).mean())
    for method in METHODS:
        penalty = GradientPenalty(weight=0.2, method=method, warmup=0.0)
        same(reported(model, parts, penalty), plain + 0.2 * gradient.square().sum())
    place = (
        torch.nn.utils.parameters_to_vector(model.parameters()) + 0.3 * gradient / gradient.norm()
    )
    sharp = reported(model, parts, SAM(rho=0.3))
    torch.nn.utils.vector_to_parameters(place, model.parameters())
    same(sharp, losses_at(model, batch, embed(model, batch)).mean().detach())


def test_gradient_penalty(model, batch):
    weights = list(model.parameters())

    def penalised():
        loss = losses_at(model, batch, embed(model, batch)).mean()
        parts = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        return loss + 0.2 * sum(p.square().sum() for p in parts if p is not None)

    expected = flat(model, penalised())
    plain = flat(model, losses_at(model, batch, embed(model, batch)).mean())
    exact = GradientPenalty(weight=0.2, method="double-backward", warmup=0.0)
    same(found(model, cut(batch, 1, 5), exact)[1], expected)
    errors = []
    for epsilon in (1e-3, 1e-4):
        near = GradientPenalty(weight=0.2, epsilon=epsilon, warmup=0.0)
        errors.append((found(model, batch, near)[1] - expected).norm() / (expected - plain).norm())
    assert errors[0] < 0.1
    assert errors[1] < 0.15 * errors[0]


def test_a_long_gradient_does_not_lead_the_gradient_penalty_astray(model, batch):
    """The head of a probe on documents that are easy to tell apart has logits in the hundreds."""
    with torch.no_grad():
        model.classifier.weight *= 300
    _, plain = found(model, batch)
    chosen = [GradientPenalty(method=way, warmup=0.0) for way in METHODS]
    near, exact = (found(model, batch, penalty)[1] - plain for penalty in chosen)
    assert plain.norm() > 100 * LONGEST / chosen[0].epsilon
    assert (near - exact).norm() < 0.5 * exact.norm()  # all of it, were the step ε g


def test_double_backward_with_fused_attention(batch):
    fused, eager = (make_model(attn_implementation=way) for way in ("sdpa", "eager"))
    for chosen in (
        GradientPenalty(method="double-backward", warmup=0.0),
        InputGradientPenalty(method="double-backward"),
    ):
        same(found(fused, batch, chosen)[1], found(eager, batch, chosen)[1], 1e-8)


def test_the_penalty_warms_up(model, batch):
    _, plain = found(model, batch)
    late = GradientPenalty(weight=0.2, warmup=0.5)
    added = []
    for progress in (0.0, 0.25, 0.5, 0.9):
        late.set_progress(progress)
        added.append(found(model, batch, late)[1] - plain)
    assert added[0].norm() == 0
    same(2 * added[1], added[2])
    same(added[2], added[3])


def test_sam(model, batch):
    plain = flat(model, losses_at(model, batch, embed(model, batch)).mean())
    moved = make_model(attn_implementation="eager")
    place = torch.nn.utils.parameters_to_vector(moved.parameters()) + 0.3 * plain / plain.norm()
    torch.nn.utils.vector_to_parameters(place, moved.parameters())
    expected = flat(moved, losses_at(moved, batch, embed(moved, batch)).mean())
    loss, gradient = found(model, cut(batch, 3, 3), SAM(rho=0.3))
    same(gradient, expected)
    same(loss, losses_at(model, batch, embed(model, batch)).mean().detach())


def test_sam_with_a_part_of_the_documents_uphill(model, batch):
    part = {name: value[[0, 3]] for name, value in batch.items()}
    uphill = flat(model, losses_at(model, part, embed(model, part)).mean())
    moved = make_model(attn_implementation="eager")
    place = torch.nn.utils.parameters_to_vector(moved.parameters()) + 0.3 * uphill / uphill.norm()
    torch.nn.utils.vector_to_parameters(place, moved.parameters())
    expected = flat(moved, losses_at(moved, batch, embed(moved, batch)).mean())
    loss, gradient = found(model, batch, SAM(rho=0.3, fraction=1 / 3))
    same(gradient, expected)
    same(loss, losses_at(model, part, embed(model, part)).mean().detach())


@pytest.mark.parametrize("level", [0.2, 9.0])
def test_flooding(model, batch, level):
    loss = losses_at(model, batch, embed(model, batch)).mean()
    expected = flat(model, (loss - level).abs() + level)
    same(found(model, cut(batch, 4, 2), Flooding(level))[1], expected)


def test_flooding_of_each_document(model, batch):
    losses = losses_at(model, batch, embed(model, batch))
    level = float(losses.detach().median())
    expected = flat(model, ((losses - level).abs() + level).mean())
    same(found(model, batch, Flooding(level, per_example=True))[1], expected)


def test_flooding_is_of_what_the_others_make_of_the_loss(model, batch):
    r = normalised(slope(model, batch, zeros(model, batch)))
    e = embed(model, batch)
    total = losses_at(model, batch, e).mean() + losses_at(model, batch, e + r).mean()
    level = 0.9 * float(total)  # above the plain loss, below the sum
    expected = flat(model, (total - level).abs() + level)
    same(found(model, batch, FGM(epsilon=1.0), Flooding(level))[1], expected)


def test_r_drop(batch):
    model = make_model(dropout=0.3)
    torch.manual_seed(5)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    first, second = model(**inputs).logits, model(**inputs).logits
    p, q = first.log_softmax(1), second.log_softmax(1)
    both = [F.kl_div(q, p, reduction="batchmean", log_target=True),
            F.kl_div(p, q, reduction="batchmean", log_target=True)]  # fmt: skip
    losses = [F.cross_entropy(logits, batch["labels"]) for logits in (first, second)]
    expected = flat(model, sum(losses) / 2 + 0.7 * sum(both) / 2)
    torch.manual_seed(5)
    loss, gradient = found(model, batch, RDrop(alpha=0.7))
    same(gradient, expected)
    same(loss, (sum(losses) / 2).detach())


def test_vat_moves_where_predictions_change_most(model, batch):
    """The direction of many power steps is the first eigenvector of the divergence's Hessian."""
    one = {name: value[:1] for name, value in batch.items()}
    place = free(one).expand_as(embed(model, one)).bool()
    e = embed(model, one).detach()
    logits = logits_at(model, one, e).detach()

    def apart(values):
        change = torch.zeros_like(e).masked_scatter(place, values)
        return divergence(logits, logits_at(model, one, e + change)).sum()

    hessian = torch.autograd.functional.hessian(apart, torch.zeros(int(place.sum())).double())
    size, vectors = torch.linalg.eigh(hessian)
    assert size[-1] > 1.2 * size[-2], "the power iteration must be able to tell them apart"
    change = torch.zeros_like(e).masked_scatter(place, vectors[:, -1])
    sign = [flat(model, losses_at(model, one, embed(model, one)).mean()
                 + divergence(logits, logits_at(model, one, embed(model, one) + s * 0.01 * change)
                              ).mean()) for s in (1, -1)]  # fmt: skip
    chosen = VAT(epsilon=0.01, power_steps=60, xi=0.01)
    torch.manual_seed(0)
    _, gradient = found(model, one, chosen)
    plain = flat(model, losses_at(model, one, embed(model, one)).mean())
    nearest = min((gradient - g).norm() for g in sign)
    assert nearest < 0.02 * (gradient - plain).norm()
    torch.manual_seed(0)
    added = reported(model, one, chosen) - losses_at(model, one, e).mean().detach()
    ends = [apart(sign * 0.01 * vectors[:, -1]) for sign in (1, -1)]
    assert min(abs(added - end) for end in ends) < 0.02 * max(ends)


@pytest.mark.parametrize("multi_label", [False, True])
def test_divergence(multi_label):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    if multi_label:
        p, q = a.sigmoid(), b.sigmoid()
        expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1)
    else:
        p, q = a.softmax(1), b.softmax(1)
        expected = (p * (p / q).log()).sum(1)
    same(divergence(a, b, multi_label=multi_label), expected)
    same(divergence(a, a, multi_label=multi_label), torch.zeros(5).double())
    extreme = torch.tensor([[300.0, -300.0]])
    assert divergence(extreme, -extreme, multi_label=multi_label).isfinite().all()


class Normalised(nn.Module):
    """A classifier whose pooled vectors go through batch norm."""

    def __init__(self):
        super().__init__()
        self.bert = make_model()
        self.norm = nn.BatchNorm1d(self.bert.config.hidden_size).double()
        self.bert.classifier = nn.Sequential(self.norm, self.bert.classifier)
        self.config = self.bert.config

    def get_input_embeddings(self):
        return self.bert.get_input_embeddings()

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None):
        return self.bert(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds
        )


@pytest.mark.parametrize("name", list(REGULARIZERS))
def test_batch_norm_gathers_each_batch_once(batch, name):
    """Passes at changed embeddings or weights are of this step, and not of the training."""
    norms = []
    for options in ([], [name]):
        model = Normalised().train()
        regularizers = build_regularizers(options)
        regularized_backward(model, cut(batch, 2, 2), CrossEntropyLoss(), regularizers)
        norms.append(model.norm)
        assert model.norm.track_running_stats
    plain, regularized = norms
    assert regularized.num_batches_tracked == plain.num_batches_tracked == 2
    if name not in ("pgd", "freelb", "sam"):  # whose first pass is not at the documents themselves
        torch.testing.assert_close(regularized.running_mean, plain.running_mean)


def test_a_part_takes_along_what_is_not_of_single_documents(model, batch):
    """Positions (1, n), the same for all, in SAM's half of the documents."""
    n = batch["input_ids"].shape[1]
    _, without = found(model, batch, SAM(fraction=0.5))
    shared = {**batch, "position_ids": torch.arange(n)[None]}
    torch.testing.assert_close(found(model, shared, SAM(fraction=0.5))[1], without)
