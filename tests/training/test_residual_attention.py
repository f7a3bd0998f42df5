"""--residual-attention: the run's model has it, trains its gates, and opens with them."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import BertModel

import longarc
from longarc.data.labels import LabelSpace
from longarc.errors import OptionError
from longarc.models.loading import load_tokenizer
from longarc.training.config import TrainConfig
from longarc.training.starting_model import starting_model

TABLE = {
    "text": [f"the {s} {w}" for s in ("pump", "valve", "oil", "motor") for w in
             ("leak is a noise", "is not in oil", "tax refund is due", "invoice is not in order")],
    "label": ["fault", "fault", "bill", "bill"] * 4,
}  # fmt: skip


@pytest.fixture
def encoder_folder(tiny, tmp_path):
    """A random BERT of three layers and its tokenizer."""
    config = tiny.make_config(dropout=0.1)
    config.num_hidden_layers = 3
    folder = tmp_path / "tiny"
    tiny.BertModel(config).save_pretrained(folder)
    tiny.make_tokenizer().save_pretrained(folder)
    return folder


def test_gates_are_trained_and_saved(encoder_folder, tmp_path):
    run = longarc.fit(
        TABLE, out=tmp_path / "run", model=str(encoder_folder), residual_attention="gated",
        pooling="cls", epochs=2, batch_size=4, head_start="scratch", baseline=False,
        precision="fp32", device="cpu", verbose=False, validation_fraction=0, test_fraction=0.25,
        max_length=16,
    )  # fmt: skip
    encoder = longarc.load_model(run.path).base_model
    assert encoder.config.longarc["residual_attention"]["gate"] is True
    assert encoder.residual_attention.gates.shape == (2,)
    assert (encoder.residual_attention.gates != 0).all()
    assert "longarc.load_model" in (run.path / "model" / "README.md").read_text()
    probabilities = run.predict_proba(TABLE["text"][:3])
    again = longarc.open_run(run.path).predict_proba(TABLE["text"][:3])
    np.testing.assert_allclose(again, probabilities, atol=1e-6)


def test_a_model_that_sums_goes_on_as_it_began(encoder_folder):
    encoder = BertModel.from_pretrained(encoder_folder)
    longarc.set_residual_attention(encoder, last=2).save_pretrained(encoder_folder)
    config = TrainConfig(
        data="", out="", model=str(encoder_folder), residual_attention="gated", max_length=16
    )
    space = LabelSpace.from_labels(TABLE["label"])
    model = starting_model(config, space, load_tokenizer(str(encoder_folder)))
    assert model.base_model.config.longarc["residual_attention"] == {
        "gate": True, "mean": False, "last": 2
    }  # fmt: skip


def test_gates_that_stay_shut_are_refused(tmp_path):
    with pytest.raises(OptionError, match="--freeze leaves them there"):
        longarc.fit(
            TABLE, out=tmp_path / "run", residual_attention="gated", freeze=True, verbose=False
        )
