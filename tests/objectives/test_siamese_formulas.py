"""The parts of the Siamese objectives against their authors' formulas, in plain float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from longarc.errors import DataError, ModelError, OptionError
from longarc.objectives.siamese.ema import EMATarget, scheduled_decay
from longarc.objectives.siamese.heads import prediction_head, projection_head
from longarc.objectives.siamese.info_nce import info_nce
from longarc.objectives.siamese.negative_cosine import negative_cosine


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def nt_xent(first, second, temperature):
    """SimCLR's eq. 1 for every ordered pair of positives, and algorithm 1's mean over them."""
    rows = [*first.tolist(), *second.tolist()]
    b = len(first)
    losses = []
    for i in range(2 * b):
        j = (i + b) % (2 * b)
        scores = [math.exp(cosine(rows[i], rows[k]) / temperature) for k in range(2 * b) if k != i]
        losses.append(-math.log(math.exp(cosine(rows[i], rows[j]) / temperature) / sum(scores)))
    return sum(losses) / (2 * b)


def simcse(first, second, temperature):
    """SimCSE's eq. 1."""
    one, other = first.tolist(), second.tolist()
    losses = []
    for i in range(len(one)):
        scores = [math.exp(cosine(one[i], row) / temperature) for row in other]
        losses.append(-math.log(scores[i] / sum(scores)))
    return sum(losses) / len(one)


TEXTBOOK = {"both": nt_xent, "other": simcse}


@pytest.mark.parametrize("negatives", TEXTBOOK)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("b", [2, 5])
def test_info_nce_is_the_papers(negatives, temperature, b):
    first, second = draw(b, 4), draw(b, 4, seed=1)
    expected = TEXTBOOK[negatives](first, second, temperature)
    found = info_nce(first, second, temperature=temperature, negatives=negatives)
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("negatives", TEXTBOOK)
def test_info_nce_gradients(negatives):
    first, second = (draw(3, 4, seed=s).requires_grad_() for s in (0, 1))
    assert torch.autograd.gradcheck(
        lambda a, b: info_nce(a, b, temperature=0.3, negatives=negatives), (first, second)
    )


@pytest.mark.parametrize("negatives", TEXTBOOK)
def test_info_nce_knows_no_order(negatives):
    first, second = draw(6, 4), draw(6, 4, seed=1)
    loss = info_nce(first, second, negatives=negatives)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(info_nce(first[order], second[order], negatives=negatives), loss)
    scaled = info_nce(3.0 * first, 0.1 * second, negatives=negatives)
    torch.testing.assert_close(scaled, loss)
    swapped = info_nce(second, first, negatives=negatives)
    assert torch.allclose(swapped, loss) == (negatives == "both")


def test_temperature_limits():
    """τ → ∞: all alike; τ → 0: τ · loss is how far the best negative is ahead, if it is."""
    first, second = draw(6, 4), draw(6, 4, seed=1)
    hot = info_nce(first, second, temperature=1e9)
    assert float(hot) == pytest.approx(math.log(2 * 6 - 1), rel=1e-8)
    hot = info_nce(first, second, temperature=1e9, negatives="other")
    assert float(hot) == pytest.approx(math.log(6), rel=1e-8)
    unit = nn.functional.normalize
    scores = unit(first) @ unit(second).T
    behind = (scores.max(1).values - scores.diagonal()).mean()
    assert float(behind) > 0.1
    cold = info_nce(first, second, temperature=1e-5, negatives="other") * 1e-5
    torch.testing.assert_close(cold, behind, rtol=1e-4, atol=0)


def test_half_precision_is_computed_in_float32():
    first, second = draw(8, 16).bfloat16(), draw(8, 16, seed=1).bfloat16()
    for loss in (negative_cosine, info_nce):
        found = loss(first, second)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), loss(first.double(), second.double()))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(loss(first.float(), second.float()), found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"temperature must be above 0"),
        ({"temperature": -1}, r"temperature must be a finite number, at least 0; found -1"),
        ({"negatives": "all"}, r"no negatives 'all'\. .*Known: both, other"),
    ],
)
def test_info_nce_options(options, message):
    with pytest.raises(OptionError, match=message):
        info_nce(draw(2, 3), draw(2, 3), **options)


def test_info_nce_refuses_what_has_no_negatives():
    with pytest.raises(DataError, match=r"A batch of 1 has no negatives.*Leave the last batch out"):
        info_nce(draw(1, 3), draw(1, 3))
    with pytest.raises(DataError, match=r"shapes \(2, 3\) and \(3, 3\); expected \(b, p\) twice"):
        info_nce(draw(2, 3), draw(3, 3))


