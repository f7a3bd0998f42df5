"""The classifier that a run starts from: an encoder, its length and attention, and a new head."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from longarc.data.labels import LabelSpace
from longarc.files import write_json
from longarc.models.attention.calibration import calibrate_attention
from longarc.models.attention.interface import set_attention
from longarc.models.attention.residual_interface import set_residual_attention
from longarc.models.loading import head_settings, load_classifier
from longarc.models.positions import stretch_positions
from longarc.models.record import recorded_changes
from longarc.models.recurrent.options import CELLS
from longarc.models.recurrent.scratch import scratch_classifier
from longarc.training.config import TrainConfig
from longarc.training.preparation import Prepared
from longarc.training.progress import Reporter
from longarc.training.run_folder import RunFolder
from longarc.training.trainer import is_main_process

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def starting_model(
    config: TrainConfig, space: LabelSpace, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Load the encoder, stretch its positions and change its attention as the options say.

    One from scratch is drawn from torch's random state.

    ``tokenizer`` learns of the new length.

    Raises:
        ModelError: a model that cannot be found, stretched, or have its attention changed.
        OptionError: lengths or options that do not fit the model.
    """
    if config.model in CELLS:
        return scratch_classifier(
            config.model,
            tokenizer,
            pooling=config.pooling,
            options=config.model_options,
            embeddings=config.embeddings,
            **head_settings(space.names, multi_label=space.multi_label),
        )
    model = load_classifier(
        config.model,
        labels=space.names,
        multi_label=space.multi_label,
        pooling=config.pooling,
        trust_remote_code=config.trust_remote_code,
    )
    if config.positions != "trained":
        before = recorded_changes(model.config).get("positions", {})
        how: dict[str, Any] = {}
        if config.positions == "hierarchical":
            how = {"alpha": config.position_alpha}
            how |= {k: before[k] for k in ("alpha", "origin") if k in before}  # it goes on as begun
        stretch_positions(
            model, config.max_length or 0, method=config.positions, tokenizer=tokenizer, **how
        )
    if config.attention is not None:
        set_attention(model, config.attention, seed=config.seed, **(config.attention_options or {}))
    if config.residual_attention != "none":
        before = recorded_changes(model.config).get("residual_attention", {})
        gate = config.residual_attention == "gated"
        set_residual_attention(model, **{**before, "gate": gate})  # it sums as it began
    return model


SAMPLE = 400
"""Training texts that a learned attention is fitted to: more than minutes can read."""

LONGEST = 2048
"""Tokens of them: the exact attention has to read them, at the square of their number."""


def fit_attention(model: PreTrainedModel, prepared: Prepared, reporter: Reporter) -> None:
    """Fit ``--attention learned`` to the model's exact attention, and write how near it comes."""
    config, texts = prepared.config, prepared.splits.train.texts
    drawn = random.Random(config.seed).sample(list(texts), min(SAMPLE, len(texts)))
    console = reporter.console
    reporter.say(f"fitting the attention to the exact one, {config.attention_minutes:g} min")
    report = calibrate_attention(
        model,
        drawn,
        tokenizer=prepared.tokenizer,
        minutes=config.attention_minutes,
        max_length=min(config.max_length or LONGEST, LONGEST),
        seed=config.seed,
        progress=console is not None and console.is_terminal,
    )
    if is_main_process():
        write_json(RunFolder(config.run).attention_file, report.to_dict())
    for line in str(report).splitlines():
        reporter.say(line)
