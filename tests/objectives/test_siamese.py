"""SimSiam, BYOL and SimCLR: the papers' steps, what learns and what does not, on any encoder."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_model, save_model
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional

import longarc
from longarc.errors import DataError, ModelError, OptionError
from longarc.objectives.siamese.heads import prediction_head, projection_head
from longarc.objectives.siamese.parameter_groups import parameter_groups, rate_schedule

BYOL, SimCLR, SimSiam = longarc.BYOL, longarc.SimCLR, longarc.SimSiam


def build(kind=SimSiam, norm="layer", dropout=0.0, **options):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout))
    heads = [projection_head(8, 16, norm=norm)]
    if kind is not SimCLR:
        heads.append(prediction_head(16, norm=norm))
    return kind(encoder, *heads, **options).double()


def views(b=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(b, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, b, 5, generator=generator, dtype=torch.float64)
    return list(rows + 0.3 * noise)


def gradients(objective, *batch):
    objective.zero_grad()
    loss = objective(*batch).loss
    loss.backward()
    named = {n: w.grad.clone() for n, w in objective.named_parameters() if w.grad is not None}
    return loss.detach(), named


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_simsiam_is_the_papers_algorithm(norm):
    """Chen & He's pseudocode, line by line."""
    objective, (x1, x2) = build(norm=norm), views()
    loss, found = gradients(objective, x1, x2)

    def f(x):
        return objective.projector(objective.encoder(x))

    def d(p, z):
        z = z.detach()
        p = p / p.norm(dim=1, keepdim=True)
        z = z / z.norm(dim=1, keepdim=True)
        return -(p * z).sum(dim=1).mean()

    objective.zero_grad()
    z1, z2 = f(x1), f(x2)
    p1, p2 = objective.predictor(z1), objective.predictor(z2)
    expected = d(p1, z2) / 2 + d(p2, z1) / 2
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    assert len(found) >= 10
    for name, weight in objective.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, msg=name)


def test_simclr_gives_its_loss_of_the_projections():
    objective, batch = build(SimCLR, temperature=0.2), views()
    result = objective(*batch)
    rows = functional.normalize(result.projections.flatten(0, 1))
    scores = (rows @ rows.T / 0.2).fill_diagonal_(-torch.inf)
    partner = torch.arange(24).roll(12)
    torch.testing.assert_close(result.loss, functional.cross_entropy(scores, partner))
    assert not result.codes.requires_grad
    torch.testing.assert_close(result.codes[1], objective.encoder(batch[1]).detach())


def test_dropout_views_are_simcse():
    """The same input twice, with an encoder that draws: views differ, and agree in evaluation."""
    simcse = build(SimCLR, dropout=0.2, temperature=0.05, negatives="other")
    x = views()[0]
    codes = simcse(x, x).codes
    assert not torch.equal(codes[0], codes[1])
    codes = simcse.eval()(x, x).codes
    assert torch.equal(codes[0], codes[1])


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(SimSiam, {}), (SimSiam, {"stop_gradient": False}), (SimSiam, {"target": "mean"}), (BYOL, {}),
     (BYOL, {"target": "mean"}), (SimCLR, {})],
)  # fmt: skip
def test_views_and_examples_have_no_order(kind, options, norm):
    objective, (first, second) = build(kind, norm, **options), views()
    expected = gradients(objective, first, second)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for batch in ((second, first), (first[order], second[order])):
        torch.testing.assert_close(gradients(objective, *batch), expected)


class Watched(nn.Module):
    """An encoder of dictionaries with a number of its own for what comes as the mean view."""

    def __init__(self, inside):
        super().__init__()
        self.inside, self.mean = inside, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, view):
        return self.inside(view["x"] * self.mean if view["is_mean"] else view["x"])


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_stop_gradient_stops(stop_gradient):
    objective = build(target="mean", stop_gradient=stop_gradient)
    objective.encoder = Watched(objective.encoder)
    first, second = views()
    batch = [{"x": x, "is_mean": m} for x, m in ((first, 0), (second, 0), (first + second, 1))]
    _, found = gradients(objective, *batch)
    assert ("encoder.mean" in found) != stop_gradient
    assert float(found["encoder.inside.0.weight"].norm()) > 1e-4


def test_a_target_that_is_stopped_keeps_nothing():
    """Its activations would be half as many again, for nothing."""
    objective, kept = build(target="mean"), []

    def bytes_kept(*views):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: (kept.append(x.nbytes), x)[1], lambda x: x
        ):
            objective(*views)
        return sum(kept)

    pair, stopped = views(), bytes_kept(*views())
    with torch.no_grad():
        middle = objective.project_target((pair[0] + pair[1]) / 2)
    objective.project_target = lambda _: middle
    assert stopped == bytes_kept(*pair)


