"""``longarc explain``: terminal, JSON, page and tables; and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import longarc as package
from longarc.attribution.counterfactual import effects
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.cli.explain import _texts
from longarc.cli.main import main
from longarc.errors import DataError, OptionError, RunError
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.recording.recorded_path import RecordedPath


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, tickets, tiny_model):
    """A run with a path, a recipe after it, a class of a dangerous name, and wrong labels."""
    out = tmp_path_factory.mktemp("recorded") / "run"
    table = out.parent / "table.csv"
    lines = tickets.read_text().replace(",contract", ",<b>contract").splitlines()
    lines[1::6] = [line.rpartition(",")[0] + ",pump" for line in lines[1::6]]
    table.write_text("\n".join(lines))
    status = main(
        ["train", str(table), "--text", "body", "--label", "topic", "--model", str(tiny_model),
         "--epochs", "3", "--learning-rate", "3e-3", "--out", str(out), "--head-start", "scratch",
         "--record-path", "--device", "cpu", "--no-baseline", "--recipe", "post-hoc",
         "--recipe-tau", "0.5", "--accumulation", "2", "--batch-size", "8"]
    )  # fmt: skip
    assert status == 0
    return out


def closes(row):
    parts = sum(row[k] for k in ("initial", "contributions", "decay", "elsewhere", "afterwards"))
    assert parts + row["residual"] == pytest.approx(row["final"], abs=1e-6)
    assert row["relative_residual"] < 1e-3
    assert sum(row["by_class"].values()) == pytest.approx(row["contributions"], abs=1e-6)


def test_a_tables_first_rows_are_read_and_no_more(tmp_path):
    table = tmp_path / "long.csv"
    table.write_text("id,body\n" + "".join(f"{i},pump {i}\n" for i in range(5000)) + "1,2,3\n")
    opened = SimpleNamespace(config=SimpleNamespace(text="body"))
    chosen = SimpleNamespace(data=str(table), text=None, rows=2, column=None)
    assert _texts(opened, chosen, None) == ["pump 0", "pump 1"]


def test_a_text_explained_as_json(longarc, recorded):
    status, printed, err = longarc(
        "explain", recorded, "--text", "oil pump leak", "--json", "--top", "3"
    )
    assert status == 0, err
    (row,) = json.loads(printed)
    closes(row)
    run = package.open_run(recorded)
    assert row["final"] == pytest.approx(run._logits(["oil pump leak"]).max(), abs=1e-4)
    assert row["afterwards"] != 0
    assert len(row["supporting"]) == 3
    texts = pq.read_table(recorded / "path" / "training.parquet")["text"].to_pylist()
    for each in row["supporting"]:
        assert each["text"] == texts[each["document"]]
        assert each["value"] > 0


def test_the_terminal_shows_the_sum(longarc, recorded):
    status, printed, err = longarc(
        "explain", recorded, "--text", "[bold]oil pump", "--label", "pump"
    )
    assert status == 0, err
    assert "logit of pump: [bold]oil pump" in printed
    assert "by the training documents" in printed
    assert "raised it" in printed


def test_a_table_to_a_page_that_closes(longarc, recorded, tickets, tmp_path):
    page = tmp_path / "page.html"
    status, _, err = longarc(
        "explain", recorded, tickets, "--column", "body", "--rows", "2", "--label", "<b>contract",
        "--of", "margin", "--out", page,
    )  # fmt: skip
    assert status == 0, err
    html = page.read_text()
    assert html.count("<h2>margin of &lt;b&gt;contract over ") == 2
    assert "<b>contract" not in html
    assert "<script" not in html
    assert html.count("<svg") == 4
    status, _, err = longarc("explain", recorded, "--text", "a", "--out", page)
    assert status == 1
    assert "--overwrite" in err


def test_the_surest_errors_go_into_the_report(longarc, recorded):
    status, printed, err = longarc("explain", recorded, "--errors", "2", "--json", "--top", "3")
    assert status == 0, err
    rows = json.loads(printed)
    entries = json.loads((recorded / "explanations.json").read_text())["explained"]
    assert len(rows) == len(entries) == 2
    columns = ["split", "row", "excerpt", "label", "prediction", "confidence"]
    table = pq.read_table(recorded / "predictions.parquet", columns=columns).to_pylist()
    wrong = [p for p in table if p["split"] == "test" and p["label"] != p["prediction"]]
    surest = sorted(wrong, key=lambda p: -p["confidence"])[:2]
    for row, entry, p in zip(rows, entries, surest, strict=True):
        closes(row)
        assert row["name"] == f"margin of {p['prediction']} over {p['label']}"
        assert row["final"] > 0
        assert entry["text"] == row["text"]
        assert entry["text"].startswith(p["excerpt"])
        assert (entry["row"], entry["label"]) == (p["row"], p["label"])
    html = (recorded / "report.html").read_text()
    assert "What made it err" in html
    assert "<b>contract" not in html
    assert html.count("Documents that raised it") == 2
    package.open_run(recorded).explain_errors(1)
    assert (recorded / "report.html").read_text().count("Documents that raised it") == 1


def test_errors_need_the_table_as_it_was(recorded, tickets):
    run = package.open_run(recorded)
    with pytest.raises(DataError, match="is not the document that the run was tested on"):
        run.explain_errors(1, data={"body": ["another"] * 120, "topic": ["pump"] * 120})


def test_the_run_as_a_kernel_machine(recorded):
    run = package.open_run(recorded)
    machine = run.kernel_machine()
    texts = ["pump oil", "tax order"]
    (explained,) = run.explain(texts[:1], label="pump")
    pump = run.labels.names.index("pump")
    terms = machine.terms(texts)
    assert terms.contributions[0, pump] == pytest.approx(explained.contributions, abs=1e-5)
    predicted = machine.predict(texts)
    assert predicted == pytest.approx(terms.final, abs=1e-3)
    top = explained.supporting(1)[0].document
    less = machine.forget(top).predict(texts)[0, pump] - predicted[0, pump]
    assert less == pytest.approx(-explained.contributions[top], abs=1e-5)
    more = machine.learn(["oil pump leak"], ["pump"]).predict(texts)
    assert more[0, pump] > predicted[0, pump]
    assert machine.kernel(texts, texts, label="pump").shape == (2, 2)


def test_the_loss_of_a_label_among_several_is_a_sigmoids(tickets, tiny_model, tmp_path):
    """Its number, and its contributions, are those of the label's own binary cross-entropy."""
    table = tmp_path / "several.csv"
    lines = tickets.read_text().splitlines()
    lines[1::4] = [f"{line};urgent" for line in lines[1::4]]
    table.write_text("\n".join(lines))
    status = main(
        ["train", str(table), "--text", "body", "--label", "topic", "--label-separator", ";",
         "--model", str(tiny_model), "--out", str(tmp_path / "run"), "--epochs", "1",
         "--head-start", "scratch", "--learning-rate", "0.01", "--record-path", "--no-baseline",
         "--device", "cpu", "--validation-fraction", "0", "--batch-size", "32"]
    )  # fmt: skip
    assert status == 0
    run, text = package.open_run(tmp_path / "run"), "oil pump leak"
    label = run.labels.names.index("invoice")
    one = run.explain(text, label="invoice", of="loss")

    def binary(logits):
        told = torch.ones((), dtype=logits.dtype)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[label], told)

    (logits,) = torch.from_numpy(run._logits([text]))
    assert one.final == pytest.approx(float(binary(logits)), rel=1e-5)
    assert abs(float(binary(logits) + logits.log_softmax(0)[label])) > 0.1
    predictor = run.predictor
    collate = PaddedBatches(predictor.tokenizer, predictor.max_length)
    asked = Documents([text], predictor.tokenizer, predictor.max_length)
    assert np.abs(one.contributions).sum() > 1e-2
    (direct,) = explain(
        RecordedPath(tmp_path / "run" / "path"), predictor.model,
        Documents(one.texts, predictor.tokenizer, predictor.max_length), collate,
        [Query(collate([asked[0]]), binary)],
    )  # fmt: skip
    np.testing.assert_allclose(one.contributions, direct.contributions, rtol=1e-4, atol=1e-7)


