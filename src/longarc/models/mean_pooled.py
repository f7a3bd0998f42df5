"""A text classifier over any encoder whose document vector is the mean of its token vectors.

transformers' own heads read the first token. A sentence encoder was trained for the mean, so its
mean is the better start: a linear probe on it classifies well before any fine-tuning (the measured
difference is in ``docs/training.md``). The class is longarc's own; plain transformers refuses a
saved checkpoint by its model type, and :func:`longarc.load_model` opens it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import SequenceClassifierOutput

from longarc.errors import ModelError
from longarc.models.pooling import mean_pool
from longarc.models.record import FIELD, plain_settings, recorded_changes


class MeanPooledConfig(PreTrainedConfig):
    """The encoder's own configuration, and the head's dropout.

    ``classifier_dropout``: 0.1, as in BERT's head.
    """

    model_type = "longarc-mean-pooled"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "encoder": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }

    encoder: PreTrainedConfig | dict | None = None
    classifier_dropout: float = 0.1


class MeanPooledForSequenceClassification(PreTrainedModel):
    """Encoder → mean over tokens → length √d → dropout → linear.

    Inputs are the encoder's own (``input_ids`` or ``inputs_embeds``, ``attention_mask``,
    ``token_type_ids`` …); the output is a ``SequenceClassifierOutput`` with ``logits`` (b, C). It
    computes no loss: that is the trainer's part.
    """

    config: MeanPooledConfig
    config_class = MeanPooledConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MeanPooledConfig):
        super().__init__(config)
        if recorded_changes(config):
            raise ModelError(
                "this classifier's encoder has stretched positions or another attention, which "
                "transformers does not know. Open it with longarc.load_model(path)."
            )
        self.encoder = AutoModel.from_config(config.encoder)
        config.encoder = self.encoder.config  # one object: what changes in it is saved
        drop_pooler(self.encoder)
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(self.encoder.config.hidden_size, config.num_labels or 0)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput:
        """Logits (b, C) for tokenised documents."""
        states = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **inputs,
        )
        codes = mean_pool(states.last_hidden_state, attention_mask)
        # Sentence encoders mean a direction by a code; √d keeps the coordinates' size near 1.
        codes = functional.normalize(codes, dim=-1) * codes.shape[-1] ** 0.5
        logits = self.classifier(self.dropout(codes.to(self.classifier.weight.dtype)))
        return SequenceClassifierOutput(
            logits=logits, hidden_states=states.hidden_states, attentions=states.attentions
        )


def drop_pooler(encoder: nn.Module) -> None:
    """Remove BERT's [CLS] pooler: mean pooling never reads it, and DDP dislikes idle weights."""
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # pyright: ignore[reportArgumentType]


def from_encoder(encoder: PreTrainedModel, **config: Any) -> MeanPooledForSequenceClassification:
    """Put the mean-pooled head on an encoder that already has its weights.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    ...                   intermediate_size=16, vocab_size=30)
    >>> model = from_encoder(BertModel(tiny), num_labels=3)
    >>> model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3])
    """
    drop_pooler(encoder)
    settings = plain_settings(encoder.config.to_dict())
    # A path on this machine means nothing in a checkpoint.
    settings.pop("_name_or_path", None)
    settings.pop(FIELD, None)
    model = MeanPooledForSequenceClassification(MeanPooledConfig(encoder=settings, **config))
    model.encoder, model.config.encoder = encoder, encoder.config
    encoder.config._name_or_path = ""
    return model


AutoConfig.register("longarc-mean-pooled", MeanPooledConfig)
AutoModelForSequenceClassification.register(MeanPooledConfig, MeanPooledForSequenceClassification)
