"""The pretraining job on a tiny BERT: what it writes; it resumes, learns, and sees collapse."""

from __future__ import annotations

import html
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, BertModel, TrainerCallback

import longarc
from longarc.dynamics.collapse_detector import CollapseDetector
from longarc.errors import DataError, Interrupted, ModelError, OptionError, RunError
from longarc.models.loading import load_encoder, load_tokenizer
from longarc.models.pooling import mean_pool
from longarc.models.record import recorded_changes
from longarc.training.pretraining import job, watch
from longarc.training.pretraining.codes import encode
from longarc.training.pretraining.config import PretrainConfig
from longarc.training.pretraining.folder import PretrainFolder
from longarc.training.run_folder import open_run_folder

NAMES = np.array(["pump", "invoice", "contract"])
QUICK: dict[str, Any] = {
    "batch_size": 8, "max_length": 24, "held_out": 12, "labelled": 30, "evaluations": 2,
    "learning_rate": 1e-3, "precision": "fp32", "device": "cpu", "verbose": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    BertModel(tiny.make_config(dropout=0.1)).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def table(tiny) -> dict[str, list]:
    """100 texts, an empty one and a repeated one; every fourth has no label."""
    texts, target = tiny.make_table(100)
    texts = [f"{text} {i}" for i, text in enumerate(texts)]
    labels = [None if i % 4 == 0 else NAMES[y] for i, y in enumerate(target)]
    return {"text": [*texts, " ", texts[1]], "topic": [*labels, None, labels[1]]}


@pytest.fixture(scope="module")
def finished(model, table, tmp_path_factory):
    """A finished SimCSE run with labels that keeps all its files."""
    return longarc.pretrain(
        table, label="topic", out=tmp_path_factory.mktemp("runs") / "run", model=model, epochs=2,
        keep_checkpoints=True, **QUICK,
    )  # fmt: skip


def bare(table: dict[str, list], **options: Any) -> PretrainFolder:
    """The job alone, without the card and the charts that follow it."""
    options = {**QUICK, **options, "out": str(options["out"])}
    del options["verbose"]
    return job.pretrain(PretrainConfig(data="<dict in memory>", **options), data=table)


def log_of(run: Path, event: str) -> list[dict]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["event"] == event]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_the_folder_holds_what_its_schema_says(finished, table):
    assert isinstance(finished, longarc.Pretraining)
    files = {p.name for p in finished.path.iterdir()}
    assert files == {
        "config.yaml", "documents", "checkpoints", "log.jsonl", "metrics.json", "model",
        "report.html",
    }  # fmt: skip
    metrics = finished.metrics
    tokenizer = load_tokenizer(finished.config.model)
    kept = [text for text in table["text"] if text.strip()]
    lengths = [len(tokenizer(text)["input_ids"]) for text in kept]
    told = metrics["documents"]
    assert (told["held_out"], told["labelled"], told["empty"]) == (12, 30, 1)
    assert told["train"] in (len(kept) - 12, len(kept) - 13)  # the repeated text may be held out
    assert told["tokens"] == sum(lengths)
    assert told["longer"] == pytest.approx(np.mean([length > 24 for length in lengths]))
    assert metrics["collapse"] is None
    for part in ("start", "end"):
        for name in ("knn", "probe"):
            for figure in metrics[part][name].values():
                assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        assert metrics[part]["n"] == 12
    assert [r["step"] for r in log_of(finished.path, "evaluation")] == [0, 11, 22]
    assert [r["step"] for r in log_of(finished.path, "collapse")] == list(range(23))
    assert finished.folder.provenance()["data_sha256"]
    for path in finished.path.rglob("*"):
        if path.is_file():
            assert path.suffix not in {".bin", ".pt", ".pth", ".pkl"}


