"""A tiny training job on a real BERT: for tests in this process, and as a script to be killed.

``python worker.py FOLDER JOBS.json`` runs the jobs of ``main``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
)

from longarc.models.mean_pooled import from_encoder
from longarc.objectives.losses.registry import build_loss
from longarc.objectives.regularizers.batch import Batch
from longarc.objectives.regularizers.registry import build_regularizers
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.callbacks import CheckpointClock, Interruption, RunLog
from longarc.training.checkpoint import last_checkpoint
from longarc.training.recipes.sampling import sampling_weights
from longarc.training.trainer import Trainer
from shared_draws import SharedDropout, shared_noise

CLASSES = 3
WORDS = """
pump valve oil leak noise motor bolt gasket invoice payment due amount bank tax refund order
contract party clause term court law liability notice the a is not of and in on
""".split()  # noqa: SIM905  (a list would take forty lines)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def make_table(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of 1 to 40 words, and the class (0 … 2) that most of their words come from."""
    random = np.random.default_rng(seed)
    target = random.integers(0, CLASSES, rows)
    texts = []
    for label in target:
        own = WORDS[8 * label : 8 * label + 8]
        length = int(random.integers(1, 41))
        texts.append(" ".join(random.choice(own if random.random() < 0.7 else WORDS)
                              for _ in range(length)))  # fmt: skip
    return texts, target.astype(np.int64)


def make_config(dropout: float = 0.0, **options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=64, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, **options,
    )  # fmt: skip


def make_model(dropout: float = 0.0, classes: int = CLASSES, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return from_encoder(
        BertModel(make_config(dropout)), num_labels=classes, classifier_dropout=dropout
    )


def make_arguments(out: str | Path, **options: Any) -> TrainingArguments:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "learning_rate": 0.1,
        "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "use_cpu": True,
        "train_sampling_strategy": "sequential", "average_tokens_across_devices": False,
        "remove_unused_columns": False, "label_names": ["labels"], "disable_tqdm": True,
        "dataloader_pin_memory": False, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "seed": 0, "logging_nan_inf_filter": False,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(out), **defaults | options)


def accuracy(evaluated: Any) -> dict[str, float]:
    return {"accuracy": float((evaluated.predictions.argmax(1) == evaluated.label_ids).mean())}


