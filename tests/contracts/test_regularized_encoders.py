"""Regularizers over every encoder of longarc's own: each cell, each kernel, each other change.

``test_regularizers`` asks more of them, over a plain BERT.
"""

from __future__ import annotations

import pytest
import torch

import longarc
from longarc.models.attention.interface import set_attention
from longarc.models.attention.registry import ATTENTIONS
from longarc.models.attention.residual_interface import set_residual_attention
from longarc.models.positions import stretch_positions
from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.model import RecurrentForSequenceClassification
from longarc.models.recurrent.options import CELLS
from longarc.models.rezero import set_rezero
from longarc.objectives.regularizers.registry import build_regularizers
from longarc.objectives.regularizers.step import regularized_backward
from small_classifier import CLASSES, SPECIAL, cut, gradients, make_batch, make_model

# So small that documents of 4 to 11 tokens are more than the kernel attends to exactly.
NEAR = {"window": 2, "num_global": 1}
FAR = {"num_clusters": 2, "iterations": 2}
BOTH = NEAR | FAR | {"num_selected": 1}
KERNELS = {
    "performer": {"num_features": 8}, "linear": {}, "block-sparse": NEAR | {"num_random": 1},
    "local-performer": NEAR | {"num_features": 8}, "clustered": FAR,
    "local-clustered": BOTH, "learned": BOTH,
}  # fmt: skip
OTHERS = {
    "residual": lambda: set_residual_attention(make_model(), gate=True),
    "rezero": lambda: set_rezero(make_model()),
    "stretched": lambda: stretch_positions(make_model(positions=6), 24),
}
CHOSEN = {
    "fgm": {"epsilon": 0.5}, "gradient-penalty": {"weight": 0.05, "warmup": 0.0},
    "sam": {"rho": 0.3},
}  # fmt: skip
every_encoder = pytest.mark.parametrize("encoder", [*CELLS, *ATTENTIONS, *OTHERS])
every = pytest.mark.parametrize("name", CHOSEN)


def make(encoder):
    """A small classifier in float64 that does what sets its encoder apart."""
    if encoder in CELLS:
        torch.manual_seed(0)
        config = RecurrentConfig(
            cell=encoder, vocab_size=40, embedding_size=8, cell_size=6, num_labels=CLASSES,
            num_hidden_layers=2, pooling="max-attention", initializer_range=0.5,
            embedding_dropout=0.0, layer_dropout=0.0, classifier_dropout=0.0,
        )  # fmt: skip
        model = RecurrentForSequenceClassification(config).double().train()
    elif encoder in ATTENTIONS:
        model = set_attention(make_model(), encoder, **KERNELS[encoder]).double()
    else:
        model = OTHERS[encoder]().double()
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            if not weight.any():  # gates and biases that start at 0 and would do nothing
                weight.add_(0.3 * torch.arange(weight.numel()).add(i).cos().view_as(weight))
    return model


def step(model, batches, name=None):
    """The gradient of a step, with the regularizer or without."""
    chosen = build_regularizers([{name: CHOSEN[name]}] if name else [])
    regularized_backward(model, batches, longarc.CrossEntropyLoss(), chosen, special=SPECIAL)
    return gradients(model)


def logits(model, batch):
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


@pytest.mark.parametrize("encoder", [*ATTENTIONS, "residual", "rezero"])
def test_each_kernel_and_change_shows_in_documents_so_short(encoder):
    changed, plain, batch = make(encoder), make_model(), make_batch()
    plain.load_state_dict(changed.state_dict(), strict=False)
    assert (logits(changed, batch) - logits(plain, batch)).abs().max() > 1e-3


@every_encoder
@every
def test_a_step_is_the_same_however_it_is_cut_and_padded(encoder, name):
    model, batch = make(encoder), make_batch()
    expected = step(model, batch, name)
    added = (expected - step(model, batch)).norm()
    assert added > 1e-2 * expected.norm()
    for other in (cut(batch, 4, 2), make_batch(width=20)):
        found = step(model, other, name)
        assert (found - expected).norm() < 1e-7 * added


@every_encoder
@every
def test_weights_and_buffers_come_back_bit_for_bit(encoder, name):
    model = make(encoder)
    held = [*model.named_parameters(), *model.named_buffers()]
    before = [value.detach().clone() for _, value in held]
    step(model, cut(make_batch(), 4, 2), name)
    now = [*model.named_parameters(), *model.named_buffers()]
    assert [key for key, _ in now] == [key for key, _ in held]
    for (key, value), old in zip(now, before, strict=True):
        assert torch.equal(value, old), key


@pytest.mark.parametrize("encoder", CELLS)
@every
def test_padding_may_lie_on_either_side_of_a_recurrent_reading(encoder, name):
    model, batch = make(encoder), make_batch()
    expected = step(model, batch, name)
    left = {key: value.clone() for key, value in batch.items()}
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for key in ("input_ids", "attention_mask"):
            left[key][row] = batch[key][row].roll(-length)
    assert not left["attention_mask"][:, 0].all()
    assert (step(model, left, name) - expected).norm() < 1e-7 * expected.norm()
