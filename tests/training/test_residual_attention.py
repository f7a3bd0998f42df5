"""--residual-attention: the run's model has it, trains its gates, and opens with them."""

from __future__ import annotations

import numpy as np
import pytest

import longarc
from longarc.errors import OptionError

TABLE = {
    "text": [f"the {s} {w}" for s in ("pump", "valve", "fan", "tank") for w in
             ("leaks oil", "is noisy", "has stopped", "is billed twice", "is not paid")],
    "label": ["fault", "fault", "fault", "bill", "bill"] * 4,
}  # fmt: skip


@pytest.mark.real
def test_gates_are_trained_and_saved(tmp_path):
    run = longarc.fit(
        TABLE, out=tmp_path / "run", residual_attention="gated", pooling="cls", epochs=2,
        batch_size=4, head_start="scratch", baseline=False, precision="fp32", device="cpu",
        verbose=False, validation_fraction=0, test_fraction=0.2, max_length=16,
    )  # fmt: skip
    encoder = longarc.load_model(run.path).base_model
    assert encoder.config.longarc["residual_attention"]["gate"] is True
    assert encoder.residual_attention.gates.shape == (5,)
    assert (encoder.residual_attention.gates != 0).all()
    assert "longarc.load_model" in (run.path / "model" / "README.md").read_text()
    probabilities = run.predict_proba(TABLE["text"][:3])
    again = longarc.open_run(run.path).predict_proba(TABLE["text"][:3])
    np.testing.assert_allclose(again, probabilities, atol=1e-6)


def test_gates_that_stay_shut_are_refused(tmp_path):
    with pytest.raises(OptionError, match="--freeze leaves them there"):
        longarc.fit(
            TABLE, out=tmp_path / "run", residual_attention="gated", freeze=True, verbose=False
        )
