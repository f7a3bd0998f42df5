"""ReZero: residual blocks x + α f(x) with α learnt from 0 on, in the place of LayerNorm(x + f(x)).

At the start every layer is the identity, so that gradients reach all layers at full size, however
many there are; the α open the layers as training finds a use for them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longarc.errors import ModelError
from longarc.models.record import note_change

CHILD = "rezero"
"""A block's child that holds α, and the part of the record."""


class Rezero(nn.Module):
    """Multiply by α, a learnt number that is 0 at the start.

    >>> Rezero()(torch.ones(2))
    tensor([0., 0.], grad_fn=<MulBackward0>)
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, states: Tensor) -> Tensor:
        """Return α · states."""
        return self.alpha.to(states.dtype) * states


def set_rezero(model: PreTrainedModel) -> PreTrainedModel:
    """Replace LayerNorm(x + f(x)) by x + α f(x) in every residual block of an encoder, in place.

    For encoders that train from scratch: a pretrained one loses the normalisation that its weights
    were trained with. The normalisation of the embeddings stays. Known are BERT, RoBERTa,
    XLM-RoBERTa, CamemBERT, ELECTRA, ERNIE, data2vec and others with blocks written as BERT's. The
    change is written to ``model.config``; :func:`longarc.load_model` opens a saved model with it.

    Args:
        model: an encoder, or a model around one.

    Returns:
        The same model, each block with its number ``dropout.rezero.alpha``.

    Raises:
        ModelError: an encoder with other blocks. Nothing is changed then.

    Source: Bachlechner et al. 2020, "ReZero is All You Need: Fast Convergence at Large Depth"
    (arXiv 2003.04887).

    >>> from transformers import BertConfig, BertModel
    >>> model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    ...                              intermediate_size=16, vocab_size=30)).eval()
    >>> ids = torch.tensor([[1, 2, 3]])
    >>> torch.equal(set_rezero(model)(ids).last_hidden_state, model.embeddings(ids))
    True
    """
    encoder: Any = model.base_model
    if any(isinstance(module, Rezero) for module in encoder.modules()):
        return model
    blocks = [module for module in encoder.modules() if _is_block(module)]
    layers = getattr(encoder.config, "num_hidden_layers", 0)
    if len(blocks) != 2 * layers or not blocks:
        raise ModelError(
            f"{type(encoder).__name__} has {layers} layers and {len(blocks)} residual blocks of "
            "the form LayerNorm(dropout(dense(h)) + x) where two a layer were expected: set_rezero "
            "knows encoders with blocks like BERT's, such as BERT, RoBERTa, ELECTRA and ERNIE."
        )
    for block in blocks:
        scaled: OrderedDict[str, nn.Module] = OrderedDict(dropout=block.dropout)
        scaled[CHILD] = Rezero().to(model.device)
        block.dropout = nn.Sequential(scaled).train(block.training)
        block.LayerNorm = nn.Identity()
    note_change(model, CHILD, {})
    return model


def _is_block(module: Any) -> bool:
    """Whether a module computes LayerNorm(dropout(dense(h)) + x), by its parts and by a try."""
    parts = {name: type(child) for name, child in module.named_children()}
    if parts != {"dense": nn.Linear, "LayerNorm": nn.LayerNorm, "dropout": nn.Dropout}:
        return False
    h, x = (module.dense.weight.new_ones(1, 1, n) for n in module.dense.weight.shape[::-1])
    h, x = h * torch.linspace(-1, 1, h.shape[-1]).to(h), x * torch.linspace(1, 2, x.shape[-1]).to(x)
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.equal(module(h, x), module.LayerNorm(module.dense(h) + x))
    except (TypeError, RuntimeError):
        return False
    finally:
        module.train(training)