def test_without_predictor_the_stop_gradient_halves_the_gradient():
    """As the paper's appendix says, which is why it does not help alone."""
    stopped, free = (build(stop_gradient=s) for s in (True, False))
    stopped.predictor = free.predictor = nn.Identity()
    one, other = (gradients(objective, *views())[1] for objective in (stopped, free))
    for name in one:
        torch.testing.assert_close(2 * one[name], other[name], msg=name)


def test_the_mean_view():
    first, second = views()
    objective = build(target="mean")
    given = objective(first, second, (first + second) / 2).loss
    torch.testing.assert_close(objective(first, second).loss, given)
    t = objective.projector(objective.encoder((first + second) / 2)).detach()
    h = [objective.predictor(objective.projector(objective.encoder(x))) for x in (first, second)]
    expected = -torch.stack([functional.cosine_similarity(p, t).mean() for p in h]).mean()
    torch.testing.assert_close(given, expected)
    assert (objective(first, second, first).loss - given).abs().item() > 1e-4


def test_another_distance():
    objective, (first, second) = build(distance=functional.mse_loss), views()
    z1, z2 = (objective.projector(objective.encoder(x)) for x in (first, second))
    p1, p2 = objective.predictor(z1), objective.predictor(z2)
    expected = ((p1 - z2).square().mean() + (p2 - z1).square().mean()) / 2
    torch.testing.assert_close(objective(first, second).loss, expected)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_byol_without_memory_is_simsiam(norm):
    """Ten steps of both end at the same weights; with memory they do not."""

    def train(objective):
        optimizer = torch.optim.SGD(parameter_groups(objective, 0.2), momentum=0.9)
        for step in range(10):
            optimizer.zero_grad()
            objective(*views(seed=step)).loss.backward()
            optimizer.step()
            if isinstance(objective, BYOL):
                objective.update_target(step / 10)
        return torch.cat([w.flatten() for w in objective.predictor.parameters()]).detach()

    simsiam = train(build(norm=norm))
    byol = train(build(BYOL, norm, decay=0.0, schedule="constant"))
    torch.testing.assert_close(byol, simsiam, rtol=1e-10, atol=1e-12)
    slow = train(build(BYOL, norm, decay=0.9))
    assert float((slow - simsiam).norm()) > 1e-3


def test_byols_target_follows_and_learns_nothing():
    objective = build(BYOL, decay=0.9, schedule="cosine")
    _, found = gradients(objective, *views())
    assert not any(name.startswith("average") for name in found)
    before = copy.deepcopy(objective.average.network[0][0].weight)
    with torch.no_grad():
        objective.encoder[0].weight.add_(1.0)
    assert objective.update_target(0.5) == pytest.approx(0.95)
    torch.testing.assert_close(objective.average.network[0][0].weight, before + 0.05)
    with torch.no_grad():  # in chunks too
        expected = objective.project_target(views()[0])
        objective.chunk = 5
        torch.testing.assert_close(objective.project_target(views()[0]), expected)


def test_a_fixed_random_predictor_stays():
    objective = build()
    objective.predictor.requires_grad_(False)
    before = copy.deepcopy(objective.predictor.state_dict())
    (group,) = parameter_groups(objective, 0.1)
    optimizer = torch.optim.SGD([group])
    loss, found = gradients(objective, *views())
    optimizer.step()
    torch.testing.assert_close(objective.predictor.state_dict(), before)
    assert float(found["encoder.0.weight"].norm()) > 0  # the gradient goes through it
    assert float(objective(*views()).loss) != pytest.approx(float(loss), abs=1e-6)


def test_learning_rates():
    objective = build(BYOL)
    groups = parameter_groups(objective, 0.2, predictor_factor=10, fixed_predictor_rate=True)
    assert [group["lr"] for group in groups] == [0.2, 2.0]
    learning = [w for w in objective.parameters() if w.requires_grad]
    grouped = [w for group in groups for w in group["params"]]
    assert {id(w) for w in grouped} == {id(w) for w in learning}
    assert len(grouped) == len(learning)
    assert [id(w) for w in groups[1]["params"]] == [id(w) for w in objective.predictor.parameters()]
    optimizer = torch.optim.SGD(groups)
    schedule = rate_schedule(optimizer, lambda step: 1 / (1 + step))
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.05), 2.0]
    for factor, objective in ((2, build(SimCLR)), (2, SimSiam(nn.Linear(2, 2)))):
        with pytest.raises(OptionError, match=f"This {type(objective).__name__} has no predictor"):
            parameter_groups(objective, 0.1, predictor_factor=factor)
    assert [len(g["params"]) for g in parameter_groups(SimSiam(nn.Linear(2, 2)), 0.1)] == [2]


