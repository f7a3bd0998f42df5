"""Regularizers in the trainer, on the command line, and under two processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import longarc
from longarc.errors import ModelError, OptionError
from longarc.objectives.regularizers.batch import Batch
from longarc.objectives.regularizers.registry import REGULARIZERS, build_regularizers
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.run_folder import open_run_folder
from longarc.training.trainer import Trainer
from shared_draws import SharedDropout, shared_noise

OPTIONS = {
    "flooding": {"level": 1.13}, "gradient-penalty": {"weight": 0.05, "warmup": 0.0},
    "input-gradient-penalty": {"weight": 0.02}, "sam": {"rho": 0.2}, "r-drop": {"alpha": 10.0},
}  # fmt: skip
ALONE = {name: [{name: OPTIONS.get(name, {})}] for name in REGULARIZERS}
EXACT = {"method": "double-backward"}
SETTINGS = ALONE | {
    "exact-gradient-penalty": [{"gradient-penalty": OPTIONS["gradient-penalty"] | EXACT}],
    "exact-input-gradient-penalty": [{"input-gradient-penalty": {"weight": 0.02} | EXACT}],
    "sam-on-half": [{"sam": {"rho": 0.2, "fraction": 0.5}}],
    "fgm-with-r-drop": [{"r-drop": {"alpha": 10.0}}, "fgm"],
}
# What each is compared with: a plain step, or two passes that do not have to agree.
OFF = {"r-drop": [{"r-drop": {"alpha": 0.0}}], "fgm-with-r-drop": [{"r-drop": {"alpha": 0.0}}]}
TOGETHER = ["fgm", {"gradient-penalty": {"weight": 0.05}}, {"flooding": {"level": 2.6}}]


@pytest.fixture
def train(tiny, tokenizer, tmp_path):
    """Three steps of SGD on a tiny BERT in float64; the trainer, its model trained."""

    def run(regularizers, *, batch=8, accumulation=1, rows=24, dropout=False, **options):
        texts, target = tiny.make_table(rows)
        model = tiny.make_model().double()
        if dropout:
            model.dropout = SharedDropout()
        trainer = Trainer(
            model,
            tiny.make_arguments(
                tmp_path, per_device_train_batch_size=batch, max_steps=3,
                gradient_accumulation_steps=accumulation, **options,
            ),
            train_dataset=Documents(texts, tokenizer, 48, target),
            data_collator=PaddedBatches(tokenizer),
            processing_class=tokenizer,
            loss=longarc.LogitAdjustedLoss([30, 10, 3]),
            regularizers=build_regularizers(regularizers),
        )  # fmt: skip
        trainer.train()
        return trainer

    return run


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def apart(one, two):
    """The largest difference of two sets of weights."""
    assert one.keys() == two.keys()
    return max(float((one[key] - two[key]).abs().max()) for key in one)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rows", [24, 13])
def test_weights_do_not_depend_on_how_a_step_is_cut(train, name, rows, monkeypatch):
    if name == "sam-on-half" and rows == 13:
        pytest.skip("half of five documents is not half of four and of one")
    monkeypatch.setattr(Batch, "noise", shared_noise)
    more = {"rows": rows, "dropout": "r-drop" in name}
    expected = weights(train(SETTINGS[name], **more))
    assert apart(expected, weights(train(OFF.get(name, []), **more))) > 1e-4
    for batch, accumulation in [(4, 2), (2, 4)]:
        found = weights(train(SETTINGS[name], batch=batch, accumulation=accumulation, **more))
        assert apart(found, expected) < 1e-9


def test_the_logged_loss_is_the_plain_one(train):
    plain = train([]).state.log_history[0]["loss"]
    for name in REGULARIZERS:
        trainer = train([{name: OPTIONS.get(name, {})}])
        assert trainer.state.log_history[0]["loss"] == pytest.approx(plain, abs=1e-6), name
        assert trainer.state.log_history[0]["grad_norm"] > 0


def test_special_tokens_are_left_alone(train, tokenizer, monkeypatch):
    seen = []

    def logits(self, change=None, **more):
        if change is not None and change.detach().any():
            seen.append((self.inputs["input_ids"], change.detach().abs().sum(2)))
        return original(self, change, **more)

    original = Batch.logits
    monkeypatch.setattr(Batch, "logits", logits)
    train(["fgm"])
    ids, moved = seen[0]
    special = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
    touched = ~torch.isin(ids, torch.tensor(special))
    assert torch.equal(moved > 0, touched)


def test_a_resumed_run_is_the_same_run(tiny, tokenizer, tmp_path):
    """Warm-up, dropout and VAT's noise go on where the checkpoint was taken."""
    texts, target = tiny.make_table(24)

    def make(folder):
        return Trainer(
            tiny.make_model(dropout=0.2),
            tiny.make_arguments(
                folder, num_train_epochs=2, save_strategy="epoch", save_total_limit=3
            ),
            train_dataset=Documents(texts, tokenizer, 48, target),
            data_collator=PaddedBatches(tokenizer),
            loss=longarc.CrossEntropyLoss(),
            regularizers=build_regularizers(["vat", *TOGETHER]),
        )

    whole = make(tmp_path)
    whole.train()
    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert apart(weights(whole), weights(resumed)) == 0


