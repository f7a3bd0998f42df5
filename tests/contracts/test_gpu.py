"""What a GPU computes is what a CPU does: every kernel, loss, regularizer and recurrent cell.

Skipped where there is none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import longarc
from longarc.models.attention.registry import ATTENTIONS, build_kernel
from longarc.models.attention.residual import residual_attention
from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.model import RecurrentForSequenceClassification
from longarc.models.recurrent.options import CELLS
from longarc.objectives.losses.registry import LOSSES, build_loss
from longarc.objectives.regularizers.registry import REGULARIZERS, build_regularizers
from longarc.objectives.regularizers.step import regularized_backward
from small_classifier import SPECIAL, gradients, make_batch, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
# Losses whose target is one class, and those whose target is a vector of 0 and 1.
KINDS = [(name, multi) for name, info in LOSSES.items() for multi in (False, True)
         if (info.multi_label if multi else info.single_label)]  # fmt: skip


def near(one: Any, other: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(one.cpu(), other.cpu(), rtol=tolerance, atol=tolerance)


def with_gradients(call: Any, tensors: list[Tensor], pull: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    out = call(leaves)
    return [out, *torch.autograd.grad((out * pull).sum(), leaves)]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_kernels(name):
    kernel = build_kernel(name, heads=2, width=8).eval()
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 2, 150, 8, generator=generator, dtype=torch.float64)] * 3
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[0, 100:] = False
    pull = torch.randn(2, 2, 150, 8, generator=generator, dtype=torch.float64)
    pull[0, :, 100:] = 0
    found = []
    for device in ("cpu", "cuda"):
        moved = kernel.to(device)
        call = lambda t, f=moved, d=device: f(*t, mask=mask.to(d))  # noqa: E731
        parts = with_gradients(call, [t.to(device) for t in tensors], pull.to(device))
        found.append([parts[0].cpu() * (pull != 0), *(p.cpu() for p in parts[1:])])
    for one, other in zip(*found, strict=True):
        near(one, other)


def test_residual_attention():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 2, 90, 8, generator=generator) for _ in range(7)]
    mask = torch.ones(2, 90, dtype=torch.bool)
    mask[1, 60:] = False
    pull = mask[:, None, :, None] * torch.ones(2, 2, 90, 8)
    found = []
    for device in ("cpu", "cuda"):
        call = lambda t, d=device: residual_attention(t[:3], t[3:6], t[6], mask=mask.to(d))  # noqa: E731
        parts = with_gradients(call, [t.to(device) for t in tensors], pull.to(device))
        found.append([parts[0] * pull.to(device), *parts[1:]])
    for one, other in zip(*found, strict=True):
        near(one, other, 1e-4)


@pytest.mark.parametrize(("name", "multi"), KINDS, ids=str)
def test_losses(name, multi):
    loss = build_loss(name, class_counts=[900, 40, 7, 1], num_examples=948, multi_label=multi)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (6,), generator=generator)
    if multi:
        target = (torch.rand(6, 4, generator=generator) < 0.4).double()
    found = []
    for device in ("cpu", "cuda"):
        moved = loss.to(device)
        call = lambda t, f=moved, d=device: f(t[0], target.to(d))  # noqa: E731
        parts = with_gradients(call, [logits.to(device)], torch.ones((), device=device))
        found.append(parts)
    for one, other in zip(*found, strict=True):
        near(one, other)


@pytest.mark.parametrize("name", [name for name in REGULARIZERS if name not in ("r-drop", "vat")])
def test_regularizers(name):
    # Left out: R-Drop without dropout does nothing, VAT starts from what the device draws.
    found = []
    for device in ("cpu", "cuda"):
        model = make_model().to(device)
        batch = {key: value.to(device) for key, value in make_batch().items()}
        regularized_backward(
            model, batch, longarc.CrossEntropyLoss(), build_regularizers([name]), special=SPECIAL
        )
        found.append(gradients(model))
    near(*found, 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_cells(cell):
    torch.manual_seed(0)
    config = RecurrentConfig(
        vocab_size=40, embedding_size=8, cell_size=12, num_labels=3, cell=cell,
        initializer_range=0.5, embedding_dropout=0.0, layer_dropout=0.0, classifier_dropout=0.0,
    )  # fmt: skip
    model = RecurrentForSequenceClassification(config).double().train()
    batch = make_batch()
    found = []
    for device in ("cpu", "cuda"):
        moved = model.to(device)
        moved.zero_grad()
        logits = moved(**{key: value.to(device) for key, value in batch.items()}).logits
        nn.functional.cross_entropy(logits, batch["labels"].to(device)).backward()
        found.append((logits.detach().cpu(), gradients(moved).cpu()))
    near(found[0][0], found[1][0])
    near(found[0][1], found[1][1])
