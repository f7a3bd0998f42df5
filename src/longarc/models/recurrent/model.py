"""Recurrent encoders and their heads as transformers models.

Padding never changes a result, on whichever side it is and wherever the attention mask has a hole:
tokens are moved to the front before the first layer and back after the last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.layer import RECURRENT, RecurrentLayer, mirrored, start_cell, take
from longarc.models.recurrent.pooling import RecurrentPooling


class RecurrentPreTrainedModel(PreTrainedModel):
    """What the three models share: how they are saved and how they start."""

    config: RecurrentConfig
    config_class = RecurrentConfig
    base_model_prefix = "recurrent"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RECURRENT):
            start_cell(module, self.config.forget_bias)
        elif isinstance(module, RecurrentPooling):
            if module.query is not None:
                init.zeros_(module.query)  # a plain mean at first
        elif isinstance(module, RecurrentForMaskedLM):
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class RecurrentModel(RecurrentPreTrainedModel):
    """Embeddings, then ``layers`` of torch's own cells (or the output-gated GRU).

    Takes ``input_ids`` or ``inputs_embeds`` (b, n, d), and ``attention_mask`` (b, n): 1 at tokens;
    without one, all are. Other inputs of encoders, such as ``token_type_ids``, do not matter to it.
    Gives ``last_hidden_state`` (b, n, hidden_size), zeros at padding.

    >>> import torch
    >>> model = RecurrentModel(RecurrentConfig(cell="gru", vocab_size=30, embedding_size=4,
    ...                                        cell_size=8))
    >>> model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.shape
    torch.Size([1, 3, 16])
    >>> model.layers[0].onward
    GRU(4, 8, batch_first=True)
    """

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        self.embeddings = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        self.word_dropout = WordDropout(config.word_dropout)
        self.embedding_dropout = VariationalDropout(config.embedding_dropout)
        self.layer_dropout = VariationalDropout(config.layer_dropout)
        self.layers = nn.ModuleList(
            RecurrentLayer(
                config.cell,
                config.hidden_size if i else config.embedding_size,
                config.cell_size,
                bidirectional=config.bidirectional,
            )
            for i in range(config.num_hidden_layers)
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The table of the tokens."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another table in its place."""
        self.embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **unused: Any,
    ) -> BaseModelOutput:
        """A vector for each token."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds, and found both or none")
        states = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        documents, steps = states.shape[:2]
        mask = None if attention_mask is None else attention_mask.bool()
        lengths, back = states.new_full((documents,), steps, dtype=torch.long), None
        if mask is not None:
            lengths = mask.sum(dim=1)
            if not bool((mask[:, :-1] >= mask[:, 1:]).all()):  # padding before or among tokens
                front = (~mask).long().argsort(dim=1, stable=True)
                back = front.argsort(dim=1)
                states = take(states, front)
        present = torch.arange(steps, device=states.device) < lengths[:, None]
        mirror = mirrored(lengths, steps)

        def padded(found: Tensor) -> Tensor:
            """As the tokens came, with zeros at padding."""
            if mask is None:
                return found
            found = found.masked_fill(~present[..., None], 0.0)
            return found if back is None else take(found, back)

        states = self.embedding_dropout(self.word_dropout(states))
        every = [padded(states)] if output_hidden_states else []
        for i, layer in enumerate(self.layers):
            states = layer(self.layer_dropout(states) if i else states, mirror)
            if output_hidden_states:
                every.append(padded(states))
        return BaseModelOutput(
            last_hidden_state=padded(states),  # pyright: ignore[reportArgumentType]
            hidden_states=tuple(every) if output_hidden_states else None,  # pyright: ignore
        )


class RecurrentForSequenceClassification(RecurrentPreTrainedModel):
    """Encoder → pooling → dropout → linear.

    Inputs are the encoder's; the output has ``logits`` (b, C). It computes no loss: that is the
    trainer's part.
    """

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        self.recurrent = RecurrentModel(config)
        self.pooling = RecurrentPooling(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(self.pooling.width, config.num_labels or 0)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **unused: Any,
    ) -> SequenceClassifierOutput:
        """Logits (b, C) for tokenised documents."""
        states = self.recurrent(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        codes = self.pooling(states.last_hidden_state, attention_mask)
        logits = self.classifier(self.dropout(codes.to(self.classifier.weight.dtype)))
        return SequenceClassifierOutput(logits=logits, hidden_states=states.hidden_states)


class RecurrentForMaskedLM(RecurrentPreTrainedModel):
    """Encoder → the embeddings' width → a logit for each token of the vocabulary.

    With both directions and one layer, what is said of a masked token has been read around it; more
    layers see it as well.
    """

    _tied_weights_keys = {"decoder.weight": "recurrent.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: RecurrentConfig):
        super().__init__(config)
        self.recurrent = RecurrentModel(config)
        self.projection = nn.Linear(config.hidden_size, config.embedding_size)
        self.decoder = nn.Linear(config.embedding_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The layer whose weights are the embeddings'."""
        return self.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Put another layer in its place."""
        self.decoder = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **unused: Any,
    ) -> MaskedLMOutput:
        """Logits (b, n, vocab_size); with ``labels`` (b, n), −100 elsewhere, their mean loss."""
        states = self.recurrent(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        projected = nn.functional.gelu(self.projection(states.last_hidden_state))
        logits = self.decoder(projected) + self.bias
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(
            loss=loss,  # pyright: ignore[reportArgumentType]
            logits=logits,
            hidden_states=states.hidden_states,
        )


class VariationalDropout(nn.Module):
    """Dropout with one draw a document, the same at each of its steps: (b, n, d) → (b, n, d)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, states: Tensor) -> Tensor:
        """Numbers of the vectors left out, the others scaled up."""
        if not self.training or not self.p:
            return states
        kept = torch.rand_like(states[:, :1]) >= self.p
        return states * kept / (1 - self.p)

    def extra_repr(self) -> str:
        """The part that is left out."""
        return f"p={self.p}"


class WordDropout(VariationalDropout):
    """Whole tokens left out, each with the same chance: (b, n, d) → (b, n, d).

    The others are not scaled up: a zero vector stands for an unknown word, which may be met in use.
    """

    def forward(self, states: Tensor) -> Tensor:
        """Zeros in place of some vectors."""
        if not self.training or not self.p:
            return states
        return states * (torch.rand_like(states[..., :1]) >= self.p)


AutoConfig.register("longarc-recurrent", RecurrentConfig)
AutoModel.register(RecurrentConfig, RecurrentModel)
AutoModelForSequenceClassification.register(RecurrentConfig, RecurrentForSequenceClassification)
AutoModelForMaskedLM.register(RecurrentConfig, RecurrentForMaskedLM)