@pytest.mark.parametrize("kind", [SimSiam, BYOL, SimCLR])
def test_what_is_saved_is_all(kind, tmp_path):
    """The target of BYOL too, and the statistics of batch normalisation."""
    objective, batch = build(kind, "batch"), views()
    optimizer = torch.optim.SGD(parameter_groups(objective, 0.5))
    for _ in range(3):
        gradients(objective, *batch)
        optimizer.step()
        if kind is BYOL:
            objective.update_target()
    save_model(objective, str(tmp_path / "objective.safetensors"))
    torch.manual_seed(9)
    other = build(kind, "batch")
    assert float(other(*batch).loss) != pytest.approx(float(objective(*batch).loss), abs=1e-6)
    load_model(other, str(tmp_path / "objective.safetensors"))
    for mode in (True, False):
        objective.train(mode)
        other.train(mode)
        found, expected = (gradients(o, *batch) for o in (other, objective))
        torch.testing.assert_close(found, expected)
        load_model(other, str(tmp_path / "objective.safetensors"))
        load_model(objective, str(tmp_path / "objective.safetensors"))


@pytest.mark.parametrize("kind", [SimSiam, BYOL, SimCLR])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_autocast(kind, norm):
    objective, batch = build(kind, norm).float(), [x.float() for x in views()]
    exact, expected = gradients(objective, *batch)
    objective.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        result = objective(*batch)
    assert result.loss.dtype == torch.float32
    assert result.codes.dtype == torch.bfloat16 or kind is not SimSiam
    result.loss.backward()
    assert float(result.loss) == pytest.approx(float(exact), abs=0.03)
    found = torch.cat([w.grad.flatten() for w in objective.parameters() if w.grad is not None])
    exactly = torch.cat([grad.flatten() for grad in expected.values()])
    assert functional.cosine_similarity(found, exactly, dim=0) > 0.95


def test_data_parallel(tmp_path):
    """Wrapped as for several processes, the same gradients; frozen weights are no matter."""
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for kind in (SimSiam, BYOL, SimCLR):
            objective = build(kind, chunk=5)
            expected = gradients(objective, *views())
            parallel = nn.parallel.DistributedDataParallel(objective)
            objective.zero_grad()
            loss = parallel(*views()).loss
            loss.backward()
            found = {n: w.grad for n, w in objective.named_parameters() if w.grad is not None}
            torch.testing.assert_close((loss.detach(), found), expected)
    finally:
        distributed.destroy_process_group()


def test_halves_of_a_batch_give_its_gradient():
    """Two processes with layer normalisation: the mean of their gradients is the whole batch's."""
    objective, batch = build(), views()
    _, whole = gradients(objective, *batch)
    halves = [
        gradients(objective, *(x[rows] for x in batch))[1] for rows in (slice(6), slice(6, 12))
    ]
    for name in whole:
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, whole[name], msg=name)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: SimSiam(nn.Linear(2, 2), target="mena"), OptionError, "no target 'mena'. Did you"),
        (lambda: SimSiam(nn.Linear(2, 2), stop_gradient=1), OptionError, "True or False; found 1"),
        (lambda: BYOL(nn.Linear(2, 2), decay=1.1), OptionError, "decay must be a finite number"),
        (lambda: SimCLR(nn.Linear(2, 2), temperature=0.0), OptionError, "must be above 0"),
        (lambda: SimCLR(nn.Linear(5, 2).double())(views(1)[0], views(1)[0]), DataError,
         "A batch of 1 has no negatives"),
        (lambda: build()(views()[0], views(11)[0]), DataError,
         r"codes of shapes \(12, 8\) and \(11, 8\); expected the same examples in both"),
        (lambda: build()(*views(), views()[0]), OptionError, 'the target is not "mean"'),
        (lambda: SimSiam(nn.LSTM(5, 4).double())(*views()), ModelError,
         r"returned a tuple; expected codes \(b, d\), one vector an example"),
        (lambda: SimSiam(nn.Unflatten(1, (5, 1)))(*views()), ModelError,
         r"returned a Tensor of shape \(12, 5, 1\); expected codes \(b, d\)"),
    ],
)  # fmt: skip
def test_what_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_mean_view_that_cannot_be_made():
    objective = SimSiam(nn.Embedding(5, 4), target="mean")
    objective.encoder.forward = lambda ids: objective.encoder.weight[ids]
    ids = torch.tensor([1, 2])
    with pytest.raises(OptionError, match=r"third argument.*a tensor \(2,\) of torch.int64 and"):
        objective(ids, ids)


