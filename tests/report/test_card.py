import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from longarc.errors import RunError
from longarc.report.card import model_card


def reconfigured(folder: Path, target: Path, **options) -> Path:
    copy = Path(shutil.copytree(folder, target))
    config = yaml.safe_load((copy / "config.yaml").read_text()) | options
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def test_the_hub_reads_the_metadata_back(run_folder):
    card = ModelCard(model_card(run_folder))
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("longarc", "text-classification")
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.license is None
    assert "long-tailed" in data.tags
    metrics = json.loads((run_folder / "metrics.json").read_text())["test"]["model"]
    results = {r.metric_name: r for r in data.eval_results}
    assert results["Macro-F1"].metric_type == "f1"
    assert results["Macro-F1"].metric_value == pytest.approx(metrics["macro_f1"]["value"], abs=1e-4)
    assert results["Accuracy"].dataset_split == "test"
    assert data.eval_results[0].dataset_name == "licences.csv"


def test_it_says_how_to_load_either_kind(run_folder, tmp_path):
    mean = model_card(run_folder)
    assert "longarc.load_model(folder)" in mean
    assert "is the mean of the token vectors" in mean
    folder = reconfigured(run_folder, tmp_path / "cls", pooling="cls")
    model = json.loads((folder / "model" / "config.json").read_text())["encoder"]
    (folder / "model" / "config.json").write_text(json.dumps(model))
    cls = model_card(folder)
    assert "AutoModelForSequenceClassification.from_pretrained(folder)" in cls
    assert "longarc.load_model" not in cls
    assert ModelCard(cls).data.library_name == "transformers"
    # An encoder that was changed by the run that it started from: its own options do not tell.
    model["longarc"] = {"attention": {"name": "local-clustered"}}
    (folder / "model" / "config.json").write_text(json.dumps(model))
    changed = model_card(folder)
    assert "longarc.load_model(folder)" in changed
    assert "mean of the token vectors" not in changed
    assert ModelCard(changed).data.library_name == "longarc"
    for card in (mean, cls, changed):
        code = card.split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")


def test_the_figures_of_a_hybrid_are_not_said_of_the_encoder_alone(run_folder, tmp_path):
    card = model_card(reconfigured(run_folder, tmp_path / "hybrid", hybrid=8.0))
    assert "are added to its logits, 8 times," in card
    assert 'longarc.open_run("path/to/the/run")' in card
    assert ModelCard(card).data.eval_results is None
    assert "open_run" not in model_card(run_folder)


def test_a_run_without_a_model_has_no_card(run_folder, tmp_path):
    folder = reconfigured(run_folder, tmp_path / "bare")
    shutil.rmtree(folder / "model")
    with pytest.raises(RunError, match="A card is of a model"):
        model_card(folder)


def test_figures_stand_beside_the_baselines_and_limits_are_named(run_folder):
    card = model_card(run_folder)
    metrics = json.loads((run_folder / "metrics.json").read_text())["test"]
    f1 = metrics["baselines"]["tfidf-svm"]["macro_f1"]
    assert f"{f1['value']:.3f} ({f1['low']:.3f}–{f1['high']:.3f})" in card
    row = next(line for line in card.splitlines() if line.startswith("| Macro-F1"))
    assert row.count("|") == 5
    labels = json.loads((run_folder / "labels.json").read_text())["labels"]
    rare = [entry for entry in labels if entry["count"] < 20]
    assert rare
    assert all(f"{entry['name']} ({entry['count']})" in card for entry in rare)
    assert "It reads the first 256 tokens" in card


def test_local_folders_stay_private(run_folder, tmp_path):
    (tmp_path / "secret" / "encoder").mkdir(parents=True)
    folder = reconfigured(
        run_folder, tmp_path / "private",
        data="/home/somebody/tickets.csv", model=str(tmp_path / "secret" / "encoder"),
    )  # fmt: skip
    card = model_card(folder)
    assert "tickets.csv" in card
    assert "somebody" not in card
    assert "secret" not in card
    assert ModelCard(card).data.base_model is None
    hub = model_card(reconfigured(run_folder, tmp_path / "hub", model="owner/name"))
    assert ModelCard(hub).data.base_model == "owner/name"


def test_markup_from_the_data_is_inert(hostile_run):
    card = model_card(hostile_run)
    body = ModelCard(card).text.split("## Configuration")[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    assert "<script" not in body
    assert ModelCard(card).data.model_name == "hostile <b> & 'co'"


def test_multi_label_and_missing_parts(multi_label_run, run_folder, tmp_path):
    card = model_card(multi_label_run)
    assert "sigmoid" in card
    assert "mAP" in card
    bare = Path(shutil.copytree(run_folder, tmp_path / "bare"))
    (bare / "check.json").unlink()
    metrics = json.loads((bare / "metrics.json").read_text())
    del metrics["test"]
    (bare / "metrics.json").write_text(json.dumps(metrics))
    (bare / "config.yaml").write_text("{}\n")
    card = model_card(bare)
    assert "There was no test split" in card
    assert ModelCard(card).data.eval_results[0].dataset_split == "validation"


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run folder at"):
        model_card(tmp_path / "none")
