from __future__ import annotations

import pytest
import torch

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40,
}  # fmt: skip
EXTRA = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8},
    "mpnet": {"pad_token_id": 1},
    "modernbert": {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3,
                   "sep_token_id": 3},
}  # fmt: skip


@pytest.fixture(params=EXTRA)
def architecture(request):
    """The name of an architecture that longarc supports."""
    return request.param


@pytest.fixture
def make_encoder():
    """A tiny encoder of an architecture, with weights large enough that inputs matter."""
    from transformers import AutoConfig, AutoModel

    def make(name: str):
        torch.manual_seed(0)
        encoder = AutoModel.from_config(AutoConfig.for_model(name, **SIZES | EXTRA[name]))
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
        return encoder.eval()

    return make


@pytest.fixture
def saved_encoder(make_encoder, tmp_path):
    """The folder of a saved tiny encoder."""

    def save(name: str = "bert"):
        folder = tmp_path / f"{name}-encoder"
        make_encoder(name).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def documents():
    """Ids of documents of 3, 9 and 17 tokens; none is padding in any of the architectures."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 60, (n,), generator=generator) for n in (3, 9, 17)]


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors gain nothing from threads, which wait long for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
