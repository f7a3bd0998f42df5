"""Untrained encoders of MiniLM's size: they open, and read as far as they say."""

from __future__ import annotations

import pytest
import torch

from longarc.comparison.scratch_models import scratch_folder
from longarc.comparison.scratch_names import SCRATCH
from longarc.models.loading import load_classifier, load_encoder, load_tokenizer, usable_length


@pytest.mark.real
@pytest.mark.parametrize("name", SCRATCH)
def test_it_is_minilms_size_with_its_token_vectors(name, tmp_path):
    folder = scratch_folder(name, 192, tmp_path)
    assert usable_length(folder) == 192
    model = load_classifier(folder, labels=("a", "b")).eval()
    like = load_encoder("minilm")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.model_max_length == 192
    words = model.base_model.get_input_embeddings().weight
    torch.testing.assert_close(words, like.get_input_embeddings().weight)
    size = sum(p.numel() for p in like.parameters())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.2)
    texts = ["the pump leaks " * 100, "pay"]
    batch = tokenizer(texts, truncation=True, max_length=192, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    assert batch["input_ids"].shape == (2, 192)
    assert logits.shape == (2, 2)
    assert logits.isfinite().all()
    assert scratch_folder(name, 192, tmp_path) == folder
