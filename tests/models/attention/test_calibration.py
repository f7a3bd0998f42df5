"""calibrate_attention: it helps, changes nothing else, and says what it did."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from longarc.errors import DataError, ModelError, OptionError
from longarc.models.attention.calibration import calibrate_attention, head_errors
from longarc.models.attention.interface import attention_layers, set_attention
from longarc.models.loading import load_tokenizer

QUICK = {"minutes": 5, "steps": 3, "max_length": 192, "progress": False}


@pytest.mark.real
def test_it_helps_and_leaves_the_weights_alone(minilm, long_licences) -> None:
    weights = copy.deepcopy(minilm.state_dict())
    set_attention(minilm, "learned", window=16, num_clusters=8)
    minilm.train()
    minilm.encoder.layer[0].requires_grad_(False)
    report = calibrate_attention(minilm, long_licences[:12], **QUICK)
    assert minilm.training
    for name, value in weights.items():
        assert torch.equal(minilm.state_dict()[name], value), name
    assert not any(p.requires_grad for p in minilm.encoder.layer[0].parameters())
    assert all(p.requires_grad for p in minilm.encoder.layer[1].parameters())
    assert all(p.grad is None for p in minilm.parameters())
    assert report.steps == 3
    assert report.texts == 3
    assert len(report.before) == len(report.after) == len(report.layers) == 6
    for before, after in zip(report.before, report.after, strict=True):
        assert all(a <= b for a, b in zip(after, before, strict=True))
        assert sum(after) < sum(before)
    assert json.loads(json.dumps(report.to_dict()))["texts"] == 3
    assert "encoder.layer.0.attention.self" in str(report)


@pytest.mark.real
def test_it_can_be_repeated_and_sets_learned_attention(minilm, long_licences) -> None:
    found = []
    for _ in range(2):
        model = copy.deepcopy(minilm)
        calibrate_attention(model, long_licences[:6], **{**QUICK, "steps": 1})
        assert len(attention_layers(model)) == 6
        assert all(p.grad is None for p in model.parameters())
        found.append(
            [p for _, m in attention_layers(model) for p in m.attention_kernel.parameters()]
        )
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.real
def test_a_failure_on_the_way_gives_the_kernels_back(minilm, long_licences) -> None:
    set_attention(minilm, "learned", window=16)
    kernels = [m.attention_kernel for _, m in attention_layers(minilm)]
    for kernel in kernels:
        kernel.requires_grad_(False)
    before = [p.clone() for kernel in kernels for p in kernel.parameters()]
    calls, real = [], load_tokenizer("minilm")

    def tokenizer(*texts, **options):
        calls.append([p.clone() for kernel in kernels for p in kernel.parameters()])
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*texts, **options)

    with pytest.raises(KeyboardInterrupt):
        calibrate_attention(minilm, long_licences[:6], tokenizer=tokenizer, **QUICK)
    assert not all(torch.equal(a, b) for a, b in zip(before, calls[-1], strict=True))  # had begun
    assert all("forward" not in vars(kernel) for kernel in kernels)
    after = [p for kernel in kernels for p in kernel.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in after)

    set_attention(minilm, "exact")
    with pytest.raises(KeyboardInterrupt):
        calibrate_attention(minilm, long_licences[:6], tokenizer=tokenizer, **QUICK)
    assert not attention_layers(minilm)


def test_what_cannot_be_calibrated_is_refused(make_encoder) -> None:
    model = make_encoder("bert")
    with pytest.raises(DataError, match="found 1"):
        calibrate_attention(model, ["one text"])
    with pytest.raises(DataError, match="one string"):
        calibrate_attention(model, "one text")
    with pytest.raises(DataError, match="None among them"):
        calibrate_attention(model, ["a", None])
    for option in ({"minutes": -1.0}, {"batch_size": 0}, {"max_length": 0}, {"steps": -1}):
        with pytest.raises(OptionError, match=next(iter(option))):
            calibrate_attention(model, ["a", "b"], **option)
    set_attention(model, "clustered")
    with pytest.raises(ModelError, match=r"Clustered.*nothing to learn"):
        calibrate_attention(model, ["a", "b"])


def test_errors_of_heads_do_not_see_padding() -> None:
    exact, estimate = torch.randn(2, 2, 3, 10, 4)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    real = [torch.cat([x[0], x[1, :, :6]], dim=1)[None] for x in (estimate, exact)]
    torch.testing.assert_close(head_errors(estimate, exact, mask), head_errors(*real, None))


def test_short_texts_leave_nothing_to_learn_and_no_error(minilm):
    from longarc.models.loading import load_tokenizer

    set_attention(minilm, "learned")
    report = calibrate_attention(
        minilm, ["a short text"] * 6, tokenizer=load_tokenizer("minilm"), steps=2, progress=False,
        max_length=5000,
    )  # fmt: skip
    assert report.before == report.after