def make_resumable(
    out: str | Path,
    *,
    rows: int = 40,
    seed: int = 0,
    dropout: float = 0.2,
    callbacks: tuple[Any, ...] = (),
    patience: int = 5,
    sampler: str = "random",
    loss: str = "logit-adjusted",
    loss_options: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """A trainer set up as the training job sets it up: AdamW, groups by depth, best checkpoint."""
    tokenizer = make_tokenizer()
    texts, target = make_table(rows)
    held_out, held_out_target = make_table(16, seed=1)
    settings = {
        "num_train_epochs": 3, "learning_rate": 1e-2, "optim": "adamw_torch", "seed": seed,
        "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.01,
        "max_grad_norm": 1.0, "train_sampling_strategy": "group_by_length",
        "eval_strategy": "epoch", "eval_on_start": True, "save_strategy": "epoch",
        "load_best_model_at_end": True, "metric_for_best_model": "accuracy",
        "greater_is_better": True, "restore_callback_states_from_checkpoint": True,
        "save_total_limit": 2,
    }  # fmt: skip
    return Trainer(
        make_model(dropout),
        make_arguments(out, **settings | options),
        train_dataset=Documents(texts, tokenizer, 48, target),
        eval_dataset=Documents(held_out, tokenizer, 48, held_out_target),
        data_collator=PaddedBatches(tokenizer, 48),
        processing_class=tokenizer,
        compute_metrics=accuracy,
        loss=build_loss(loss, class_counts=np.bincount(target).tolist(), options=loss_options),
        layer_decay=0.8,
        sampling_weights=sampling_weights(target, sampler),
        callbacks=[EarlyStoppingCallback(patience), *callbacks],
    )


class Weights(TrainerCallback):
    """A copy of the weights after the last step, before the best ones are loaded."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.last = {name: value.detach().clone() for name, value in model.state_dict().items()}


class SignalAt(TrainerCallback):
    """Send this process a signal after a step, at a time that ``moment`` names."""

    def __init__(self, step: int, moment: str, number: int):
        self.step, self.moment, self.number = step, moment, number

    def _send(self, moment: str, state: Any) -> None:
        if moment == self.moment and state.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._send("step", state)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._send("save", state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._send("evaluate", state)


class Order:
    """Wraps a collator and writes down which documents it saw, by their ids."""

    def __init__(self, collate: PaddedBatches):
        self.collate = collate
        self.seen: list[list[list[int]]] = []

    def __call__(self, items: Any) -> Any:
        self.seen.append([item["input_ids"] for item in items])
        return self.collate(items)


def train_to_be_stopped(folder: Path, options: dict[str, Any]) -> None:
    """Train until a signal arrives; ``minutes`` 0 saves after every step."""
    callbacks: list[Any] = [RunLog(folder / "log.jsonl")]
    if "minutes" in options:
        callbacks.append(CheckpointClock(options["minutes"]))
    if "interruption" in options:
        callbacks.append(Interruption())
    if "kill_while_saving" in options:
        # In the midst of a save: weights are written, the optimizer's state is not.
        import longarc.training.trainer as module

        def save(folder: Path, *_: Any) -> None:
            if f"checkpoint-{options['kill_while_saving']}-" in folder.name:
                os.kill(os.getpid(), signal.SIGKILL)
            original(folder, *_)

        original, module.save_optimizer = module.save_optimizer, save
    if "signal" in options:
        step, moment, number = options["signal"]
        callbacks.insert(0, SignalAt(step, moment, number))
    make_resumable(folder, callbacks=tuple(callbacks), **options.get("training", {})).train()


def train_in_parallel(folder: Path, options: dict[str, Any]) -> None:
    """Three SGD epochs; each rank keeps the weights, and the documents it saw.

    Nothing that is drawn depends on how many processes there are.
    """
    from safetensors.torch import save_file

    tokenizer = make_tokenizer()
    texts, target = make_table(options["rows"])
    if options.get("multi_hot"):
        target = (np.arange(CLASSES) <= target[:, None]).astype(np.float32)
    collate = Order(PaddedBatches(tokenizer))
    model = make_model()
    if options.get("dropout"):
        model.dropout = SharedDropout()
    trainer = Trainer(
        model,
        make_arguments(folder, save_strategy="epoch", **options["training"]),
        train_dataset=Documents(texts, tokenizer, 48, target),
        data_collator=collate,
        loss=build_loss(
            options["loss"],
            class_counts=[30, 10, 3],
            num_examples=43,
            multi_label=bool(options.get("multi_hot")),
        ),
        regularizers=build_regularizers(options.get("regularizers")),
        head_learning_rate=options.get("head_learning_rate", 0.2),
        sampling_weights=sampling_weights(target, options.get("sampler", "random")),
    )
    with mock.patch.object(Batch, "noise", shared_noise):
        trainer.train()
    rank = trainer.args.process_index
    (folder / f"seen-{rank}.json").write_text(json.dumps(collate.seen))
    save_file(
        {n: p.contiguous() for n, p in trainer.model.state_dict().items()},
        folder / f"weights-{rank}.safetensors",
    )


def run_forked(job: Any, folder: Path, options: dict[str, Any]) -> int:
    """Run a job in a child process; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job(folder, options)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """``worker.py FOLDER JOBS.json``: each job in a folder of its name.

    Jobs to be stopped run in forks of this process, which has imported everything once.
    """
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    jobs = json.loads(Path(sys.argv[2]).read_text())
    codes = {}
    for name, options in jobs.items():
        (root / name).mkdir(exist_ok=True)
        if "rows" in options:
            train_in_parallel(root / name, options)
        else:
            codes[name] = run_forked(train_to_be_stopped, root / name, options)
    if codes:
        (root / "codes.json").write_text(json.dumps(codes))


def resume(folder: Path, **options: Any) -> Trainer:
    """Go on in this process from the last checkpoint."""
    trainer = make_resumable(folder, **options)
    checkpoint = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


if __name__ == "__main__":
    main()