def test_every_contribution_as_a_table(longarc, recorded, tmp_path):
    out = tmp_path / "all.parquet"
    status, printed, err = longarc(
        "explain", recorded, "--text", "tax", "--out", out, "--json", "--of", "loss"
    )
    assert status == 0, err
    table = pq.read_table(out)
    (row,) = json.loads(printed)
    assert table.num_rows == RecordedPath(recorded / "path").about["documents"]
    assert sum(table["contribution"].to_pylist()) == pytest.approx(row["contributions"])


def test_in_python_one_text_or_several(recorded):
    run = package.open_run(recorded)
    one = run.explain("pump oil")
    several = run.explain(["pump oil", "tax order"])
    assert np.allclose(one.contributions, several[0].contributions, atol=1e-6)
    frame = one.to_pandas()
    assert list(frame.columns) == ["document", "label", "contribution"]
    assert frame["contribution"].sum() == pytest.approx(one.contributions.sum())
    head = run.explain("pump oil", parameters=lambda name: name.startswith("classifier"))
    assert head.elsewhere != 0
    assert head.final == pytest.approx(one.final)
    with pytest.raises(OptionError, match=r"no label 'pum'\. Did you mean pump"):
        run.explain("x", label="pum")
    with pytest.raises(DataError, match="text 2 of 2 is empty"):
        run.explain(["x", ""])
    with pytest.raises(DataError, match="the text is empty"):
        run.effects("\n")


