"""longarc train --model lstm and its kin: trained, saved, opened, explained; what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertModel

import longarc
from longarc.cli.parser import parse_job
from longarc.data.labels import LabelSpace
from longarc.errors import Interrupted, ModelError, OptionError
from longarc.models.head import final_linear
from longarc.models.loading import is_recurrent, load_classifier, load_encoder, resolve_model
from longarc.models.recurrent.model import RecurrentModel
from longarc.models.recurrent.options import CELLS, POOLINGS
from longarc.models.recurrent.scratch import starting_tokenizer
from longarc.objectives.regularizers.registry import REGULARIZERS, build_regularizers
from longarc.training.config import TrainConfig
from longarc.training.model_defaults import PRETRAINED, RECURRENT
from longarc.training.pretraining.config import PretrainConfig
from longarc.training.pretraining.job import pretrain
from longarc.training.starting_model import starting_model

TABLE = {
    "text": [f"the {s} {w}" for s in ("pump", "valve", "oil", "motor") for w in
             ("leak is a noise", "is not in oil", "tax refund is due", "invoice is not in order")],
    "label": ["fault", "fault", "bill", "bill"] * 4,
}  # fmt: skip
QUICK = {"baseline": False, "precision": "fp32", "device": "cpu", "verbose": False,
         "batch_size": 8, "max_length": 16, "test_fraction": 0.25}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tiny, tmp_path_factory):
    """A random BERT of two layers with its tokenizer: what a recurrent model borrows from."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(tiny.make_config()).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small(encoder):
    """Options of a small model with that tokenizer."""
    return {"cell_size": 6, "embedding_size": 5, "tokenizer": encoder}


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A run of three epochs with its path and monitors."""
    return longarc.fit(
        TABLE, out=tmp_path_factory.mktemp("run") / "lstm", model="lstm", model_options=small,
        epochs=3, validation_fraction=0, record_path=True, path_budget=0.1, **QUICK,
    )  # fmt: skip


def start(encoder, cell="lstm", **options):
    """The model that a run would start from, and its tokenizer."""
    given = {"model": cell, "max_length": 16} | options
    config = TrainConfig(data="", out="run", **given)
    config.validate()
    tokenizer = starting_tokenizer(config.model, config.model_options, config.embeddings)
    torch.manual_seed(0)
    return starting_model(config, LabelSpace.from_labels(TABLE["label"]), tokenizer), tokenizer


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_made_saved_and_opened(cell, encoder, small, tmp_path):
    model, tokenizer = start(encoder, cell, model_options=small | {"layers": 2})
    model.save_pretrained(tmp_path)
    opened = longarc.load_model(tmp_path)
    assert opened.config.cell == cell
    assert opened.config.id2label == {0: "bill", 1: "fault"}
    batch = tokenizer(TABLE["text"][:2], return_tensors="pt", padding=True)
    torch.testing.assert_close(opened(**batch).logits, model.eval()(**batch).logits)
    assert final_linear(model) is model.classifier


def test_a_run_has_what_other_runs_have(trained):
    assert isinstance(trained, longarc.Run)
    assert (trained.path / "report.html").is_file()
    assert "longarc.load_model" in (trained.path / "model" / "README.md").read_text()
    assert trained.metrics["test"]["baselines"] == {}
    assert trained.evaluate(TABLE)["n"] == 16
    log = [json.loads(line) for line in (trained.path / "log.jsonl").read_text().splitlines()]
    assert {"update", "end"} <= {row["event"] for row in log}
    again = longarc.open_run(trained.path).predict_proba(TABLE["text"][:3])
    np.testing.assert_allclose(again, trained.predict_proba(TABLE["text"][:3]), atol=1e-6)


def test_contributions_add_up_and_leave_the_model_as_it_is(trained):
    before = trained.predict_proba(TABLE["text"])
    explained = trained.explain(TABLE["text"][0])
    assert np.abs(explained.contributions).sum() > 1e-3
    assert explained.relative_residual < 1e-3
    np.testing.assert_array_equal(trained.predict_proba(TABLE["text"]), before)


def test_a_stopped_run_ends_as_if_nothing_had_happened(small, tmp_path):
    """Dropout, word dropout and the order of documents go on where they were."""
    options = QUICK | {"model": "lstm", "model_options": small, "epochs": 20, "patience": 0}
    table = tmp_path / "table.jsonl"
    rows = [{"text": t, "label": y} for t, y in zip(*TABLE.values(), strict=True)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    longarc.fit(table, out=whole, **options)

    def stop_in_its_midst():
        while '"step": 10,' not in _text_of(broken / "log.jsonl"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=stop_in_its_midst, daemon=True)
    watcher.start()
    with pytest.raises(Interrupted, match="its state is saved"):
        longarc.fit(table, out=broken, **options)
    watcher.join()
    longarc.fit(table, out=broken, resume=True, **options)
    one, two = (load_file(run / "model" / "model.safetensors") for run in (whole, broken))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def _text_of(file):
    return file.read_text() if file.is_file() else ""


def test_config_yaml_says_what_was_settled(trained):
    saved = yaml.safe_load((trained.path / "config.yaml").read_text())
    assert {name: saved[name] for name in RECURRENT if name not in ("epochs", "batch_size")} == {
        name: value for name, value in RECURRENT.items() if name not in ("epochs", "batch_size")
    }
    assert saved["epochs"] == 3


def test_a_trained_one_goes_on_with_a_new_head(trained):
    folder = trained.path / "model"
    before = load_encoder(folder).state_dict()
    model = load_classifier(folder, labels=("a", "b", "c"), pooling="max-attention")
    assert model.classifier.weight.shape == (3, 24)
    assert model.config.pooling == "max-attention"
    for name, weight in model.recurrent.state_dict().items():
        assert torch.equal(weight, before[name])
    assert is_recurrent(folder)
    config = TrainConfig(model=str(folder), out="run")
    assert config.learning_rate == RECURRENT["learning_rate"]


@pytest.mark.parametrize("cell", ["lstm", "output-gated-gru"])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_changes_the_gradient(cell, name, encoder, small):
    options = {"dropout": 0.0, "word_dropout": 0.0}
    if name == "r-drop":  # there is nothing to agree on without dropout
        options["dropout"] = 0.5
    model, tokenizer = start(encoder, cell, model_options=small | options)
    batch = dict(tokenizer(TABLE["text"], return_tensors="pt", padding=True))
    batch["labels"] = torch.tensor([1, 1, 0, 0] * 4)
    gradients = []
    chosen_one = {name: {"level": 1.0}} if name == "flooding" else name
    for chosen in ([], build_regularizers([chosen_one])):
        torch.manual_seed(0)
        longarc.regularized_backward(model, batch, longarc.CrossEntropyLoss(), chosen)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert gradients[1].isfinite().all()
    assert (gradients[1] - gradients[0]).norm() > 1e-7 * gradients[0].norm()


def test_borrowed_vectors(encoder):
    model, tokenizer = start(encoder, embeddings=encoder, model_options={"cell_size": 6})
    table = BertModel.from_pretrained(encoder).embeddings.word_embeddings.weight
    found = model.recurrent.embeddings.weight
    rows = [i for i in range(len(tokenizer)) if i != tokenizer.pad_token_id]
    assert torch.equal(found[rows], table[rows])
    assert not found[tokenizer.pad_token_id].any()


def test_random_vectors_and_the_start_follow_the_seed(encoder, small):
    (first, tokenizer), (second, _) = (start(encoder, model_options=small) for _ in range(2))
    assert first.recurrent.embeddings.weight.shape == (len(tokenizer), 5)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    deviation = float(first.recurrent.embeddings.weight.std())
    assert deviation == pytest.approx(0.1, rel=0.15)
    assert tokenizer.model_max_length > 10**9, "no document is too long"


def test_defaults_suit_the_model_and_give_way_to_what_is_named():
    fine, scratch = (TrainConfig(model=name) for name in ("minilm", "gru"))
    assert {name: getattr(fine, name) for name in PRETRAINED} == PRETRAINED
    assert {name: getattr(scratch, name) for name in RECURRENT} == RECURRENT
    named = TrainConfig(model="gru", learning_rate=1e-4, epochs=3, pooling="mean")
    assert (named.learning_rate, named.epochs, named.pooling) == (1e-4, 3, "mean")
    assert dataclasses.replace(named, seed=1).learning_rate == 1e-4
    assert (fine.embedding_factor, scratch.embedding_factor) == (1, 1)
    borrowed = TrainConfig(model="gru", embeddings="minilm")
    assert borrowed.embedding_factor == 0.1
    assert TrainConfig(model="gru", embeddings="minilm", embedding_factor=1).embedding_factor == 1


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_is_taken(pooling, encoder, small):
    model, _ = start(encoder, pooling=pooling, model_options=small)
    assert model.config.pooling == pooling


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "lstm", "attention": "performer"}, "--attention is for Transformers"),
        ({"model": "gru", "positions": "copy"}, "--positions is for Transformers"),
        ({"model": "gru", "residual_attention": "on"}, "--residual-attention is for"),
        ({"model": "rnn", "pooling": "cls"}, "--pooling cls is not for rnn"),
        ({"model": "lstm", "freeze": True}, "--freeze keeps an encoder as it is"),
        ({"model": "lstm", "model_options": {"cells": 3}}, "no option 'cells'.*cell_size"),
        ({"model": "lstm", "model_options": {"layers": 0}}, "layers must be a whole number"),
        ({"model": "lstm", "model_options": {"dropout": 1.5}}, "dropout must be"),
        ({"model": "lstm", "model_options": {"bidirectional": "no"}}, "True or False"),
        ({"model": "lstm", "model_options": {"tokenizer": 3}}, "tokenizer must name a model"),
        ({"model": "minilm", "model_options": {"layers": 2}}, "--model-options is for a model"),
        ({"model": "minilm", "embeddings": "minilm"}, "--embeddings is for a model"),
        ({"model": "minilm", "pooling": "max"}, "--pooling max is not for minilm.*mean, cls"),
        ({"freeze": True, "embedding_factor": 0.1}, "so --embedding-factor would change nothing"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_any_work(options, said):
    with pytest.raises(OptionError, match=said):
        TrainConfig(data="none.csv", out="run", **options).validate()


def test_two_tokenizers_and_two_widths_are_refused(encoder):
    with pytest.raises(OptionError, match="brings its own tokenizer"):
        start(encoder, embeddings=encoder, model_options={"tokenizer": encoder})
    with pytest.raises(OptionError, match="have 32 numbers"):
        start(encoder, embeddings=encoder, model_options={"embedding_size": 5})


def test_a_cell_is_no_pretrained_model():
    with pytest.raises(ModelError, match="to train from scratch"):
        resolve_model("lstm")
    with pytest.raises(ModelError, match=r"Did you mean .*lstm"):
        resolve_model("lstmm")


def test_masked_tokens_first_and_then_labels(small, tmp_path):
    """longarc pretrain --model gru --objective mlm, whose folder train goes on from."""
    config = PretrainConfig(
        data="<dict in memory>", out=str(tmp_path / "read"), model="gru", model_options=small,
        objective="mlm", batch_size=4, max_length=16, held_out=10, evaluations=1, device="cpu",
    )  # fmt: skip
    texts = [f"{text} {i}" for i, text in enumerate(TABLE["text"] * 4)]
    folder = pretrain(config, data={"text": texts})
    assert config.rate == RECURRENT["learning_rate"]
    assert not (folder.model / "modules.json").exists()
    encoder = longarc.load_model(folder.model)
    assert type(encoder) is RecurrentModel
    model = load_classifier(folder.model, labels=("a", "b"), pooling="attention")
    for name, weight in model.recurrent.state_dict().items():
        assert torch.equal(weight, encoder.state_dict()[name])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "lstm"}, "--objective mlm first"),
        ({"model": "minilm", "model_options": {"layers": 2}}, "--model-options is for a model"),
        ({"model": "lstm", "objective": "mlm", "model_options": {"cells": 2}}, "no option 'cells'"),
    ],
    ids=str,
)
def test_what_pretraining_from_scratch_refuses(options, said):
    with pytest.raises(OptionError, match=said):
        PretrainConfig(data="none.csv", out="run", **options).validate()


def test_the_command_line_and_a_saved_config_say_the_same(trained):
    def parse(*words):
        return parse_job("train", "", "longarc train x.csv --out r", TrainConfig, list(words))[0]

    typed = parse(
        "x.csv", "--out", "r", "--model", "gru", "--model-options", '{"layers": 2}', "--epochs", "4"
    )
    assert (typed.model_options, typed.epochs) == ({"layers": 2}, 4)
    assert typed.learning_rate == RECURRENT["learning_rate"]
    again = parse("x.csv", "--config", str(trained.path / "config.yaml"), "--out", "other")
    # The table that is typed counts more than the file's, as every typed word does.
    assert again.differences(trained.config) == {"data": ("x.csv", trained.config.data)}
    assert parse("x.csv", "--out", "r").learning_rate == PRETRAINED["learning_rate"]
