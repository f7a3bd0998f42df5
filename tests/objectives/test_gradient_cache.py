"""Encoding in chunks: the same numbers as at once, with a chunk's activations at a time."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from longarc.errors import DataError, OptionError
from longarc.objectives.siamese.gradient_cache import encode_in_chunks
from longarc.objectives.siamese.heads import prediction_head, projection_head
from longarc.objectives.siamese.simclr import SimCLR
from longarc.objectives.siamese.simsiam import SimSiam


def make_encoder(dropout=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8)).to(
        dtype
    )


def views(b=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(b, 5, generator=generator, dtype=dtype) for _ in range(2)]


def gradients(objective, *batch, autocast=False):
    objective.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = objective(*batch).loss
    loss.backward()
    return [loss.detach(), *(w.grad for w in objective.parameters() if w.grad is not None)]


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
@pytest.mark.parametrize("kind", ["simclr", "simsiam"])
def test_it_equals_the_large_batch(chunk, kind):
    """Batch normalisation in the heads too, which see the whole batch."""
    found = []
    for size in (None, chunk):
        encoder = make_encoder()
        head = projection_head(8).double()
        if kind == "simclr":
            objective = SimCLR(encoder, head, chunk=size)
        else:
            objective = SimSiam(encoder, head, prediction_head(8).double(), chunk=size)
        found.append(gradients(objective, *views()))
    assert len(found[0]) >= 8
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_float32_and_autocast():
    for autocast, tolerance in ((False, 1e-6), (True, 2e-2)):
        found = [
            gradients(
                SimCLR(make_encoder(dtype=torch.float32), chunk=size),
                *views(dtype=torch.float32),
                autocast=autocast,
            )
            for size in (None, 4)
        ]
        torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)


def test_the_replay_draws_the_same_random_numbers():
    """Dropout: the gradient is that of the chunks' own first pass."""

    def in_plain_chunks(view):
        return torch.cat([encoder(part) for part in view.split(4)])

    encoder = make_encoder(dropout=0.5)
    batch = views()
    results = []
    for encode in (in_plain_chunks, lambda view: encode_in_chunks(encoder, view, 4)):
        encoder.zero_grad()
        torch.manual_seed(7)
        codes = [encode(view) for view in batch]
        after = torch.rand(())
        (codes[0] * codes[1]).sum().backward()
        results.append([after, *(w.grad for w in encoder.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)
    torch.manual_seed(8)
    assert not torch.equal(encode_in_chunks(encoder, batch[0], 4), codes[0])


def test_activations_of_one_chunk_at_a_time():
    """Of the hidden layer's results: none alive before backward, never more than a chunk after."""
    encoder, alive, most = make_encoder(), [], [0]

    def note(module, inputs, result):
        alive.append(weakref.ref(result))
        most[0] = max(most[0], sum(len(kept()) for kept in alive if kept() is not None))

    encoder[1].register_forward_hook(note)
    loss = SimCLR(encoder, chunk=2)(*views()).loss
    gc.collect()
    assert len(alive) == 10
    assert [kept for kept in alive if kept() is not None] == []
    assert most[0] == 2
    loss.backward()
    assert len(alive) == 20
    assert most[0] <= 4  # the next chunk's, before the last one's are let go
    alive.clear()
    SimCLR(encoder)(*views()).loss.backward()
    assert most[0] == 20  # at once, both views stay: the test can fail


def test_views_of_every_kind():
    class Sum(nn.Module):
        def forward(self, view):
            parts = view.values() if isinstance(view, dict) else view
            return sum(parts)

    a, b = views()
    for view in ({"a": a, "b": b}, [a, b], (a, b)):
        torch.testing.assert_close(encode_in_chunks(Sum(), view, 3), a + b)
    with torch.no_grad():
        assert not encode_in_chunks(make_encoder(), a, 3).requires_grad


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("text", "A view of type str cannot be cut"),
        ({}, "A view of type dict cannot be cut"),
        ({"a": torch.ones(3), "on": True}, "A view of type dict cannot be cut"),
        ([torch.ones(3, 1), torch.ones(2, 1)], "have 2 and 3 examples"),
    ],
)
def test_views_that_cannot_be_cut(view, message):
    with pytest.raises(DataError, match=message):
        encode_in_chunks(nn.Identity(), view, 2)


def test_a_chunk_of_nothing():
    with pytest.raises(OptionError, match="chunk must be a whole number, at least 1; found 0"):
        SimCLR(nn.Identity(), chunk=0)
