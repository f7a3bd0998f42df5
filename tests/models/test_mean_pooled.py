from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from longarc.models.loading import load_classifier, load_model
from longarc.models.mean_pooled import from_encoder
from longarc.models.pooled_encoder import PooledEncoder
from longarc.models.pooling import mean_pool

LABELS = ("bill", "pump", "law")


def batch_of(documents, pad, length=24):
    ids = torch.full((len(documents), length), pad)
    mask = torch.zeros(len(documents), length, dtype=torch.long)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = document
        mask[row, : len(document)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def make_classifier(make_encoder, name):
    model = from_encoder(make_encoder(name), num_labels=3)
    nn.init.normal_(model.classifier.weight)
    return model.eval()


@torch.no_grad()
def test_padding_takes_no_part(architecture, make_encoder, documents):
    model = make_classifier(make_encoder, architecture)
    pad = model.encoder.config.pad_token_id or 0
    alone = torch.cat([model(input_ids=d[None]).logits for d in documents])
    together = model(**batch_of(documents, pad)).logits
    assert alone.std(dim=0).min() > 0.05, "the documents must differ"
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


@torch.no_grad()
def test_it_is_the_mean_at_length_root_d_times_the_weights(make_encoder, documents):
    model = make_classifier(make_encoder, "bert")
    inputs = batch_of(documents, 0)
    hidden = model.encoder(**inputs).last_hidden_state
    for row, document in enumerate(documents):
        code = hidden[row, : len(document)].mean(dim=0)
        code = code / code.norm() * 16**0.5
        expected = model.classifier.weight @ code + model.classifier.bias
        torch.testing.assert_close(model(**inputs).logits[row], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_saved_and_loaded_it_is_the_same(architecture, pooling, saved_encoder, documents, tmp_path):
    model = load_classifier(saved_encoder(architecture), labels=LABELS, pooling=pooling).eval()
    inputs = batch_of(documents, 1)
    model.save_pretrained(tmp_path / "model")
    found = load_model(tmp_path / "model")
    assert not found.training
    assert found.config.id2label == dict(enumerate(LABELS))
    assert torch.equal(found(**inputs).logits, model(**inputs).logits)
    names = dict(model.named_parameters())
    assert dict(found.named_parameters()).keys() == names.keys()
    assert (
        str(saved_encoder(architecture).parent)
        not in (tmp_path / "model" / "config.json").read_text()
    ), "a path on this machine"


def test_the_names_in_a_file_are_the_names_in_the_model(architecture, saved_encoder, tmp_path):
    """transformers' Trainer reads checkpoints by name and only warns of those it does not find."""
    for pooling in ("mean", "cls"):
        model = load_classifier(saved_encoder(architecture), labels=LABELS, pooling=pooling)
        model.save_pretrained(tmp_path / pooling)
        saved = load_file(tmp_path / pooling / "model.safetensors")
        missing, unexpected = model.load_state_dict(saved, strict=False)
        tied = {n for n in missing if n not in dict(model.named_parameters())}
        assert not unexpected
        assert set(missing) <= tied


def test_gradients_reach_every_weight(architecture, make_encoder, documents):
    """DistributedDataParallel waits for every weight; the unused pooler must be gone."""
    model = make_classifier(make_encoder, architecture)
    model(**batch_of(documents, model.encoder.config.pad_token_id or 0)).logits.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_gradient_checkpointing_gives_the_same_gradients(architecture, make_encoder, documents):
    gradients = []
    for checkpointing in (False, True):
        model = make_classifier(make_encoder, architecture).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if "dropout" in vars(module) and isinstance(module.dropout, float):
                module.dropout = 0.0
        model.config.encoder.attention_probs_dropout_prob = 0.0
        if not model.encoder.supports_gradient_checkpointing:
            with pytest.raises(ValueError, match="does not support"):
                model.activation_checkpointing_enable()
            pytest.skip("transformers has no checkpointing for this architecture")
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        calls = []
        hook = count_calls_of_a_layer(model, calls)
        inputs = batch_of(documents, model.encoder.config.pad_token_id or 0)
        model(**inputs).logits.square().sum().backward()
        hook.remove()
        gradients.append((len(calls), [p.grad for p in model.parameters()]))
    (once, plain), (again, checkpointed) = gradients
    assert again > once, "the layer was not computed again"
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def count_calls_of_a_layer(model, calls):
    layer = next(m for n, m in model.named_modules() if "layer" in n and isinstance(m, nn.Linear))
    return layer.register_forward_hook(lambda *_: calls.append(1))


def test_a_half_precision_encoder_is_trained_in_float32(make_encoder, tmp_path):
    make_encoder("bert").half().save_pretrained(tmp_path / "half")
    model = load_classifier(tmp_path / "half", labels=LABELS)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "model")
    assert {p.dtype for p in load_model(tmp_path / "model").parameters()} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_can_be_cast_to_half_precision(make_encoder, documents, dtype):
    model = make_classifier(make_encoder, "bert")
    inputs = batch_of(documents, 0)
    exact = model(**inputs).logits
    codes = PooledEncoder(model.encoder)(inputs)
    found = model.to(dtype)(**inputs).logits
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=0.05, atol=0.05)
    coded = PooledEncoder(model.encoder)(inputs)
    assert coded.dtype == dtype
    torch.testing.assert_close(coded.float(), codes, rtol=0.05, atol=0.05)


def test_mean_pool_in_bfloat16_adds_in_float32():
    hidden = torch.full((1, 1000, 1), 1.0, dtype=torch.bfloat16)
    hidden[0, 0] = 100.0
    found = mean_pool(hidden, torch.ones(1, 1000, dtype=torch.long))
    assert found.item() == pytest.approx(1.099, abs=1e-6)
    assert mean_pool(torch.ones(1, 3, 2), torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]


PLAIN = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
answer = {}
ids = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            answer[folder] = model(input_ids=ids).logits.tolist()
    except Exception as error:
        answer[folder] = f"{type(error).__name__}: {error}"
assert not any(name.startswith("longarc") for name in sys.modules)
print(json.dumps(answer))
"""


@torch.no_grad()
def test_plain_transformers_opens_cls_and_refuses_mean(saved_encoder, tmp_path):
    ids = [[5, 6, 7, 8]]
    folders, expected = {}, {}
    for name in ("bert", "roberta", "distilbert"):
        model = load_classifier(saved_encoder(name), labels=LABELS, pooling="cls").eval()
        folders[name] = str(tmp_path / f"cls-{name}")
        model.save_pretrained(folders[name])
        expected[name] = model(input_ids=torch.tensor(ids)).logits
    mean = str(tmp_path / "mean")
    load_classifier(saved_encoder("bert"), labels=LABELS).save_pretrained(mean)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(ids), *folders.values(), mean],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    for name, folder in folders.items():
        torch.testing.assert_close(torch.tensor(answer[folder]), expected[name])
    assert isinstance(answer[mean], str)
    assert "longarc-mean-pooled" in answer[mean]