def test_empty_rows_of_a_table_are_left_out_and_it_is_said(longarc, recorded, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text('body\n""\n" "\noil pump\n')
    status, printed, err = longarc("explain", recorded, table, "--json", "--top", "1")
    assert status == 0, err
    assert [row["text"] for row in json.loads(printed)] == ["oil pump"]
    assert "2 of the 3 texts are empty and left out" in err
    table.write_text('body\n" "\n')
    status, _, err = longarc("explain", recorded, table)
    assert status == 1
    assert "has no text to explain" in err


def test_the_replay_of_a_run_is_exact(recorded, tiny_model):
    from longarc.training.batches import Documents, PaddedBatches
    from longarc.training.recording.recorded_path import load_training
    from longarc.training.recording.replay import Replay

    run = package.open_run(recorded)
    texts, _ = load_training(run.folder.training_file)
    predictor = run.predictor
    documents = Documents(texts, predictor.tokenizer, predictor.max_length)
    replay = Replay(
        RecordedPath(run.folder.recorded), predictor.model, documents,
        PaddedBatches(predictor.tokenizer, predictor.max_length),
    )  # fmt: skip
    drifts = replay.verify()
    assert drifts
    assert all(d.difference == 0 for d in drifts)


def test_an_index_is_built_once_and_answers(longarc, recorded, tmp_path):
    status, printed, err = longarc(
        "explain", recorded, "--text", "oil pump leak", "--method", "indexed", "--json",
        "--checkpoints", "3", "--dimensions", "512",
    )  # fmt: skip
    assert status == 0, err
    assert "rows of 1036 bytes" in err
    assert "(3 checkpoints)" in err
    (row,) = json.loads(printed)
    parts = sum(row[k] for k in ("initial", "contributions", "decay", "elsewhere", "afterwards"))
    assert parts + row["residual"] == pytest.approx(row["final"], abs=1e-6)
    assert row["method"] == "indexed"
    assert row["within_tolerance"] is None
    assert row["sampling_error"] > 0
    assert all(each["error"] > 0 for each in row["supporting"])
    run = package.open_run(recorded)
    exact, estimate = (run.explain("oil pump leak", method=m) for m in ("exact", "indexed"))
    assert np.corrcoef(exact.contributions, estimate.contributions)[0, 1] > 0.8
    assert estimate.final == pytest.approx(exact.final, abs=1e-5)
    assert estimate.afterwards == pytest.approx(exact.afterwards, abs=1e-5)
    assert "error" in estimate.to_pandas().columns
    out, page = tmp_path / "all.csv", tmp_path / "page.html"
    for file in (out, page):
        status, printed, err = longarc(
            "explain", recorded, "--text", "tax", "--method", "indexed", "--out", file
        )
        assert status == 0, err
        assert "rows of" not in err + printed  # it is there
        assert "sampling error of the sum" in printed
        assert " ± 0." in printed
    assert out.read_text().splitlines()[0].endswith("contribution,error,text")
    assert "estimate" in page.read_text()


def test_effects_are_what_the_mathematics_says_and_are_shown_as_such(longarc, recorded, tmp_path):
    page, table = tmp_path / "page.html", tmp_path / "all.parquet"
    words = ("explain", recorded, "--text", "oil pump leak", "--method", "effects")
    status, printed, err = longarc(*words, "--json", "--top", "2", "--out", table)
    assert status == 0, err
    (row,) = json.loads(printed)
    assert row["method"] == "effects"
    assert row["afterwards"]  # the recipe's second stage
    assert len(row["supporting"]) == 2
    assert row["supporting"][0]["value"] > 0 > row["opposing"][0]["value"]
    found = pq.read_table(table).to_pydict()
    run = package.open_run(recorded)
    one = run.effects("oil pump leak")
    assert found["fall"] == pytest.approx(one.falls)
    assert found["document"][int(one.falls.argmax())] == row["supporting"][0]["document"]
    length = run.predictor.max_length
    (direct,) = effects(
        RecordedPath(recorded / "path"),
        run.predictor.model,
        Documents(one.texts, run.predictor.tokenizer, length, run.labels.encode(one.labels)),
        PaddedBatches(run.predictor.tokenizer, length),
        [Query(dict(PaddedBatches(run.predictor.tokenizer, length)(
            [Documents(["oil pump leak"], run.predictor.tokenizer, length)[0]]
        )), measure("logit", run.labels.names.index(one.name.removeprefix("logit of "))), "")],
        loss=CrossEntropyLoss(),
    )  # fmt: skip
    np.testing.assert_allclose(one.falls, direct, rtol=1e-4, atol=1e-7)
    status, printed, err = longarc(*words, "--out", page)
    assert status == 0, err
    assert "effects do not add up" in printed
    assert "before the second stage" in printed
    assert "before the second stage" in page.read_text()
    assert "fall without it" in page.read_text()
    assert "before training" not in printed + page.read_text()
    assert "No document moved it" not in page.read_text()


def test_an_index_of_its_own(longarc, recorded):
    index = recorded / "path" / "index"
    status, printed, err = longarc(
        "explain", recorded, "--build-index", "--overwrite-index", "--dimensions", "128"
    )
    assert status == 0, err
    assert f"index  {index}: " in printed
    at = (index / "index.json").stat().st_mtime_ns
    status, printed, err = longarc("explain", recorded, "--build-index", "--json")
    assert status == 0, err
    told = json.loads(printed)
    assert told["missing"] == 0
    assert told["index"] == str(index)
    assert (index / "index.json").stat().st_mtime_ns == at
    status, _, err = longarc("explain", recorded, "--build-index", "--dimensions", "192")
    assert status == 1
    assert "dimensions 128, not 192" in err
    with pytest.raises(OptionError, match="has its parameters from when it was built"):
        package.open_run(recorded).explain("a", method="indexed", parameters=bool)
    assert package.open_run(recorded).build_index(parameters=bool).about["dimensions"] == 128
    with pytest.raises(RunError, match=r"is of parameters .*, not \['classifier"):
        package.open_run(recorded).build_index(parameters=lambda n: n.startswith("classifier"))
    assert (index / "index.json").stat().st_mtime_ns == at


def test_several_processes_cannot_replace_an_index(longarc, recorded, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    status, _, err = longarc("explain", recorded, "--build-index", "--overwrite-index")
    assert status == 1
    assert "cannot replace an index together" in err


@pytest.mark.parametrize("words", [("--text", "a"), ("--build-index",)])
def test_a_run_without_a_path_says_how_to_record_one(longarc, trained, words):
    status, _, err = longarc("explain", trained, *words)
    assert status == 1
    assert f"longarc train --config {trained / 'config.yaml'} --record-path" in err


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 2, "name a table of texts, or give one text"),
        (("t.csv", "--text", "a"), 2, "name a table of texts, or give one text"),
        (("--text", "a", "--errors", "2"), 2, "or ask for --errors 3"),
        (("--errors", "2", "--of", "loss"), 2, "drop --label and --of"),
        (("--errors", "2", "--method", "effects"), 2, "drop --method effects"),
        (("--errors", "0"), 1, "--errors must be a whole number"),
        (("--text", "a", "--method", "index"), 1, "no method 'index'. Did you mean indexed"),
        (("--text", "a", "--dimensions", "64"), 1, "--dimensions is for an index"),
        (("--text", "a", "--method", "effects", "--tolerance", "1"), 1, "is for --method exact"),
        (("t.csv", "--text", "a", "--build-index"), 2, "name a table of texts, or give one text"),
        (("--text", "a", "--of", "logits"), 1, "no measure 'logits'"),
        (("--text", "a", "--out", "x.pdf"), 1, "x.pdf"),
        (("--text", "a", "--top", "0"), 1, "--top must be a whole number"),
        (("--text", " "), 1, "the text is empty, so there is nothing in it to explain"),
        (("--text", "", "--method", "indexed"), 1, "the text is empty"),
        (("--text", "pump", "--rows", "3"), 1, "--rows is for the rows of a table"),
        (("--text", "pump", "--out", "x.pdf"), 1, ".jsonl, .parquet, .html, .htm."),
    ],
)
def test_wrong_words(longarc, recorded, words, status, said):
    found, _, err = longarc("explain", recorded, *words)
    assert (found, said in err) == (status, True), err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--record-path", "--freeze"), "takes no training steps"),
        (("--record-path", "--regularizers", "fgm"), "several times a step"),
        (("--record-path", "--regularizers", "flooding"), "per_example: true"),
        (("--record-path", "--loss", "radius-margin"), "reads the head's weights"),
        (("--path-budget", "3"), "--path-budget is for --record-path"),
        (("--record-path", "--path-budget", "0.000001", "--no-baseline", "--epochs", "1"),
         "path budget"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded(longarc, tickets, tiny_model, tmp_path, words, said):
    status, _, err = longarc(
        "train", tickets, "--model", tiny_model, "--out", tmp_path / "r", "--text", "body",
        "--label", "topic", *words,
    )  # fmt: skip
    assert status == 1
    assert said in err
    assert not (tmp_path / "r").exists()


def test_two_processes_build_the_index_that_one_builds(longarc, recorded):
    """Each writes its shards, and one says what was built."""
    index = recorded / "path" / "index"
    shutil.rmtree(index, ignore_errors=True)  # other tests' has other options
    status, _, err = longarc("explain", recorded, "--build-index")
    assert status == 0, err
    alone = {path.name: path.read_bytes() for path in index.iterdir()}
    shutil.rmtree(index)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "longarc", "explain", recorded, "--build-index"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in index.iterdir()} == alone
    assert done.stdout.count("index  ") == 1
