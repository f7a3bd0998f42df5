"""Runs that read more tokens than the encoder was made for, and with another attention."""

from __future__ import annotations

import json

import numpy as np
import pytest

import longarc
from longarc.errors import ModelError, OptionError
from longarc.models.attention.interface import attention_layers

pytestmark = pytest.mark.real

TOPICS = {"pump": "oil leaks from the valve", "bill": "the amount is not what was agreed"}


@pytest.fixture(scope="module")
def late():
    """Documents whose topic is named only after 512 tokens of the same words."""
    filler = "as was said before, see what follows; " * 64
    rows = [
        (f"number {i} {filler} {sentence}", name)
        for i in range(8)
        for name, sentence in TOPICS.items()
    ]
    return {"text": [text for text, _ in rows], "label": [name for _, name in rows]}


@pytest.fixture(scope="module")
def fit(fit_frozen):
    return lambda data, **options: fit_frozen(data, **{"test_fraction": 0.4} | options)


@pytest.fixture(scope="module")
def stretched(late, fit):
    return fit(late, max_length=640, positions="hierarchical", attention="local-clustered")


def test_what_stands_past_the_trained_length_is_read(late, fit, stretched):
    short = fit(late, max_length=512)
    assert short.metrics["test"]["model"]["accuracy"]["value"] < 0.9
    assert stretched.metrics["test"]["model"]["accuracy"]["value"] == 1.0


def test_the_run_opens_with_its_positions_and_attention(late, stretched):
    opened = longarc.open_run(stretched.path)
    again = opened.predict_proba(late["text"][:4])
    np.testing.assert_allclose(again, stretched.predict_proba(late["text"][:4]), atol=1e-6)
    model = longarc.load_model(stretched.path)
    assert len(attention_layers(model)) == 6
    assert model.base_model.config.max_position_embeddings == 640
    config = json.loads((stretched.path / "model" / "config.json").read_text())
    assert config["encoder"]["longarc"]["positions"]["max_length"] == 640
    assert "/" not in config["encoder"].get("_name_or_path", "")


def test_its_model_goes_on_in_another_run(late, fit, stretched):
    more = fit(late, model=str(stretched.path / "model"), max_length=640)
    model = longarc.load_model(more.path)
    assert len(attention_layers(model)) == 6
    assert more.metrics["test"]["model"]["accuracy"]["value"] == 1.0


def test_learned_attention_is_fitted_before_the_training(late, fit):
    run = fit(late, max_length=300, attention="learned", attention_minutes=0.05)
    told = json.loads((run.path / "attention.json").read_text())
    assert told["steps"] > 0
    assert told["cosine_after"] > 0.9
    assert len(told["layers"]) == 6
    fitted = longarc.load_model(run.path)
    fresh = longarc.set_attention(longarc.load_model(run.path), "learned")
    pairs = zip(attention_layers(fitted), attention_layers(fresh), strict=True)
    assert any(
        not bool((a == b).all())
        for (_, one), (_, two) in pairs
        for a, b in zip(
            one.attention_kernel.parameters(), two.attention_kernel.parameters(), strict=True
        )
    )


def test_fine_tuning_with_transformers_own_head(late, tmp_path):
    run = longarc.fit(
        late, out=tmp_path / "run", max_length=640, positions="hierarchical", pooling="cls",
        attention="performer", attention_options={"num_features": 16}, epochs=1, batch_size=4,
        head_start="scratch", baseline=False, precision="fp32", device="cpu", verbose=False,
        limit=16, validation_fraction=0.2, test_fraction=0.2,
    )  # fmt: skip
    card = (run.path / "model" / "README.md").read_text()
    assert "longarc.load_model" in card
    probabilities = run.predict_proba(late["text"][:2])
    again = longarc.open_run(run.path).predict_proba(late["text"][:2])
    np.testing.assert_allclose(again, probabilities, atol=1e-6)


@pytest.mark.parametrize(("options", "error", "said"), [
    ({"max_length": 1024}, OptionError, "--positions hierarchical"),
    ({"positions": "copy"}, OptionError, "no --max-length is named"),
    ({"positions": "hierarchical", "max_length": 256}, OptionError, "512 positions"),
    ({"positions": "hierarchical", "max_length": 300_000}, OptionError, "512²"),
    ({"positions": "hierarchical", "max_length": 600, "position_alpha": 0.5}, OptionError, "0.5"),
    ({"attention": "perfomer"}, OptionError, "Did you mean performer"),
    ({"attention": "performer", "attention_options": {"nun_features": 2}}, OptionError, "num_feat"),
    ({"attention_options": {"num_features": 2}}, OptionError, "needs --attention"),
    ({"attention": "performer", "attention_minutes": 2.0}, OptionError, "for --attention learned"),
    ({"position_alpha": 0.3}, OptionError, "for --positions hierarchical"),
], ids=str)  # fmt: skip
def test_what_is_refused_before_anything_is_written(late, tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        longarc.fit(late, out=tmp_path / "run", freeze=True, verbose=False, **options)
    assert not (tmp_path / "run").exists()


def test_a_model_whose_attention_cannot_be_replaced(late, tmp_path):
    from transformers import AutoConfig, AutoModel

    from longarc.models.loading import load_tokenizer

    sizes = {
        "vocab_size": 30522, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 1040,
    }  # fmt: skip
    AutoModel.from_config(AutoConfig.for_model("nystromformer", **sizes)).save_pretrained(tmp_path)
    load_tokenizer("minilm").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be replaced"):
        longarc.fit(
            late, out=tmp_path / "run", model=str(tmp_path), freeze=True, verbose=False,
            attention="performer",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
