"""ReZero blocks: the paper's formula, what is refused, and that a saved model opens as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from longarc.errors import ModelError
from longarc.models.loading import load_model
from longarc.models.rezero import Rezero, set_rezero

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "embedding_size": 16,
}  # fmt: skip
KNOWN = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "data2vec-text"]
IDS = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))


def build(family, kind=AutoModel):
    torch.manual_seed(0)
    return kind.from_config(AutoConfig.for_model(family, **SIZES)).eval()


def open_layers(model):
    """The numbers α as if trained, in the order of the blocks."""
    found = [module.alpha for module in model.modules() if isinstance(module, Rezero)]
    with torch.no_grad():
        for i, alpha in enumerate(found):
            alpha.fill_(0.3 + 0.2 * i)
    return [alpha.item() for alpha in found]


@pytest.mark.parametrize("family", KNOWN)
def test_blocks_are_the_papers(family):
    model = build(family)
    assert set_rezero(model) is model
    start = model.embeddings(IDS)
    assert torch.equal(model(IDS).last_hidden_state, start)
    alphas = iter(open_layers(model))
    x = start
    for layer in model.encoder.layer:
        attended, _ = layer.attention.self(x)
        x = x + next(alphas) * layer.attention.output.dense(attended)
        x = x + next(alphas) * layer.output.dense(layer.intermediate(x))
    assert next(alphas, None) is None
    torch.testing.assert_close(model(IDS).last_hidden_state, x)
    names = [name for name, _ in model.encoder.named_parameters() if "LayerNorm" in name]
    assert names == []


def test_every_number_gets_a_gradient_and_moves():
    model = set_rezero(build("bert")).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    pull = torch.randn(16)
    before = (model(IDS).last_hidden_state @ pull).mean()
    before.backward()
    optimizer.step()
    alphas = [parameter for name, parameter in model.named_parameters() if "rezero" in name]
    assert len(alphas) == 4
    for alpha in alphas:
        assert alpha.grad.abs() > 0
        assert alpha.abs() > 1e-3


@pytest.mark.parametrize("kind", [AutoModel, AutoModelForMaskedLM])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_saved_model_opens_as_it_was(tmp_path, family, kind):
    model = set_rezero(build(family, kind))
    open_layers(model)
    model.save_pretrained(tmp_path)
    opened = load_model(tmp_path)
    assert opened.config.longarc == {"rezero": {}}
    assert torch.equal(opened(IDS)[0], model(IDS)[0])
    with pytest.raises(ValueError, match="model type `longarc-"):
        AutoModel.from_pretrained(tmp_path)
    again = set_rezero(opened)
    assert torch.equal(again(IDS)[0], model(IDS)[0])


def test_a_checkpoint_without_its_numbers_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    set_rezero(build("bert")).save_pretrained(tmp_path)
    kept = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "rezero" not in k}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="rezero"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["albert", "distilbert", "roberta-prelayernorm", "modernbert"])
def test_other_blocks_are_refused_and_left_alone(family):
    more = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3,
            "sep_token_id": 3} if family == "modernbert" else {}  # fmt: skip
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **SIZES, **more)).eval()
    before = model(IDS).last_hidden_state
    with pytest.raises(ModelError, match="residual blocks of the form"):
        set_rezero(model)
    assert torch.equal(model(IDS).last_hidden_state, before)
    assert not hasattr(model.config, "longarc")
