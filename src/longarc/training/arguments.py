"""The options of a run in the words of transformers' Trainer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from longarc.training.run_folder import RunFolder

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

    from longarc.training.config import TrainConfig
    from longarc.training.pretraining.config import PretrainConfig


UNUSED_OUTPUTS = [
    "hidden_states", "attentions", "past_key_values", "encoder_last_hidden_state",
    "encoder_hidden_states", "encoder_attentions", "cross_attentions",
]  # fmt: skip
"""Model outputs that evaluation must not collect: they are as long as the documents."""


def training_arguments(
    config: TrainConfig, device: torch.device, documents: int
) -> TrainingArguments:
    """Arguments for a run on ``documents`` training documents; its precision is settled already."""
    from transformers import TrainingArguments

    updates = documents / (config.batch_size * config.accumulation)
    return TrainingArguments(
        **common_arguments(config, device),
        per_device_eval_batch_size=2 * config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=0.0 if config.learning_rate == "auto" else config.learning_rate,
        train_sampling_strategy="group_by_length" if config.group_by_length else "random",
        logging_steps=max(1, math.ceil(updates * config.epochs / 200)),
        eval_strategy="epoch" if config.validates else "no",
        eval_on_start=config.validates,
        load_best_model_at_end=config.validates,
        metric_for_best_model="macro_f1",
        greater_is_better=True,
        label_names=["labels"],
        ddp_timeout=7 * 24 * 3600,  # the others wait while the first fits the baselines
    )


def count_steps(config: TrainConfig, documents: int) -> int:
    """Updates of a run on so many training documents, as transformers counts them."""
    of_epoch = math.ceil(documents / (config.batch_size * config.accumulation))
    return max(1, math.ceil(of_epoch * config.epochs))


def common_arguments(config: TrainConfig | PretrainConfig, device: torch.device) -> dict[str, Any]:
    """What a training and a pretraining have in common."""
    return {
        "output_dir": str(RunFolder(config.run).checkpoints),
        "per_device_train_batch_size": config.batch_size,
        "num_train_epochs": config.epochs,
        "weight_decay": config.weight_decay,
        # transformers takes a number below 1 for a share, and 1 for a single step.
        "warmup_steps": min(config.warmup, math.nextafter(1, 0)),
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.precision == "bf16",
        "use_cpu": device.type == "cpu",
        "seed": config.seed,
        "logging_nan_inf_filter": False,
        "save_strategy": "epoch",
        "save_total_limit": 2,  # the best and the last; with 1 transformers drops the last
        "restore_callback_states_from_checkpoint": True,
        "average_tokens_across_devices": False,
        "remove_unused_columns": False,
        "dataloader_pin_memory": device.type != "cpu",
        "disable_tqdm": True,
        "report_to": "none",
    }
