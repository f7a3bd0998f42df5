"""Figures of candidates: few labelled documents, which some resamples miss altogether."""

from __future__ import annotations

import re

import pytest

from longarc.comparison.candidates import Candidate
from longarc.comparison.figures import rows
from longarc.comparison.job import _Job
from longarc.comparison.slot import Slot
from longarc.data.labels import LabelSpace
from longarc.data.table_writer import table_writer
from longarc.files import write_json
from longarc.training.metrics import evaluate_predictions
from longarc.training.run_folder import RunFolder

SPACE = LabelSpace(("a", "b"), (5, 4), multi_label=True)


def finished(path, labels, predictions) -> Slot:
    """What a training leaves behind that figures are read from."""
    slot = Slot(path)
    slot.run.mkdir(parents=True)
    folder = RunFolder(slot.run)
    SPACE.save(folder.labels_file)
    with table_writer(folder.predictions_file) as write:
        write({"split": ["test"] * len(labels), "label": labels, "prediction": predictions})
    figures = evaluate_predictions(
        SPACE.encode(labels), SPACE.encode(predictions), space=SPACE, outside=SPACE.outside(labels)
    )
    write_json(folder.metrics_file, {"test": {"model": figures}})
    folder.config_file.write_text("provenance: {}\n")
    write_json(slot.training, {"steps": 1})
    return slot


def test_a_label_that_training_lacks_is_an_error_in_the_resamples_too(tmp_path):
    slot = finished(tmp_path / "slot", [["a", "new"]] * 20, [["a"]] * 20)
    (row,) = rows([Candidate("one", {})], {"one": [slot]}, {}, tmp_path)
    assert row["accuracy"] == {"value": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize("labelled", [3, 0])
def test_a_few_labelled_documents_are_in_few_resamples(tmp_path, labelled):
    labels = [["a"]] * labelled + [[]] * (200 - labelled)
    good, bad = labels, [["b"], *labels[1:]]
    slots = {
        name: [finished(tmp_path / name, labels, predictions)]
        for name, predictions in (("good", good), ("bad", bad))
    }
    found = rows([Candidate(name, {}) for name in slots], slots, {}, tmp_path)
    write_json(tmp_path / "compare.json", {"candidates": found})  # refuses NaN
    against = found[1]["against_best"]
    if labelled:
        assert -1 <= against["low"] <= against["value"] <= against["high"] <= 0
        assert re.fullmatch(r"macro-F1 1\.000 \(.*–1\.000\)", _Job._outcome(slots["good"][0]))
    else:
        assert against is None
        assert _Job._outcome(slots["good"][0]) == "macro-F1 –"
        assert found[0]["macro_f1"] == {"value": 0.0, "low": None, "high": None}
