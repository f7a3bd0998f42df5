"""``longarc diagnose``: runs, models and cells; page, report, terminal, JSON; what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

import longarc as package
from longarc.report.diagnosis import write_diagnosis


@pytest.fixture
def run(trained, tmp_path):
    """A run of its own, which the test may write into."""
    return shutil.copytree(trained, tmp_path / "a <b>run")


def test_a_run_gets_its_page_and_its_report_leads_there(longarc, run, tickets):
    before = (run / "report.html").read_text(encoding="utf-8")
    assert "diagnosis.html" not in before
    status, printed, err = longarc("diagnose", run, tickets, "--documents", "3")
    assert status == 0, err
    assert "Down the layers" in printed
    assert "0 attention" in printed
    assert f"page     {run / 'diagnosis.html'}" in printed
    found = json.loads((run / "diagnosis.json").read_text(encoding="utf-8"))
    assert found["batches"] == 3
    assert found["followed"] == "the loss of the run (logit-adjusted)"
    assert found["verdict"] in " ".join(printed.split())
    page = (run / "diagnosis.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 8  # four charts in two widths
    assert "<b>run" not in page
    assert "a &lt;b&gt;run" in page
    report = (run / "report.html").read_text(encoding="utf-8")
    assert 'href="diagnosis.html"' in report
    # A report that lies elsewhere leads there too, whatever the folder's name.
    elsewhere = package.open_run(run).report(run.parent / "report.html")
    assert 'href="a%20%3Cb%3Erun/diagnosis.html"' in elsewhere.read_text(encoding="utf-8")


def test_the_loss_is_the_runs(longarc, run, tickets):
    """Its median over all documents is that of the run's own loss, one document at a time."""
    import torch

    from longarc.data.examples import read_examples
    from longarc.training.prediction import trained_loss

    status, printed, err = longarc(
        "diagnose", run, tickets, "--documents", "5", "--json", "--seed", "4"
    )
    assert status == 0, err
    found = json.loads(printed)
    assert found["path"] == str(run / "diagnosis.html")
    opened = package.open_run(run)
    examples, _ = read_examples(tickets, text="body", label="topic")
    logits = torch.from_numpy(opened._logits(examples.texts))
    target = torch.from_numpy(opened.labels.encode(examples.labels))
    each = trained_loss(opened.folder)(logits, target, reduction="none")
    assert float((each - found["loss"]).abs().min()) < 1e-4
    again = opened.diagnose(tickets, documents=5, seed=4)
    assert again["gradient"] == pytest.approx(found["gradient"])


def test_a_running_f1_is_each_documents_own(longarc, run, tickets):
    """A look at one document changes nothing about the next, whatever the order."""
    file = run / "config.yaml"
    config, found = yaml.safe_load(file.read_text(encoding="utf-8")), []
    for statistics in ("running", "batch"):
        config |= {"loss": "f1-weighted", "loss_options": {"statistics": statistics}}
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        status, printed, err = longarc("diagnose", run, tickets, "--documents", "8", "--json")
        assert status == 0, err
        found.append(json.loads(printed))
    assert found[0]["loss"] == found[1]["loss"]
    assert found[0]["gradient"] == pytest.approx(found[1]["gradient"], rel=1e-6)


def test_a_head_that_was_changed_afterwards_has_another_loss(longarc, run, tickets):
    stage = {"head_changed": True, "chosen": "crt", "not_tried": {}, "trials": [], "why": "crt"}
    (run / "recipe.json").write_text(json.dumps({"second_stage": stage}))
    status, printed, err = longarc("diagnose", run, tickets, "--documents", "2", "--json")
    assert status == 0, err
    assert json.loads(printed)["followed"] == "cross-entropy"


