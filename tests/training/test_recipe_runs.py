"""Each recipe as a run of its own, on the real MiniLM with its encoder frozen."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from longarc.errors import OptionError
from longarc.objectives.losses.focal import focal_probabilities
from longarc.training.prediction import trained_loss

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def table(hard_table):
    return hard_table


@pytest.fixture(scope="module")
def fit(table, fit_frozen):
    return lambda data=table, **options: fit_frozen(data, **{"validation_fraction": 0.3} | options)


@pytest.fixture(scope="module")
def plain(fit):
    return fit()


def head(run):
    tensors = load_file(run.path / "model" / "model.safetensors")
    return tensors["classifier.weight"], tensors["classifier.bias"]


def log_of_shares(run):
    return torch.tensor(run.labels.counts).div(sum(run.labels.counts)).log()


def check_predictions(run, table):
    """The saved model alone gives what the run says of itself."""
    rows = pq.read_table(run.path / "predictions.parquet").to_pydict()
    texts = [table["text"][row - 1] for row in rows["row"]]
    assert run.predict(texts) == rows["prediction"]
    np.testing.assert_allclose(run.predict_proba(texts), np.array(rows["probabilities"]), atol=1e-5)
    logits = torch.from_numpy(run.predictor.logits(texts))
    assert [run.labels.names[i] for i in logits.argmax(1)] == rows["prediction"]


def test_a_run_without_a_recipe_has_no_record_of_one(plain, table):
    assert not (plain.path / "recipe.json").exists()
    check_predictions(plain, table)


def test_post_hoc_moves_the_bias_by_the_prior(fit, plain, table):
    run = fit(recipe="post-hoc")
    stage = run.folder.recipe()["second_stage"]
    assert stage["chosen"] == "post-hoc"
    row = stage["trials"][1]
    weight, bias = head(plain)
    assert torch.equal(head(run)[0], weight)
    expected = bias - row["tau"] * log_of_shares(plain)
    torch.testing.assert_close(head(run)[1], expected, rtol=0, atol=1e-5)
    assert row["tau"] != 0, "the table must be one where the prior matters"
    found = run.metrics["validation"]["model"]
    assert found["macro_f1"]["value"] == pytest.approx(row["macro_f1"])
    assert found["accuracy"]["value"] == pytest.approx(row["accuracy"])
    assert row["macro_f1"] > plain.metrics["validation"]["model"]["macro_f1"]["value"]
    check_predictions(run, table)


def test_tau_normalisation_scales_each_class(fit, plain, table):
    run = fit(recipe="tau-norm")
    stage = run.folder.recipe()["second_stage"]
    tau = stage["trials"][1]["tau"]
    weight, bias = head(plain)
    factor = weight.norm(dim=1) ** -tau
    torch.testing.assert_close(head(run)[0], weight * factor[:, None])
    torch.testing.assert_close(head(run)[1], bias * factor)
    assert stage["head_changed"] == (tau != 0)
    check_predictions(run, table)


def test_retraining_gives_the_balanced_probe(fit, table):
    """With the encoder frozen it is what a class-weighted run ends with."""
    run, weighted = fit(recipe="crt"), fit(loss="class-weighted")
    for found, expected in zip(head(run), head(weighted), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    check_predictions(run, table)


def test_calibration_divides_the_head_and_changes_no_decision(fit, plain, table):
    run = fit(calibrate=True)
    temperature = run.folder.recipe()["second_stage"]["temperature"]
    assert temperature["nll_after"] < temperature["nll_before"]
    for found, before in zip(head(run), head(plain), strict=True):
        torch.testing.assert_close(found * temperature["value"], before)
    assert run.predict(table["text"]) == plain.predict(table["text"])
    check_predictions(run, table)


def test_auto_settles_everything_and_its_config_repeats_it(fit, table):
    run = fit(recipe="auto")
    recipe = run.folder.recipe()
    names = [row["name"] for row in recipe["loss"]["trials"]]
    assert names == ["cross-entropy", "logit-adjusted", "class-balanced"]
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["loss"] == recipe["loss"]["chosen"]
    stage = recipe["second_stage"]
    figures = {row["name"]: row["macro_f1"] for row in stage["trials"]}
    assert list(figures) == ["none", "post-hoc", "tau-norm", "crt"]
    assert figures[stage["chosen"]] == max(figures.values())
    assert stage["why"].startswith(stage["chosen"])
    check_predictions(run, table)
    again = fit(recipe="auto", loss=config["loss"])
    assert all(torch.equal(a, b) for a, b in zip(head(run), head(again), strict=True))
    assert "loss" not in again.folder.recipe(), "a loss that was named is kept without trials"
    page = (run.path / "report.html").read_text()
    card = (run.path / "model" / "README.md").read_text()
    for text in (page, card):
        assert stage["chosen"] in text
    assert "class-balanced" in page


def test_a_focal_run_reads_its_logits_with_the_correction(fit, table):
    run = fit(loss="focal", loss_options={"gamma": 3.0})
    logits = torch.from_numpy(run.predictor.logits(table["text"])).double()
    expected = focal_probabilities(logits, gamma=3.0).numpy()
    np.testing.assert_allclose(run.predict_proba(table["text"]), expected, atol=1e-7)
    assert np.abs(expected - logits.softmax(1).numpy()).max() > 0.02
    check_predictions(run, table)
    out = run.predict_table(table, run.path / "p.jsonl")
    written = [json.loads(line) for line in out.read_text().splitlines()]
    found = [[row[f"p({name})"] for name in run.labels.names] for row in written]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    saved = run.evaluate(table)["calibration_error"]["value"]
    bins = (expected.max(1) - (expected.argmax(1) == run.labels.encode(table["label"]))).mean()
    assert saved >= abs(bins) - 1e-9, "a calibration error is at least the mean gap"

    changed = fit(loss="focal", loss_options={"gamma": 3.0}, recipe="crt")
    assert trained_loss(changed.folder) is None
    logits = torch.from_numpy(changed.predictor.logits(table["text"])).double()
    np.testing.assert_allclose(changed.predict_proba(table["text"]), logits.softmax(1), atol=1e-7)


def test_several_labels(fit, table):
    data = {
        "text": table["text"],
        "label": [
            sorted({label, *[n for n in ("pump", "invoice", "court") if n in text.split()]})
            for text, label in zip(table["text"], table["label"], strict=True)
        ],
    }
    run = fit(data, recipe="auto")
    recipe = run.folder.recipe()
    names = [row["name"] for row in recipe["loss"]["trials"]]
    assert names == ["binary-cross-entropy", "multilabel-softmax"]
    trials = {row["name"]: row for row in recipe["second_stage"]["trials"]}
    assert list(trials) == ["none", "post-hoc", "crt"]
    found = run.metrics["validation"]["model"]["macro_f1"]["value"]
    assert found == pytest.approx(trials[recipe["second_stage"]["chosen"]]["macro_f1"])
    with pytest.raises(OptionError, match=r"tau-norm changes no decision.*post-hoc or crt"):
        fit(data, recipe="tau-norm")