def test_two_processes_take_the_steps_of_one(run_worker, tiny, tokenizer, tmp_path):
    def job(chosen, **training):
        more = {"learning_rate": 0.02, "num_train_epochs": 1} | training
        return {"rows": 24, "loss": "cross-entropy", "regularizers": chosen, "training": more,
                "head_learning_rate": 0.02, "dropout": "r-drop" in str(chosen)}  # fmt: skip

    def in_one(name, job, batch=8):
        (tmp_path / name).mkdir()
        more = {"per_device_train_batch_size": batch}
        tiny.train_in_parallel(tmp_path / name, job | {"training": job["training"] | more})
        return load_file(tmp_path / name / "weights-0.safetensors")

    jobs = {name: job(chosen) for name, chosen in SETTINGS.items()}
    jobs["together"] = job(TOGETHER)
    jobs["accumulated"] = job(TOGETHER, gradient_accumulation_steps=2)
    sizes = dict.fromkeys(jobs, 8) | {"accumulated": 4}
    expected = {name: in_one(name, jobs[name], sizes[name]) for name in jobs}

    # Each does a hundred times as much as the comparison below would overlook.
    without = {"": in_one("plain", job([]))}
    without["r-drop"] = without["fgm-with-r-drop"] = in_one("two-passes", job(OFF["r-drop"]))
    for name in SETTINGS:
        assert apart(expected[name], without.get(name, without[""])) > 2e-3, name
    for left_out, one in enumerate(TOGETHER):
        others = [other for other in TOGETHER if other is not one]
        weights = in_one(f"without-{left_out}", job(others))
        assert apart(expected["together"], weights) > 2e-3, one

    # At the first step one process is above the level, the other below it, and so is their mean.
    texts, target = tiny.make_table(8)
    documents = Documents(texts, tokenizer, 48, target)
    batch = PaddedBatches(tokenizer)([documents[i] for i in range(8)])
    labels = batch.pop("labels")
    losses = longarc.CrossEntropyLoss()(tiny.make_model()(**batch).logits, labels, reduction="none")
    level = OPTIONS["flooding"]["level"]
    assert losses[:4].mean() < losses.mean() < level < losses[4:].mean()

    two = tmp_path / "two"
    two.mkdir()
    for name, one in jobs.items():
        more = {"per_device_train_batch_size": sizes[name] // 2}
        jobs[name] = one | {"training": one["training"] | more}
    run_worker(two, jobs, processes=2)
    for name in jobs:
        for rank in (0, 1):
            found = load_file(two / name / f"weights-{rank}.safetensors")
            assert apart(found, expected[name]) < 2e-5, name


FAMILIES = {
    "bert": {}, "roberta": {"pad_token_id": 1}, "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1}, "data2vec-text": {"pad_token_id": 1},
    "electra": {"embedding_size": 8}, "albert": {"embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "mpnet": {"pad_token_id": 1}, "roberta-prelayernorm": {"pad_token_id": 1},
    "modernbert": {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3,
                   "sep_token_id": 3},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_embeddings_stand_for_ids_in_every_family(family, side):
    config = AutoConfig.for_model(
        family, vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=40, num_labels=3,
        **FAMILIES[family],
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    generator = torch.Generator().manual_seed(0)
    padding = config.pad_token_id
    ids = torch.randint(4, 60, (3, 12), generator=generator)
    for row, pads in enumerate((0, 3, 7)):
        ids[row, (slice(0, pads) if side == "left" else slice(12 - pads, 12))] = padding
    if side == "left" and not hasattr(model.base_model, "pooler"):
        ids[:, 0] = 4  # these classify by the first token
    inputs = {"input_ids": ids, "attention_mask": (ids != padding).long()}
    loss = longarc.CrossEntropyLoss()
    batch = Batch(
        model, inputs, torch.zeros(3).long(), loss, [longarc.FGM()], per_loss=1.0, per_row=1.0
    )
    torch.testing.assert_close(batch.probe(), model(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_a_trainer_without_a_loss(tiny, tmp_path):
    with pytest.raises(OptionError, match="FGM need a loss"):
        Trainer(tiny.make_model(), tiny.make_arguments(tmp_path), regularizers=[longarc.FGM()])


def test_noise_of_the_embedding_layer_is_the_same_in_every_pass(train):
    """NEFTune adds noise in a hook: a second pass with other noise would be a large difference."""

    def norms(*chosen):
        trainer = train([*chosen], neftune_noise_alpha=5.0, seed=3)
        return [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]

    plain = norms("fgm")
    assert norms("fgm", {"gradient-penalty": {"epsilon": 1e-7, "weight": 1e-7, "warmup": 0.0}}) == (
        pytest.approx(plain, rel=1e-2)
    )


@pytest.mark.parametrize("family", ["gpt2", "longformer"])
def test_a_model_that_reads_more_from_ids_than_embeddings(family, tiny, tmp_path):
    sizes = {"gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0},
             "longformer": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                            "intermediate_size": 16, "attention_window": [4]}}  # fmt: skip
    config = AutoConfig.for_model(family, vocab_size=60, num_labels=3, **sizes[family])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    with pytest.raises(ModelError, match="inputs_embeds"):
        Trainer(
            model, tiny.make_arguments(tmp_path), loss=longarc.CrossEntropyLoss(),
            regularizers=[longarc.FGM()],
        )  # fmt: skip
    assert model.training


def test_a_model_that_takes_no_embeddings(tiny, tmp_path):
    model = torch.nn.Linear(2, 2)
    more = {"loss": longarc.CrossEntropyLoss()}
    with pytest.raises(ModelError, match="takes no inputs_embeds"):
        Trainer(model, tiny.make_arguments(tmp_path), regularizers=[longarc.FGM()], **more)
    Trainer(model, tiny.make_arguments(tmp_path), regularizers=[longarc.SAM()], **more)


@pytest.mark.real
def test_a_run_with_regularizers(hard_table, tmp_path):
    run = longarc.fit(
        hard_table, out=tmp_path / "run", regularizers=["fgm", {"flooding": {"level": 0.2}}],
        epochs=1, max_length=16, baseline=False, verbose=False, device="cpu",
    )  # fmt: skip
    assert open_run_folder(run.path).config().regularizers == ["fgm", {"flooding": {"level": 0.2}}]
    assert "fgm, flooding (level 0.2)" in (run.path / "report.html").read_text()
    losses = [
        record["loss"]
        for line in (run.path / "log.jsonl").read_text().splitlines()
        if (record := json.loads(line))["event"] == "train"
    ]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regularizers": ["fgm"], "freeze": True}, "--freeze takes no training steps"),
        ({"regularizers": "fgm"}, "a list, such as"),
        ({"regularizers": ["fgn"]}, "Did you mean fgm"),
        ({"regularizers": [longarc.FGM()]}, "is no regularizer. Expected a name"),
        ({"regularizers": [{"fgm": {"epsilon": -1}}]}, "epsilon must be"),
    ],
)
def test_options_that_cannot_be(hard_table, tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        longarc.fit(hard_table, out=tmp_path / "run", verbose=False, **options)
    assert not (tmp_path / "run").exists()
