"""How sure a head starts: against temperature scaling, a line search, and real documents."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import longarc
from longarc.objectives.losses.binary_cross_entropy import BinaryCrossEntropyLoss
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.objectives.losses.registry import build_loss, loss_names
from longarc.training.probe import Probe
from longarc.training.probe_temperature import (
    FEWEST,
    FOLDS,
    LIMIT,
    cross_fitted_temperature,
    temperature,
)
from longarc.training.recipes.temperature import fit_temperature


def draw(classes=4, size=60, width=5, *, several=False, seed=0):
    """A probe and documents that it is too sure of."""
    generator = torch.Generator().manual_seed(seed)
    weight = 4 * torch.randn(classes, width, generator=generator)
    probe = Probe(weight, torch.randn(classes, generator=generator), 1e-4)
    features = torch.randn(size, width, generator=generator)
    logits = probe.logits(features) / 6
    noise = torch.rand(size, classes, generator=generator)
    if several:
        return probe, features, (logits.sigmoid() > noise).long()
    return probe, features, (logits - (-noise.log()).log()).argmax(dim=1)


@pytest.mark.parametrize("several", [False, True])
def test_it_is_temperature_scaling(several):
    probe, features, target = draw(several=several)
    name = "binary-cross-entropy" if several else "cross-entropy"
    loss = build_loss(name, class_counts=[1] * 4, num_examples=60, multi_label=several)
    found = temperature(probe, features, target, loss)
    expected = fit_temperature(probe.logits(features).numpy(), target.numpy(), multi_label=several)
    assert 2 < expected < 20
    assert found == pytest.approx(expected, rel=1e-3)
    softened = probe.divided(found)
    torch.testing.assert_close(softened.logits(features), probe.logits(features) / found)
    assert softened.penalty == probe.penalty


@pytest.mark.parametrize(
    ("name", "several"), [(name, m) for m in (False, True) for name in loss_names(multi_label=m)]
)
def test_no_temperature_is_better_for_any_loss(name, several):
    probe, features, target = draw(seed=1, several=several)
    counts = target.sum(dim=0) if several else torch.bincount(target, minlength=4)
    loss = build_loss(name, class_counts=counts, num_examples=len(target), multi_label=several)
    found = temperature(probe, features, target, loss)
    assert 1 <= found <= LIMIT * 1.0001

    def reached(t):
        more = {"class_vectors": probe.weight / t} if loss.uses_class_vectors else {}
        return float(loss(probe.logits(features) / t, target, **more))

    loss.set_progress(1.0)
    least = min(reached(t) for t in np.geomspace(1, LIMIT, 200))
    assert reached(found) <= least + 5e-3 * abs(least)  # truncated losses jump


def test_a_probe_that_is_not_sure_enough_stays_as_it_is():
    probe, features, _ = draw()
    timid = probe.divided(50.0)
    assert temperature(timid, features, probe.logits(features).argmax(1), CrossEntropyLoss()) == 1


def test_documents_of_unknown_classes_do_not_count():
    probe, features, target = draw()
    some = torch.where(torch.arange(60) % 3 == 0, -1, target)
    found = temperature(probe, features, some, CrossEntropyLoss())
    kept = some >= 0
    assert found == temperature(probe, features[kept], target[kept], CrossEntropyLoss())
    assert temperature(probe, features, torch.full((60,), -1), CrossEntropyLoss()) == 1


def test_cross_fitting_against_scikit_learn():
    data = load_digits()
    x = data.data[:300]
    x = x[:, (x > 0).mean(axis=0) > 0.4].astype(np.float32)
    y, penalty = data.target[:300].copy(), 1e-2
    y[::5] = np.random.default_rng(0).integers(10, size=60)  # not all is to be believed
    part = np.random.default_rng(7).permutation(len(y)) % FOLDS
    expected = []
    for fold in range(FOLDS):
        rest = part != fold
        scaler = StandardScaler().fit(x[rest])
        model = LogisticRegression(C=1 / (penalty * rest.sum()), tol=1e-6, max_iter=5000)
        model.fit(scaler.transform(x[rest]), y[rest])
        logits = model.decision_function(scaler.transform(x[~rest]))
        expected.append(max(1.0, fit_temperature(logits, y[~rest])))
    found = cross_fitted_temperature(
        torch.from_numpy(x), torch.from_numpy(y), CrossEntropyLoss(), classes=10,
        penalty=penalty, seed=7,
    )  # fmt: skip
    assert max(expected) > 1.2
    assert found == pytest.approx(float(np.exp(np.mean(np.log(expected)))), rel=0.02)


def test_classes_of_one_document_say_nothing():
    x = torch.eye(6)
    options = {"classes": 6, "penalty": 1e-4}
    assert cross_fitted_temperature(x, torch.arange(6), CrossEntropyLoss(), **options) == 1
    assert (
        cross_fitted_temperature(x[:1], torch.zeros(1).long(), CrossEntropyLoss(), **options) == 1
    )


def test_labels_that_the_other_parts_lack_do_not_count():
    """Twenty labels of one document each: of the others one learns that they never occur."""
    _, features, target = draw(several=True, size=100)
    loss = BinaryCrossEntropyLoss()
    rare = torch.zeros(100, 20, dtype=torch.long)
    options = {"classes": 24, "penalty": 1e-3, "seed": 3}
    never = cross_fitted_temperature(features, torch.cat([target, rare], 1), loss, **options)
    rare[torch.arange(20), torch.arange(20)] = 1
    once = cross_fitted_temperature(features, torch.cat([target, rare], 1), loss, **options)
    assert once == pytest.approx(never, rel=0.1)


def test_a_schedule_counts_as_at_its_end_and_is_left_at_its_start():
    probe, features, target = draw()
    counts = torch.bincount(target, minlength=4)
    loss = build_loss(
        "ldam", options={"reweight_after": 0.5}, class_counts=counts, num_examples=len(target)
    )
    values = []
    for progress in (0.0, 1.0, 0.0):
        loss.set_progress(progress)
        values.append(float(loss(probe.logits(features), target)))
    assert values[0] != values[1]
    found = temperature(probe, features, target, loss)
    assert float(loss(probe.logits(features), target)) == values[2]
    loss.set_progress(1.0)
    below, there, above = (
        float(loss(probe.logits(features) / (part * found), target)) for part in (0.95, 1, 1.05)
    )
    assert there < min(below, above)


@pytest.mark.real
@pytest.mark.parametrize("fraction", [0.7, 0.3, 0.0])
def test_a_training_starts_as_sure_as_it_may_be(hard_table, tmp_path, fraction):
    """The head before the first step is that of the frozen run, over the temperature in the log."""
    options = {
        "text": "text", "label": "label", "max_length": 16, "validation_fraction": fraction,
        "loss": "cross-entropy", "baseline": False, "verbose": False,
    }  # fmt: skip
    frozen = longarc.fit(hard_table, out=tmp_path / "frozen", freeze=True, **options)
    start = longarc.fit(hard_table, out=tmp_path / "start", epochs=0, **options)
    records = [json.loads(line) for line in start.folder.log_file.read_text().splitlines()]
    (probe,) = [record for record in records if record["event"] == "probe"]
    assert probe["temperature"] > 1.1
    if fraction:
        rows = pq.read_table(frozen.path / "predictions.parquet").to_pylist()
        held = [row for row in rows if row["split"] == "validation"]
        logits = frozen.predictor.logits([hard_table["text"][row["row"] - 1] for row in held])
        codes = [frozen.labels.names.index(row["label"]) for row in held]
        of_the_split = fit_temperature(logits, codes) == pytest.approx(probe["temperature"], 1e-2)
        assert of_the_split == (len(held) >= FEWEST)
    for name in ("classifier.weight", "classifier.bias"):
        plain, softened = (
            load_file(run.path / "model" / "model.safetensors")[name] for run in (frozen, start)
        )
        torch.testing.assert_close(softened, plain / probe["temperature"], rtol=1e-4, atol=1e-4)
    assert start.predict(hard_table["text"]) == frozen.predict(hard_table["text"])