def test_without_labels_a_score_is_followed(longarc, run, tickets, tmp_path):
    table = tmp_path / "inbox.csv"
    table.write_text("body\noil pump leak\n\ninvoice payment bank tax\n", encoding="utf-8")
    page = tmp_path / "there" / "page.html"
    status, printed, err = longarc("diagnose", run, table, "--json", "--out", page)
    assert status == 0, err
    found = json.loads(printed)
    assert found["batches"] == 2
    assert found["followed"] == "the score of the predicted class"
    assert page.is_file()
    assert not (run / "diagnosis.json").exists()
    status, _, err = longarc("diagnose", run, table, "--out", page)
    assert status == 1
    assert "--overwrite" in err


def test_a_model_is_one_to_start_from(longarc, tiny_model, tickets):
    words = ("diagnose", tiny_model, tickets, "--text", "body", "--documents", "2")
    status, printed, err = longarc(*words)
    assert status == 0, err
    assert "Down the layers" in printed
    assert "page " not in printed
    status, printed, err = longarc(*words, "--label", "topic", "--json")
    assert status == 0, err
    found = json.loads(printed)
    assert found["path"] is None
    assert found["followed"].startswith("the cross-entropy of a new head")
    assert json.loads(longarc(*words, "--label", "topic", "--json")[1]) == found


@pytest.mark.real
def test_a_cell_before_any_training(longarc, tickets, tmp_path):
    page = tmp_path / "page.html"
    status, printed, err = longarc(
        "diagnose", "output-gated-gru", tickets, "--text", "body", "--label", "topic",
        "--documents", "2", "--exact", "--out", page,
    )  # fmt: skip
    assert status == 0, err
    assert "Back over the steps" in printed
    assert "(output-gated-gru)" in printed
    shown = page.read_text(encoding="utf-8")
    assert "Parts of the recurrent weights" in shown
    assert "output gate" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("no-such-run", "DATA"), "no model 'no-such-run'"),
        (("RUN", "none.csv"), "none.csv"),
        (("RUN", "DATA", "--text", "nothing"), "no column 'nothing'"),
        (("RUN", "DATA", "--label", "id"), "No label of"),
        (("RUN", "DATA", "--documents", "0"), "documents must be a whole number, at least 1"),
        (("RUN", "DATA", "--max-length", "100000"), "max_length must be a whole number"),
        (("RUN", "DATA", "--out", "page.pdf"), "does not end in .html"),
        (("RUN/checkpoints", "DATA"), "checkpoints"),
    ],
)
def test_bad_input_is_refused_before_work(longarc, run, tickets, words, said):
    given = [str(w).replace("RUN", str(run)).replace("DATA", str(tickets)) for w in words]
    status, printed, err = longarc("diagnose", *given)
    assert status == 1
    assert said in err
    assert printed == ""
    assert not (run / "diagnosis.json").exists()


def test_a_damaged_diagnosis_is_named(longarc, run):
    (run / "diagnosis.json").write_text("[]", encoding="utf-8")
    (run / "diagnosis.html").write_text("", encoding="utf-8")
    status, _, err = longarc("report", run)
    assert status == 1
    assert "diagnosis.json is damaged" in err


def test_a_page_of_hostile_names(tmp_path):
    script = "<script>alert(1)</script>"
    layer = {
        "name": script, "cell": "rnn", "length": 9, "reach": 3, "growth": None,
        "growth_range": [None, None], "peak": 1.0, "norms": [1.0, 0.5, 0.0], "carry": None,
        "terms": {"candidate": 1.0}, "term_norms": {"candidate": 0.5}, "parameters": None,
        "parameter_reach": None, "carried_by": "candidate",
    }  # fmt: skip
    found = {
        "model": script, "data": script, "followed": "a score", "max_length": 9, "batches": 1,
        "verdict": script, "recurrent": [layer] * 8, "sublayers": [], "inputs": None,
        "findings": [{"part": script, "verdict": "fades", "said": script, "advice": [script]}],
    }  # fmt: skip
    page = write_diagnosis(tmp_path / "page.html", found).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "2 more layers are in the table alone" in page