def train(objective, batches, rate):
    optimizer = torch.optim.SGD(parameter_groups(objective, rate), momentum=0.9)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = objective(*batch).loss
        loss.backward()
        optimizer.step()
        if isinstance(objective, BYOL):
            objective.update_target(len(losses) / len(batches))
        losses.append(loss.item())
    return losses


def spread(codes):
    """Mean standard deviation of the normalised codes' numbers, times √d: 1 if even, 0 if alike."""
    return float(functional.normalize(codes).std(0).mean() * codes.shape[1] ** 0.5)


HEADS = {
    "simsiam": lambda: SimSiam(cnn(), projection_head(32), prediction_head(32)),
    "byol": lambda: BYOL(cnn(), projection_head(32), prediction_head(32), decay=0.9),
    "simclr": lambda: SimCLR(cnn(), projection_head(32, layers=2, last_norm=False)),
    "no-stop-gradient": lambda: SimSiam(
        cnn(), projection_head(32, last_norm=False), prediction_head(32), stop_gradient=False
    ),
}  # fmt: skip


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 32),
    )  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_vision_encoder(name):
    """A CNN on handwritten digits, moved and with noise; it dies without stop-gradient."""
    data = load_digits()
    images = torch.tensor(data.images[:, None] / 8 - 1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)

    def transformed(rows):
        by = torch.randint(-1, 2, (2,), generator=generator).tolist()
        noise = torch.randn(rows.shape, generator=generator)
        return rows.roll(by, (2, 3)) + 0.3 * noise

    picks = [torch.randint(0, 1200, (64,), generator=generator) for _ in range(80)]
    batches = [[transformed(images[rows]) for _ in range(2)] for rows in picks]
    pair = [transformed(images[1200:]) for _ in range(2)]
    objective = HEADS[name]()
    before = found_again(objective.encoder, *pair)
    losses = train(objective, batches, 0.1)
    assert losses[-1] < losses[0]
    objective.eval()
    with torch.no_grad():
        projections = objective.projector(objective.encoder(images[1200:]))
    if name == "no-stop-gradient":
        assert spread(projections) < 0.1
    else:
        assert spread(projections) > 0.5
        assert found_again(objective.encoder, *pair) > 2 * before


@torch.no_grad()
def found_again(encoder, first, second):
    """Share of held-out examples whose nearest code among all other views is their own."""
    centred = (encoder(view) - encoder(view).mean(0) for view in (first, second))
    one, other = map(functional.normalize, centred)
    return float(((one @ other.T).argmax(1) == torch.arange(len(first))).float().mean())


def test_a_tabular_encoder():
    """Two tensors of a table's row, numbers and a category; columns are blanked at random."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.category = nn.Embedding(3, 4)
            self.mlp = nn.Sequential(nn.Linear(34, 64), nn.ReLU(), nn.Linear(64, 16))

        def forward(self, view):
            numbers, category = view
            return self.mlp(torch.cat([numbers, self.category(category)], dim=1))

    data = load_breast_cancer()
    table = torch.tensor(data.data, dtype=torch.float32)
    table = (table - table.mean(0)) / table.std(0)
    category = torch.bucketize(table[:, 0].contiguous(), torch.tensor([-0.5, 0.5]))
    generator = torch.Generator().manual_seed(0)

    def blanked(rows):
        kept = torch.rand(len(rows), 30, generator=generator) > 0.3
        return table[rows] * kept, category[rows]

    torch.manual_seed(0)
    objective = SimSiam(Rows(), projection_head(16), prediction_head(16), chunk=32)
    picks = [torch.randint(0, 400, (64,), generator=generator) for _ in range(60)]
    losses = train(objective, [(blanked(rows), blanked(rows)) for rows in picks], 0.05)
    assert losses[-1] < losses[0] - 0.1
    with torch.no_grad():
        codes = objective.encoder((table, category))
    knn = KNeighborsClassifier().fit(codes[:400], data.target[:400])
    assert knn.score(codes[400:], data.target[400:]) > 0.85


def test_the_short_names():
    for name in ("SimSiam", "BYOL", "SimCLR"):
        assert name in dir(longarc)
        assert getattr(longarc, name).__name__ == name
