"""From a table to checked, split and labelled documents; what can be refused is refused here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longarc.data.check import CheckResult, check_splits
from longarc.data.columns import Columns
from longarc.data.examples import Examples, read_examples
from longarc.data.labels import LabelSpace, flat
from longarc.data.splits import Splits, make_splits
from longarc.data.table import open_table
from longarc.data.unlabelled import read_unlabelled
from longarc.errors import DataError, OptionError
from longarc.models.attention.registry import check_attention_options
from longarc.models.recurrent.scratch import starting_tokenizer
from longarc.objectives.losses.registry import check_loss_options
from longarc.objectives.regularizers.registry import build_regularizers
from longarc.training.config import TrainConfig
from longarc.training.progress import Reporter
from longarc.training.reading_length import reading_length
from longarc.training.run_folder import hash_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """What training starts from. ``config`` has the guesses and defaults filled in."""

    config: TrainConfig
    splits: Splits
    space: LabelSpace
    tokenizer: PreTrainedTokenizerBase
    check: CheckResult
    data_sha256: str
    unlabelled: Examples | None = None


def prepare(
    config: TrainConfig, reporter: Reporter, data: Any = None, *, refuse: bool = True
) -> Prepared:
    """Read, check and split; raises DataError or OptionError before anything is written.

    ``data`` is a table in memory that stands for ``config.data``. Without ``refuse`` the errors a
    check finds are left in ``check`` for the caller to show.
    """
    config.validate()
    if config.loss != "auto":
        check_loss_options(config.loss, config.loss_options)
    elif config.loss_options:
        raise OptionError("--loss-options needs --loss: loss auto has no options of its own.")
    build_regularizers(config.regularizers)  # the constructors know the ranges
    if config.attention is not None:
        check_attention_options(config.attention, config.attention_options)
    tokenizer = starting_tokenizer(
        config.model,
        config.model_options,
        config.embeddings,
        trust_remote_code=config.trust_remote_code,
    )
    config = dataclasses.replace(config, max_length=reading_length(config))

    with reporter.timed("prepare"):
        examples, columns = _read(config, config.data if data is None else data, reporter)
        parts: dict[str, Examples] = {}
        for name in ("validation", "test"):
            if (source := getattr(config, name)) is not None:
                part, _ = read_examples(
                    source,
                    text=columns.text,
                    label=columns.label,
                    label_separator=config.label_separator,
                )
                parts[name] = part.spelled_like(flat(examples.labels or ()))
        config = dataclasses.replace(config, text=columns.text, label=columns.label)
        splits = make_splits(
            examples,
            **parts,
            validation_fraction=config.validation_fraction,
            test_fraction=config.test_fraction,
            seed=config.seed,
        )
        space = LabelSpace.from_labels(splits.train.labels)
        for part in parts.values():  # a file of its own may have the other kind of labels
            space.encode((part.labels or [])[:1])
        config = _settle_loss(config, space)
        if columns.label in space.names:
            reporter.say(
                f"warning: the label column is called '{columns.label}', which is also a label. "
                "Is the header missing?"
            )
        unlabelled = None
        if config.unlabelled is not None:
            unlabelled, sentence = read_unlabelled(
                config.unlabelled, text=columns.text, splits=splits
            )
            reporter.say(sentence)
        check = check_splits(splits, space, tokenizer=tokenizer, max_length=config.max_length)
        if refuse and check.errors:
            raise DataError(" ".join(finding.message for finding in check.errors))
    digest = hash_texts(
        part
        for _, split in splits.items()
        for part in (*split.texts, *map(str, split.labels or ()))
    )
    if unlabelled is not None:
        digest = hash_texts([digest, *unlabelled.texts])
    return Prepared(config, splits, space, tokenizer, check, digest, unlabelled)


def _read(config: TrainConfig, source: Any, reporter: Reporter) -> tuple[Examples, Columns]:
    table = open_table(source, to_train=True)
    for note in table.notes:
        reporter.say(note)
    examples, columns = read_examples(
        table,
        text=config.text,
        label=config.label,
        label_separator=config.label_separator,
        limit=config.limit,
        seed=config.seed,
    )
    for sentence in columns.guessed:
        reporter.say(sentence)
    return examples, columns


def _settle_loss(config: TrainConfig, space: LabelSpace) -> TrainConfig:
    """The loss where it is left open, but for the job to choose by probes under --recipe auto."""
    if config.recipe == "tau-norm" and space.multi_label:
        raise OptionError(
            "--recipe tau-norm changes no decision where a document can have several labels: it "
            "scales each label's logit and leaves its sign. Use --recipe post-hoc or crt."
        )
    name = config.loss
    if name == "auto" and not (config.recipe == "auto" and config.head_start == "probe"):
        name = "binary-cross-entropy" if space.multi_label else "cross-entropy"
    return dataclasses.replace(config, loss=name)
