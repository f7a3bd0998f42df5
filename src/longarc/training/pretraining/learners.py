"""What the trainer trains: encoder and objective in one module that returns its loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from longarc.data.augment import TextViews, special_ids
from longarc.data.masked import IGNORED, MaskedTokens
from longarc.errors import ModelError, OptionError
from longarc.models.loading import load_encoder, load_masked_lm
from longarc.models.pooled_encoder import PooledEncoder
from longarc.models.recurrent.options import CELLS
from longarc.models.recurrent.scratch import scratch_masked_lm
from longarc.objectives.siamese.byol import BYOL
from longarc.objectives.siamese.heads import prediction_head, projection_head
from longarc.objectives.siamese.objective import SiameseObjective
from longarc.objectives.siamese.simclr import SimCLR
from longarc.objectives.siamese.simsiam import SimSiam

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from longarc.training.pretraining.config import PretrainConfig


class Learner(nn.Module):
    """Base: the encoder with its pooling, the part with a step size of its own, and the loss.

    ``forward`` takes a batch of the collator and returns ``{"loss": Tensor}``, as transformers'
    Trainer expects.
    """

    _keys_to_ignore_on_save = None  # transformers asks for it when weights are tied

    pooled: PooledEncoder
    predictor: nn.Module | None = None

    def pretrained(self) -> Iterator[nn.Parameter]:
        """What takes the encoder's step size; the rest is new and takes the heads'."""
        return self.pooled.parameters()

    def update_target(self, progress: float) -> None:
        """Follow the step that was made; ``progress`` is the part of the training that is done."""


class TwoViewLearner(Learner):
    """SimCSE, SimSiam or BYOL of two views."""

    def __init__(self, objective: SiameseObjective) -> None:
        super().__init__()
        self.objective = objective

    @property
    def pooled(self) -> PooledEncoder:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder that is trained."""
        return self.objective.encoder  # pyright: ignore[reportReturnType]

    @property
    def predictor(self) -> nn.Module | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """SimSiam's and BYOL's h."""
        return getattr(self.objective, "predictor", None)

    def forward(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Any]:
        """The loss of two views of the same documents."""
        return {"loss": self.objective(first, second).loss}

    def update_target(self, progress: float) -> None:
        """Move BYOL's target."""
        if isinstance(self.objective, BYOL):
            self.objective.update_target(progress)


class MaskedTokenLearner(Learner):
    """Masked tokens, restored by the head of the encoder's architecture.

    The head is run on the masked tokens alone: over all tokens, its (b, n, vocabulary) scores
    would need more memory than the encoder.

    Args:
        model: encoder and head.
        new: names of the head's parameters that no checkpoint had; None for all.
    """

    def __init__(self, model: Any, new: Collection[str] | None = None) -> None:
        super().__init__()
        self.model, self.new = model, new
        # Within, and so not a second time among the parameters.
        self.held = (PooledEncoder(model.base_model),)
        self.asked: Tensor | None = None
        model.base_model.register_forward_hook(self._keep_asked)

    @property
    def pooled(self) -> PooledEncoder:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoder under the head."""
        return self.held[0]

    def pretrained(self) -> Iterator[nn.Parameter]:
        """The encoder, and the head as far as it was loaded."""
        if self.new is None:
            return super().pretrained()
        return (p for name, p in self.model.named_parameters() if name not in self.new)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor
    ) -> dict[str, Tensor]:
        """Mean cross-entropy of the masked tokens."""
        self.asked = targets != IGNORED
        try:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[0]
            return {"loss": functional.cross_entropy(logits.float(), targets[self.asked])}
        finally:
            self.asked = None

    def _keep_asked(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self.asked is not None:
            output["last_hidden_state"] = output["last_hidden_state"][self.asked][None]
        return output


def build_learner(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Learner:
    """The encoder under its objective, heads drawn from torch's random state.

    Raises:
        ModelError: a model that cannot be used for this objective.
        OptionError: two views that nothing would make different.
    """
    if config.objective == "mlm":
        if config.model in CELLS:
            model = scratch_masked_lm(config.model, tokenizer, config.model_options)
            learner = MaskedTokenLearner(model)
        else:
            learner = MaskedTokenLearner(*load_masked_lm(config.model))
        learner.pooled.pooling = config.pooling
        return learner
    encoder = PooledEncoder(load_encoder(config.model), config.pooling)
    _refuse_equal_views(config, encoder)
    d = encoder.width
    if config.objective == "simcse":
        return TwoViewLearner(
            SimCLR(encoder, temperature=config.temperature, negatives="other", chunk=config.chunk)
        )
    norm = config.head_norm
    if config.objective == "simsiam":
        heads = projection_head(d, norm=norm), prediction_head(d, norm=norm)
        return TwoViewLearner(
            SimSiam(encoder, *heads, stop_gradient=config.stop_gradient, chunk=config.chunk)
        )
    heads = (
        projection_head(d, hidden=2 * d, layers=2, norm=norm, last_norm=False),
        prediction_head(d, hidden=2 * d, norm=norm),
    )
    return TwoViewLearner(
        BYOL(
            encoder, *heads, decay=config.ema_decay, schedule=config.ema_schedule,
            chunk=config.chunk,
        )
    )  # fmt: skip


def build_views(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Any:
    """What makes of a document's ids the pair that a step reads.

    Raises ModelError where tokens are to be masked and the tokenizer has no mask.
    """
    mask: Any = tokenizer.mask_token_id
    if config.mask_share and mask is None:
        raise ModelError(
            f"the tokenizer of {config.model} has no token for a mask. Leave out --mask, or use "
            "--objective simcse."
        )
    if config.objective == "mlm":
        return MaskedTokens(
            mask_id=mask, vocabulary=len(tokenizer), special=tokenizer.all_special_ids,
            share=config.mask_share, max_tokens=config.max_length, seed=config.seed,
        )  # fmt: skip
    crop = (config.crop_min, config.crop_max) if config.views == "crops" else None
    return TextViews(
        crop=crop, overlap=config.overlap, max_tokens=config.max_length, shuffle=config.shuffle,
        delete=config.delete, mask=config.mask_share, mask_id=mask,
        special=special_ids(tokenizer), seed=config.seed,
    )  # fmt: skip


def changes_tokens(config: PretrainConfig) -> bool:
    """Whether two views have other tokens, and not only other dropout."""
    changed = config.shuffle is not None or config.delete or config.mask_share
    return bool(changed) or config.views == "crops"


def _refuse_equal_views(config: PretrainConfig, encoder: nn.Module) -> None:
    drops = any(isinstance(m, nn.Dropout) and m.p > 0 for m in encoder.modules())
    if not changes_tokens(config) and not drops:
        raise OptionError(
            f"--views whole lets dropout alone make the views different, and {config.model} has "
            "none. Use --views crops, or add --delete 0.1."
        )
