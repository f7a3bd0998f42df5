"""The pretrained encoder, and licence texts that fill it."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def minilm():
    from transformers import AutoModel

    from longarc.models.loading import resolve_model

    return AutoModel.from_pretrained(resolve_model("minilm")).eval()


@pytest.fixture(scope="session")
def long_licences() -> list[str]:
    """Forty licence texts of more than 512 tokens."""
    from longarc.data.licenses import read_licenses

    texts = read_licenses("category", include_rules=False, limit=200).texts
    return [text for text in texts if len(text.split()) > 600][:40]


@pytest.fixture(scope="session")
def licence_batch(long_licences: list[str]) -> dict[str, torch.Tensor]:
    """Four of them as a batch of 512 tokens each."""
    from longarc.models.loading import load_tokenizer

    found = load_tokenizer("minilm")(
        long_licences[:4], truncation=True, max_length=512, return_tensors="pt"
    )
    return dict(found)