def test_the_encoder_opens_in_transformers_and_gives_the_codes(finished):
    texts = ["the pump leaks oil", "invoice", "a b c d e f g h i j k l m n o p q r s t u v w x y z"]
    encoder = AutoModel.from_pretrained(finished.model).eval()
    tokenizer = load_tokenizer(finished.model)
    expected = []
    for text in texts:  # one at a time: no padding
        batch = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            code = mean_pool(encoder(**batch).last_hidden_state)[0]
        expected.append((code / code.norm()).numpy())
    assert finished.encode(texts) == pytest.approx(np.stack(expected), abs=1e-6)


def test_sentence_transformers_opens_the_encoder_and_gives_the_codes(finished):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    opened = sentence_transformers.SentenceTransformer(str(finished.model), device="cpu")
    texts = ["the pump leaks oil", "invoice", "a b c d e f g h i j k l m n o p q r s t u v w x y z"]
    assert opened.max_seq_length == 24
    assert opened.encode(texts) == pytest.approx(finished.encode(texts), abs=1e-6)


def test_the_files_are_those_of_sentence_transformers(finished):
    read = lambda name: json.loads((finished.model / name).read_text())  # noqa: E731
    assert [(m["path"], m["type"]) for m in read("modules.json")] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Normalize", "sentence_transformers.models.Normalize"),
    ]
    assert all((finished.model / m["path"]).is_dir() for m in read("modules.json"))
    assert read("sentence_bert_config.json") == {"max_seq_length": 24, "do_lower_case": False}
    pooling = read("1_Pooling/config.json")
    assert pooling["word_embedding_dimension"] == 32
    assert [name for name, value in pooling.items() if value is True] == [
        "pooling_mode_mean_tokens"
    ]
    card = (finished.model / "README.md").read_text()
    assert "library_name: sentence-transformers" in card
    assert "| Uniformity |" in card


def test_train_takes_the_encoder(finished, table, tmp_path):
    rows = [i for i, label in enumerate(table["topic"]) if label is not None]
    labelled = {name: [column[i] for i in rows] for name, column in table.items()}
    run = longarc.fit(
        labelled, text="text", label="topic", model=str(finished.model), freeze=True,
        baseline=False, max_length=24, device="cpu", verbose=False, out=tmp_path / "run",
    )  # fmt: skip
    ours = weights(finished.path)
    theirs = load_file(run.folder.model / "model.safetensors")
    assert all(torch.equal(theirs[f"encoder.{name}"], ours[name]) for name in ours)


