"""Hybrid runs, and runs on everything without a validation split, on the real MiniLM."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import longarc
from longarc.errors import OptionError, RunError
from longarc.training.baseline import LinearBaseline
from longarc.training.recipes.post_hoc import log_prior

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def table(hard_table):
    return hard_table


@pytest.fixture(scope="module")
def fit(table, fit_frozen):
    return lambda data=table, **options: fit_frozen(data, **{"test_fraction": 0.3} | options)


def rows_of(run, split="test"):
    rows = pq.read_table(run.path / "predictions.parquet").to_pylist()
    return [row for row in rows if row["split"] == split]


def texts_of(run, table, split="test"):
    return [table["text"][row["row"] - 1] for row in rows_of(run, split)]


def train_texts(run, table):
    held_out = {row["row"] for split in ("validation", "test") for row in rows_of(run, split)}
    return [i for i in range(len(table["text"])) if i + 1 not in held_out]


def test_a_hybrid_adds_the_baselines_margins(fit, table):
    plain, run = fit(), fit(hybrid=20.0)
    texts = texts_of(run, table)
    rows = train_texts(run, table)
    baseline = LinearBaseline().fit(
        [table["text"][i] for i in rows],
        run.labels.encode([table["label"][i] for i in rows]),
        space=run.labels,
    )
    expected = plain.predictor.logits(texts) + 20.0 * baseline.margins(texts)
    np.testing.assert_allclose(run.predictor.logits(texts), expected, atol=1e-4)
    decided = [run.labels.names[i] for i in expected.argmax(axis=1)]
    assert decided == [row["prediction"] for row in rows_of(run)] == run.predict(texts)
    assert decided != plain.predict(texts), "the table must be one where the margins matter"
    chances = np.array([row["probabilities"] for row in rows_of(run)])
    np.testing.assert_allclose(run.predict_proba(texts), chances, atol=1e-5)
    assert "tfidf-svm" not in run.metrics["test"]["baselines"]
    assert sorted(p.name for p in (run.path / "linear").iterdir()) == [
        "linear.json",
        "linear.safetensors",
    ]


def test_post_hoc_and_temperature_are_for_the_sum(fit, table):
    plain, run = fit(hybrid=3.0), fit(hybrid=3.0, recipe="post-hoc", recipe_tau=0.7, calibrate=True)
    stage = run.folder.recipe()["second_stage"]
    assert stage["trials"][1]["tau"] == 0.7
    temperature = stage["temperature"]["value"]
    texts = texts_of(run, table)
    prior = log_prior(run.labels.counts, sum(run.labels.counts))
    expected = (plain.predictor.logits(texts) - 0.7 * prior) / temperature
    np.testing.assert_allclose(run.predictor.logits(texts), expected, atol=1e-4)
    found = run.metrics["validation"]["model"]["macro_f1"]["value"]
    assert found == pytest.approx(stage["trials"][1]["macro_f1"])


def test_several_labels(fit, table):
    pairs = zip(table["text"], table["label"], strict=True)
    sets = [[name, "long"] if len(text) > 55 else [name] for text, name in pairs]
    data = {"text": table["text"], "label": sets}
    plain, run = fit(data), fit(data, hybrid=2.0)
    texts = texts_of(run, table)
    margins = LinearBaseline.load(run.folder.linear).margins(texts)
    np.testing.assert_allclose(
        run.predictor.logits(texts), plain.predictor.logits(texts) + margins, atol=1e-4
    )


def test_a_focal_hybrid_reads_its_sum_as_a_softmax(fit, table):
    run = fit(loss="focal", hybrid=2.0)
    texts = texts_of(run, table)
    logits = torch.from_numpy(run.predictor.logits(texts)).double()
    np.testing.assert_allclose(run.predict_proba(texts), logits.softmax(1).numpy(), atol=1e-6)


def test_without_its_scores_a_hybrid_is_refused(fit, table):
    run = fit(hybrid=2.0)
    (run.folder.linear / "linear.safetensors").unlink()
    with pytest.raises(RunError, match="cannot read the linear classifier"):
        longarc.open_run(run.path).predict(["a pump"])


def test_on_everything_with_all_choices_named(fit, table):
    run = fit(
        validation_fraction=0, hybrid=2.0, recipe="post-hoc", recipe_tau=1.0,
        loss="logit-adjusted", baseline=True,
    )  # fmt: skip
    assert set(run.metrics) == {"test", "seconds"}
    assert {row["split"] for row in rows_of(run)} == {"test"}
    assert sum(run.labels.counts) + len(rows_of(run)) == len(table["text"])
    stage = run.folder.recipe()["second_stage"]
    assert [row["macro_f1"] for row in stage["trials"]] == [None, None]
    assert "post-hoc with τ = 1, as named" in stage["why"]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "post-hoc with τ = 1" in page
    assert "None" not in page
    assert "post-hoc" in (run.path / "model" / "README.md").read_text(encoding="utf-8")


def test_fine_tuning_on_everything_keeps_the_last_step(fit, table, tmp_path):
    options = {"validation_fraction": 0, "freeze": False, "epochs": 1, "batch_size": 16}
    run = fit(**options, keep_checkpoints=True)
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert not [record for record in log if record["event"] == "validation"]
    assert log[-1]["event"] == "end"
    assert log[-1]["best_step"] is None
    last = run.path / "checkpoints" / f"checkpoint-{log[-1]['step']}" / "model.safetensors"
    kept, final = load_file(last), load_file(run.path / "model" / "model.safetensors")
    assert kept.keys() == final.keys()
    assert all(torch.equal(kept[name], final[name]) for name in kept)
    assert "best epoch" not in (run.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "post-hoc"}, "nothing to choose the τ of --recipe post-hoc on.*--recipe-tau"),
        ({"recipe": "auto"}, "--recipe auto needs a validation split"),
        ({"recipe": "crt"}, "--recipe crt needs a validation split"),
        ({"calibrate": True}, "--calibrate needs a validation split"),
        ({"recipe": "crt", "recipe_tau": 1.0, "validation_fraction": 0.1}, "--recipe is crt"),
        ({"recipe_tau": 1.0, "validation_fraction": 0.1}, "--recipe is none"),
        ({"hybrid": -1.0}, "--hybrid is -1"),
        ({"test_fraction": 0}, "both 0, so nothing would be measured"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(fit, options, message):
    with pytest.raises(OptionError, match=message):
        fit(**{"validation_fraction": 0} | options)


def test_a_stopped_hybrid_goes_on(fit, table, tmp_path):
    """The scores are kept with the checkpoints: a resumed run does not fit them again."""
    options = {"freeze": False, "epochs": 1, "batch_size": 16, "hybrid": 2.0, "verbose": False}
    given = {"max_length": 32, "precision": "fp32", "device": "cpu", "baseline": False}
    run = longarc.fit(table, out=tmp_path / "r", keep_checkpoints=True, **options, **given)
    expected = run.predictor.logits(table["text"])
    (run.path / "metrics.json").unlink()
    changed = LinearBaseline.load(run.path / "checkpoints" / "linear")
    marked = dataclasses.replace(changed, bias=changed.bias + np.float32(1.0))
    for file in (run.path / "checkpoints" / "linear").iterdir():
        file.unlink()
    (run.path / "checkpoints" / "linear").rmdir()
    marked.save(run.path / "checkpoints" / "linear")
    resumed = longarc.fit(table, out=tmp_path / "r", resume=True, **options, **given)
    np.testing.assert_allclose(resumed.predictor.logits(table["text"]), expected + 1, atol=1e-4)