def test_negative_cosine_is_the_papers():
    prediction, target = draw(5, 4), draw(5, 4, seed=1)
    expected = -sum(map(cosine, prediction.tolist(), target.tolist())) / 5
    assert float(negative_cosine(prediction, target)) == pytest.approx(expected, rel=1e-12)
    # BYOL's eq. 2, which its own text says is 2 − 2 cos.
    unit = nn.functional.normalize
    byol = (unit(prediction) - unit(target)).square().sum(1).mean()
    torch.testing.assert_close(2 + 2 * negative_cosine(prediction, target), byol)


def test_negative_cosine_gradients():
    pair = [draw(3, 4, seed=s).requires_grad_() for s in (0, 1)]
    assert torch.autograd.gradcheck(negative_cosine, pair)
    zero = torch.zeros(2, 4, requires_grad=True)
    negative_cosine(zero, draw(2, 4, dtype=torch.float32)).backward()
    assert zero.grad.isfinite().all()


def test_the_papers_heads():
    """Widths and norms of the published code: linear-BN-ReLU twice, linear-BN without weights."""
    head = projection_head(2048)
    assert [type(part).__name__ for part in head] == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d",
    ]  # fmt: skip
    assert {part.weight.shape for part in head if isinstance(part, nn.Linear)} == {(2048, 2048)}
    assert [part.affine for part in head if isinstance(part, nn.BatchNorm1d)] == [True, True, False]
    predictor = prediction_head(2048)
    assert [tuple(part.weight.shape) for part in predictor if isinstance(part, nn.Linear)] == [
        (512, 2048),
        (2048, 512),
    ]
    assert isinstance(predictor[-1], nn.Linear)
    byol = projection_head(2048, 256, hidden=4096, layers=2, last_norm=False)
    assert [tuple(part.weight.shape) for part in byol if isinstance(part, nn.Linear)] == [
        (4096, 2048),
        (256, 4096),
    ]
    assert byol[-1].bias is not None


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_norms(norm):
    torch.manual_seed(0)
    rows = draw(32, 6, dtype=torch.float32)
    head = projection_head(6, 10, hidden=7, norm=norm)
    z = head(rows)
    assert z.shape == (32, 10)
    if norm == "batch":
        torch.testing.assert_close(z.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    if norm == "layer":
        torch.testing.assert_close(z.mean(1), torch.zeros(32), atol=1e-5, rtol=0)
    if norm != "batch":  # an example's projection is its own
        torch.testing.assert_close(head(rows[:1]), z[:1])
    assert prediction_head(10, norm=norm)(z).shape == (32, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: projection_head(0), "dim must be a whole number, at least 1"),
        (lambda: projection_head(4, layers=0), "layers must be a whole number, at least 1"),
        (lambda: projection_head(4, norm="bach"), "no norm 'bach'. Did you mean batch"),
        (lambda: prediction_head(4, hidden=0), "hidden must be a whole number"),
        (lambda: prediction_head(4, hidden=1, norm="layer"), "of a width of 1 gives 0"),
    ],
)
def test_heads_that_cannot_be(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_the_average_is_that_of_the_history():
    """ξ_t = τ^t θ_0 + (1 − τ) Σ_s τ^{t−s} θ_s."""
    network = nn.Linear(3, 2, dtype=torch.float64)
    target, history, decay = EMATarget(network), [network.weight.detach().clone()], 0.7
    for step in range(4):
        with torch.no_grad():
            network.weight.add_(draw(2, 3, seed=step))
        history.append(network.weight.detach().clone())
        target.update(network, decay)
    expected = decay**4 * history[0]
    expected = expected + sum((1 - decay) * decay ** (4 - s) * history[s] for s in range(1, 5))
    torch.testing.assert_close(target.network.weight.detach(), expected)
    assert not any(weight.requires_grad for weight in target.parameters())
    assert not target(draw(1, 3).requires_grad_()).requires_grad
    target.update(network, 0.0)
    torch.testing.assert_close(target.network.weight.detach(), history[-1])


def test_schedules():
    assert scheduled_decay(0.99, "constant", 0.3) == 0.99
    for progress in (0.0, 0.25, 0.5, 1.0):
        expected = 1 - 0.01 * (math.cos(math.pi * progress) + 1) / 2
        assert scheduled_decay(0.99, "cosine", progress) == pytest.approx(expected)
    with pytest.raises(OptionError, match="progress must be a finite number"):
        scheduled_decay(0.99, "cosine", 1.5)
    with pytest.raises(OptionError, match=r"no schedule 'cosin'\. Did you mean cosine"):
        scheduled_decay(0.99, "cosin", 0.5)


def test_weights_that_would_stand_still_are_refused():
    network = nn.Linear(2, 2).bfloat16()
    with pytest.raises(ModelError, match=r"torch.bfloat16 would stand still.*in float32"):
        EMATarget(network).update(network, 0.996)