class StopAt(TrainerCallback):
    """Ctrl-C after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("objective", "step"), [("simcse", 7), ("byol", 15), ("simsiam", 11), ("mlm", 15)]
)
def test_an_interrupted_run_resumes_to_the_same_weights(
    objective, step, model, table, tmp_path, monkeypatch
):
    options = {"model": model, "objective": objective, "epochs": 2}
    if objective == "byol":
        options["shuffle"] = 3
    whole = bare(table, out=tmp_path / "whole", **options)
    plain = job._Job._callbacks
    with monkeypatch.context() as patch:
        patch.setattr(job._Job, "_callbacks", lambda *a: [StopAt(step), *plain(*a)])
        with pytest.raises(Interrupted, match=f"after step {step} of 22"):
            bare(table, out=tmp_path / "broken", **options)
    assert not (tmp_path / "broken" / "model").exists()
    with pytest.raises(RunError, match=r"other options.*epochs"):
        bare(table, out=tmp_path / "broken", resume=True, **options | {"epochs": 3})
    broken = bare(table, out=tmp_path / "broken", resume=True, **options)
    assert same(whole.path, broken.path)
    for event in ("collapse", "evaluation", "train"):
        one, two = (log_of(run.path, event) for run in (whole, broken))
        assert [{**r, "time": 0} for r in one] == [{**r, "time": 0} for r in two]
    for part in ("start", "end"):
        assert whole.metrics()[part] == broken.metrics()[part]


def test_the_seed_decides(model, table, tmp_path):
    options = {"model": model, "objective": "simcse", "evaluations": 1}
    runs = [
        bare(table, out=tmp_path / str(i), seed=seed, **options) for i, seed in enumerate((3, 3, 4))
    ]
    assert same(runs[0].path, runs[1].path)
    assert not same(runs[0].path, runs[2].path)


def test_masked_tokens_are_learnt(model, table, tmp_path):
    run = bare(
        table, out=tmp_path / "run", model=model, objective="mlm", epochs=8, learning_rate=3e-3,
        evaluations=1,
    )  # fmt: skip
    losses = [r["loss"] for r in log_of(run.path, "train")]
    assert np.mean(losses[-11:]) < np.mean(losses[:11]) - 0.5
    assert not any(name.startswith("cls.") for name in weights(run.path))
    AutoModel.from_pretrained(run.model)


COLLAPSING: dict[str, Any] = {
    "objective": "simsiam", "stop_gradient": False, "epochs": 5, "head_norm": "layer",
    **QUICK, "learning_rate": 1e-2, "head_learning_rate": 1e-2, "evaluations": 1,
}  # fmt: skip


def test_a_collapse_stops_the_run_and_is_explained(model, table, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ModelError, match=r"(?s)collapse.*--objective simcse.*report\.html"):
        longarc.pretrain(table, out=out, model=model, **COLLAPSING)
    assert not (out / "model").exists()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["collapse"]["onset"] <= metrics["collapse"]["step"] == metrics["steps"] < 55
    (alarm,) = log_of(out, "alarm")
    assert metrics["collapse"]["message"] in (page := (out / "report.html").read_text())
    assert "no model was saved" in page
    assert log_of(out, "collapse")[-1]["step"] == alarm["step"]
    with pytest.raises(RunError, match="collapsed"):
        longarc.pretrain(table, out=out, model=model, resume=True, **COLLAPSING)


def test_a_collapse_can_be_let_go_on(model, table, tmp_path, capsys):
    run = longarc.pretrain(
        table, out=tmp_path / "run", model=model, stop_on_collapse=False,
        **COLLAPSING | {"verbose": True},
    )  # fmt: skip
    message = run.metrics["collapse"]["message"]
    assert " ".join(capsys.readouterr().out.split()).count(f"warning: {message}") == 1
    assert run.metrics["steps"] == 55
    assert run.metrics["collapse"]["step"] < 55
    assert "Its codes collapsed" in (run.model / "README.md").read_text()


def test_a_collapse_too_late_for_the_alarm_is_told(model, table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(watch, "CollapseDetector", lambda: CollapseDetector(patience=1000))
    run = longarc.pretrain(
        table, out=tmp_path / "run", model=model, **COLLAPSING | {"verbose": True}
    )  # fmt: skip
    assert run.metrics["collapse"] is None
    said = " ".join(capsys.readouterr().out.split())
    since = run.metrics["late_collapse"]["onset"]
    assert 0 < since < 55
    told = f"codes were near collapse from step {since} to the end, 55,"
    assert f"warning: The {told}" in said
    assert told in html.unescape((run.path / "report.html").read_text())
    assert told in (run.model / "README.md").read_text()


def test_codes_that_are_no_numbers_end_the_run(model, table, tmp_path):
    """The loss of the step that spoilt them was one still."""
    options = QUICK | {"learning_rate": 1e38, "head_learning_rate": 1e38, "warmup": 0.0}
    with pytest.raises(ModelError, match="no numbers: the training diverged"):
        longarc.pretrain(
            table, out=tmp_path / "run", model=model, objective="simsiam", max_grad_norm=0,
            epochs=2, **options,
        )  # fmt: skip
    assert not (tmp_path / "run" / "model").exists()


def test_an_interrupted_reading_goes_on(model, table, tmp_path, monkeypatch):
    from longarc.data import token_file

    monkeypatch.setattr(token_file, "BATCH", 20)
    options = {"model": model, "evaluations": 1}
    plain, calls = token_file._Writing.add, []

    def add(self, texts, *rest):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        plain(self, texts, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(token_file._Writing, "add", add)
        with pytest.raises(Interrupted, match="resume=True"):
            bare(table, out=tmp_path / "run", **options)
    changed = {**table, "text": ["other", *table["text"][1:]]}
    with pytest.raises(RunError, match="have changed"):
        bare(changed, out=tmp_path / "run", resume=True, **options)
    run = bare(table, out=tmp_path / "run", resume=True, **options)
    assert run.metrics()["documents"]["empty"] == 1


def test_chunks_change_the_memory_and_not_the_result(tiny, table, tmp_path):
    torch.manual_seed(0)
    BertModel(tiny.make_config(dropout=0.0)).save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "evaluations": 1, "learning_rate": 1e-4}
    one, two = (
        weights(bare(table, out=tmp_path / str(chunk), chunk=chunk, **options).path)
        for chunk in (None, 3)
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=1e-4)


def test_an_encoder_with_stretched_positions_is_adapted(tiny, table, tmp_path):
    torch.manual_seed(0)
    encoder, tokenizer = BertModel(tiny.make_config(dropout=0.1)), tiny.make_tokenizer()
    longarc.stretch_positions(encoder, 200, tokenizer=tokenizer)
    encoder.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "max_length": 150, "evaluations": 1}
    run = bare(table, out=tmp_path / "run", **options)
    assert recorded_changes(load_encoder(run.model).config)["positions"]["max_length"] == 200
    long = ["pump " * 140, "pump " * 70 + "invoice " * 70]
    codes = encode(run, long)
    assert float(codes[0] @ codes[1]) < 1 - 1e-4  # what stands behind token 64 is read
    with pytest.raises(ModelError, match="was changed by longarc"):
        bare(table, out=tmp_path / "mlm", objective="mlm", **options)
    assert not (tmp_path / "mlm").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "moco"}, "--objective is 'moco'"),
        ({"objektive": "mlm"}, "Did you mean objective"),
        ({"temperature": 0.1, "objective": "byol"}, "--temperature is for --objective simcse"),
        ({"crop_min": 0.2, "views": "whole"}, "--crop-min is for --views crops"),
        ({"overlap": False, "crop_max": 0.6}, "--crop-max 0.5"),
        ({"crop_min": 0.6}, "shortest"),
        ({"batch_size": 1}, "at least 2"),
        ({"max_length": 65}, "positions for 64 tokens"),
        ({"chunk": 4, "objective": "mlm"}, "--chunk is for"),
        ({"mask": 0.0, "objective": "mlm"}, "no tokens to restore"),
        ({"learning_rate": "fast"}, "expected a number"),
        ({"resume": True, "overwrite": True}, "Drop one"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, message, model, table, tmp_path):
    given = {"model": model, **QUICK} | options
    with pytest.raises(OptionError, match=message):
        longarc.pretrain(table, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_views_that_nothing_makes_different_are_refused(tiny, table, tmp_path):
    BertModel(tiny.make_config(dropout=0.0)).save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    given = {"model": str(tmp_path / "model"), "views": "whole", **QUICK}
    with pytest.raises(OptionError, match="dropout alone"):
        longarc.pretrain(table, out=tmp_path / "run", **given)


def test_too_few_documents_leave_nothing_behind(model, table, tmp_path):
    few = {"text": table["text"][:9]}
    with pytest.raises(DataError, match="smaller --batch-size"):
        longarc.pretrain(few, out=tmp_path / "run", model=model, **QUICK)
    assert not (tmp_path / "run").exists()
    bad = {"text": [*table["text"], ["a", "list"]]}
    with pytest.raises(DataError, match="row 103"):
        longarc.pretrain(bad, text="text", out=tmp_path / "run", model=model, **QUICK)
    assert not (tmp_path / "run").exists()


def test_each_kind_of_run_refuses_the_others_verbs(finished, tmp_path):
    with pytest.raises(RunError, match=r"longarc train DATA --model .*model"):
        longarc.open_run(finished.path)
    with pytest.raises(RunError, match="longarc pretrain"):
        open_run_folder(finished.path, complete=False)
    with pytest.raises(RunError, match="complete run"):
        longarc.pretrain({"text": ["a"]}, out=finished.path)
