"""A training with regularizers through the command line."""

from __future__ import annotations

import pytest
import yaml
from safetensors.torch import load_file


@pytest.fixture
def train(longarc, tickets, tiny_model, tmp_path):
    """An epoch with the regularizers: (what config.yaml names, the weights)."""

    def run(chosen=None):
        out = tmp_path / str(chosen)
        status, _, err = longarc(
            "train", tickets, "--text", "body", "--label", "topic", "--device", "cpu",
            "--no-baseline", "--model", tiny_model, "--max-length", "16", "--epochs", "1",
            "--learning-rate", "3e-3", "--seed", "0", "--precision", "fp32", "--out", out,
            *(() if chosen is None else ("--regularizers", chosen)),
        )  # fmt: skip
        assert (status, err) == (0, "")
        config = yaml.safe_load((out / "config.yaml").read_text())
        return config["regularizers"], load_file(out / "model" / "model.safetensors")

    return run


def test_the_regularizers_that_are_named_take_part_in_the_training(train):
    named, weights = train("fgm, r-drop")
    assert named == ["fgm", "r-drop"]
    named, plain = train()
    assert named is None
    assert weights.keys() == plain.keys()
    assert max(float((weights[key] - plain[key]).abs().max()) for key in weights) > 1e-4
