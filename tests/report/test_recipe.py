"""What the pages say of a recipe, from a recipe.json that SecondStage wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from longarc.data.labels import LabelSpace
from longarc.errors import RunError
from longarc.objectives.losses.registry import build_loss
from longarc.report.card import model_card
from longarc.report.html import write_report
from longarc.report.recipe import second_stage, without_prior
from longarc.report.saved import read_run
from longarc.training.recipes.second_stage import SecondStage
from longarc.training.recipes.trials import Trials


@pytest.fixture
def with_recipe(run_folder, tmp_path):
    """A copy of the run with the record of a recipe."""

    def made(recipe: str, **options) -> tuple[Path, dict]:
        random = np.random.default_rng(0)
        target = np.repeat([0, 1], [45, 15])
        features = torch.from_numpy(random.normal(size=(60, 2)) + target[:, None]).float()
        head = nn.Linear(2, 2)
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[-0.5, -0.5], [0.5, 0.5]]))
            head.bias.copy_(torch.tensor([3.0, 0.0]))
        space = LabelSpace(("a", "b"), (45, 15), multi_label=False)
        stage = SecondStage(
            head, features, Trials(target, 60), space=space, examples=60,
            loss=build_loss("cross-entropy", class_counts=space.counts),
            training=lambda: (features, torch.from_numpy(target)), training_seconds=90,
        )  # fmt: skip
        copy = Path(shutil.copytree(run_folder, tmp_path / recipe))
        record = stage.run(recipe, **options)
        (copy / "recipe.json").write_text(json.dumps({"second_stage": record}), encoding="utf-8")
        return copy, record

    return made


def test_the_page_shows_all_trials_and_the_chosen_one(with_recipe):
    run, record = with_recipe("auto")
    assert record["chosen"] == "post-hoc"
    page = write_report(run).read_text(encoding="utf-8")
    for row in record["trials"]:
        assert f"{row['macro_f1']:.3f}" in page
        assert f"{row['nll']:.3f}" in page
    tau = f"post-hoc with τ = {record['trials'][1]['tau']:g}"
    assert f'<span class="best">{tau}</span>' in page
    assert "Not tried: crt (reading the training documents takes about 90 s" in page
    assert "With post-hoc, confidence assumes equally frequent classes" in page
    assert f"{tau}, temperature {record['temperature']['value']:.2f}" in model_card(run)


def test_a_hybrid_is_called_one(run_folder, tmp_path):
    """Its figures stand beside those of the linear baseline, which is a part of it."""
    told = "8 times the margins of TF-IDF + linear SVM are added to the logits"
    page = write_report(run_folder).read_text(encoding="utf-8")
    assert told not in page
    assert "of the encoder alone" not in page
    copy = Path(shutil.copytree(run_folder, tmp_path / "hybrid"))
    config = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))
    (copy / "config.yaml").write_text(yaml.safe_dump(config | {"hybrid": 8.0}), encoding="utf-8")
    page = write_report(copy).read_text(encoding="utf-8")
    assert told in page
    assert "quality on the validation split of the encoder alone, without the linear" in page


def test_without_a_recipe_nothing_is_said(run_folder):
    run = read_run(run_folder)
    assert second_stage(run) is None
    assert without_prior(run) is None
    assert "Second stage" not in write_report(run_folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("recipe", "said"), [("none", None), ("crt", "crt"), ("tau-norm", None)]
)  # fmt: skip
def test_what_takes_the_prior_out_of_the_probabilities(with_recipe, recipe, said):
    assert without_prior(read_run(with_recipe(recipe)[0])) == said


def test_a_damaged_record_is_named(with_recipe):
    run, _ = with_recipe("none", calibrate=True)
    assert second_stage(read_run(run)).startswith("temperature ")
    (run / "recipe.json").write_text('{"second_stage": {"trials": []}}')
    with pytest.raises(RunError, match=r"recipe.json is damaged: `second_stage` lacks one of"):
        read_run(run)
