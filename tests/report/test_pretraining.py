"""The page and the card of a pretraining run, from files alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from longarc.errors import RunError
from longarc.report.encoder_card import encoder_card
from longarc.report.html import write_report
from longarc.report.pretraining import collapse_message, verdict, what_helps

HOSTILE = "<script>alert(1)</script>"
PART: dict[str, Any] = {
    "n": 40, "relative_std": 0.8, "effective_rank": 30.2, "cosine_spread": 0.2, "uniformity": -2.0,
    "alignment": 0.9,
}  # fmt: skip


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def labelled(value: float) -> dict[str, Any]:
    scores = {"accuracy": interval(value), "macro_f1": interval(value)}
    return {"probe": scores, "knn": copy.deepcopy(scores)}


def make(folder: Path, *, collapse: bool = False, labels: bool = False, model: bool = True) -> Path:
    folder.mkdir()
    options = {"data": f"{HOSTILE}.csv", "model": "minilm", "objective": "simsiam",
               "views": "crops", "crop_min": 0.1, "crop_max": 0.5, "max_length": 64,
               "batch_size": 8, "pooling": "mean",
               "provenance": {"encoder": "BertModel"}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    start, end = (copy.deepcopy(PART) for _ in range(2))
    end["uniformity"], end["alignment"] = -3.0, 0.5
    if labels:
        start |= labelled(0.5)
        end |= labelled(0.8)
    alarm = {"measure": "spread", "onset": 4, "step": 6, "value": 0.01, "reference": 0.8,
             "message": f"The codes collapse: {HOSTILE}."}  # fmt: skip
    documents = {"train": 90, "held_out": 40, "labelled": 30 * labels, "empty": 2,
                 "tokens": 9000, "longer": 0.25}  # fmt: skip
    metrics = {"documents": documents, "classes": 3 * labels, "steps": 6, "start": start,
               "end": end, "collapse": alarm if collapse else None,
               "seconds": {"training": 12.0}}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    log = [{"event": "evaluation", "step": 0, **start}]
    log += [{"event": "collapse", "step": s, "relative_std": 0.8 / (1 + s), "effective_rank": 30.0,
             "cosine_spread": 0.2} for s in range(7)]  # fmt: skip
    log += [{"event": "train", "step": s, "loss": -0.5, "learning_rate": 1e-4} for s in (1, 2, 3)]
    log += [{"event": "evaluation", "step": 6, **end}]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    if model:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text('{"model_type": "bert"}')
    return folder


def test_the_page_shows_figures_and_curves_and_runs_nothing(tmp_path):
    page = write_report(make(tmp_path / "run", labels=True)).read_text()
    assert "<script" not in page
    assert "macro-F1 on held-out documents rose from 0.500 to 0.800" in page
    assert "The intervals are wide" not in page
    assert "learnt from 30 documents with labels" in page
    for title in ("Loss", "Spread of the codes", "Effective rank", "Spread of cosines",
                  "Macro-F1 on held-out",
                  "Alignment", "Uniformity", "Learning rate"):  # fmt: skip
        assert f'<div class="panel-title">{title}' in page
    assert "spread from 0.8 to 0.114" in page  # for those who cannot see it
    assert "25 % of them have more than the 64 tokens" in page
    assert "passages of 10 % to 50 % of a document" in page


def test_without_labels_nothing_is_said_of_classes(tmp_path):
    page = write_report(make(tmp_path / "run")).read_text()
    assert "There were no labels" in page
    assert "more evenly spread than before (uniformity -2.00 to -3.00)" in page
    assert "Macro-F1 on held-out" not in page


def test_a_collapse_stands_above_everything(tmp_path):
    page = write_report(make(tmp_path / "run", collapse=True, model=False)).read_text()
    assert "The codes collapse: &lt;script&gt;" in page
    assert what_helps("simsiam") in page
    assert page.index("no model was saved") < page.index("What it brought") + 2000
    assert "--model" not in page
    assert "marks where the collapse began" in page
    went_on = write_report(make(tmp_path / "on", collapse=True)).read_text()
    assert "The training went on" in went_on


def test_what_helps_against_a_collapse_is_of_another_objective(tmp_path):
    told = {
        objective: collapse_message({"message": "Low."}, objective, tmp_path / "report.html")
        for objective in ("simcse", "byol", "simsiam")
    }
    assert "--objective simcse" in told["byol"]
    assert "--objective simcse" in told["simsiam"]
    assert "--objective" not in told["simcse"]
    assert [name for name, said in told.items() if "--predictor-factor" in said] == ["simsiam"]
    assert all("a smaller --learning-rate; " in said for said in told.values())


def test_a_small_change_is_called_uncertain():
    start, end = PART | labelled(0.5), PART | labelled(0.52)
    assert "it could be the other way round" in verdict({"start": start, "end": end})
    assert verdict({"start": start, "end": start}).endswith("as before.")
    assert " fell from 0.520 to 0.500" in verdict({"start": end, "end": start})


def test_damaged_and_unfinished_runs_are_refused(tmp_path):
    run = make(tmp_path / "run")
    (run / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match=r"damaged.*longarc pretrain --config"):
        write_report(run)
    (run / "metrics.json").unlink()
    with pytest.raises(RunError, match="longarc pretrain --resume"):
        write_report(run)


def test_the_card_says_how_to_use_it(tmp_path):
    run = make(tmp_path / "run", labels=True)
    card = encoder_card(run)
    assert "base_model: sentence-transformers/all-MiniLM-L6-v2" in card
    assert "library_name: sentence-transformers" in card
    assert "| Linear probe, macro-F1 | 0.500 (0.400–0.600) | 0.800 (0.700–0.900) |" in card
    assert HOSTILE not in card
    (run / "model" / "config.json").write_text('{"model_type": "longarc-bert", "longarc": {}}')
    assert "longarc.load_model" in encoder_card(run)
    assert "library_name: longarc" in encoder_card(run)
