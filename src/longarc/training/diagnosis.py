"""A run or a model on documents of a table, one at a time: what its gradient does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longarc.data.examples import Examples, read_examples
from longarc.data.labels import LabelSpace
from longarc.data.table import open_table
from longarc.dynamics.diagnosis import Diagnosis, diagnose
from longarc.errors import DataError
from longarc.models.head import final_linear
from longarc.models.loading import load_model, load_tokenizer, resolve_model, usable_length
from longarc.models.recurrent.options import CELLS
from longarc.models.recurrent.scratch import starting_tokenizer
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.registry import build_loss
from longarc.options import check_whole
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.config import TrainConfig
from longarc.training.prediction import chosen_device, trained_loss
from longarc.training.progress import Reporter
from longarc.training.reading_length import DEFAULT_LENGTH
from longarc.training.run_folder import is_pretraining, is_run, open_run_folder
from longarc.training.starting_model import starting_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_DOCUMENTS = 16
"""Medians over so many differ little from those over more, and take half a minute."""

EXACT = 4
"""Documents whose dL/dU is split by distance: seconds each at 512 tokens."""


@dataclass(frozen=True)
class Diagnosed:
    """A diagnosis, and what it is one of.

    ``model`` is the run's folder or the model's name, ``followed`` what number was followed back,
    ``data`` the table, ``max_length`` the tokens that were read of a document.
    """

    model: str
    data: str
    followed: str
    max_length: int
    diagnosis: Diagnosis

    def to_dict(self) -> dict[str, Any]:
        """What ``diagnosis.json`` holds."""
        about = {n: getattr(self, n) for n in ("model", "data", "followed", "max_length")}
        return about | self.diagnosis.to_dict()


def diagnose_documents(
    name: str | Path,
    data: Any,
    *,
    text: str | None = None,
    label: str | None = None,
    documents: int = DEFAULT_DOCUMENTS,
    max_length: int | None = None,
    exact: bool = False,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Diagnosed:
    """Diagnose a run's trained model, or a model as a training would start from it.

    Documents are drawn at random and looked at one by one, without padding and dropout. With labels
    the run's loss is followed back (of a model: cross-entropy of a new head); without them the
    score of the predicted class (of a model: that of a new head's first).

    Args:
        name: run folder, or the model as ``longarc train --model`` takes it.
        data: as for ``open_table``.
        text: column of texts; as in training, or guessed.
        label: column of labels; as in training if the table has it, or none.
        documents: how many.
        max_length: tokens that are read of each; as in training, or what the model's positions
            allow, up to 512.
        exact: also split recurrent layers' dL/dU by distance, on up to 4 documents.
        seed: of the draw and of a new head.
        reporter: is told of the progress.

    Raises:
        LongarcError: options, a run, a model or a table that cannot be used.
    """
    check_whole("documents", documents, at_least=1)
    reporter = reporter or Reporter(None)
    subject = _of_run if is_run(name) else _of_model
    found = subject(name, data, text, label, max_length, documents, seed)
    device = found.model.device
    batches = ({key: value.to(device) for key, value in batch.items()} for batch in found.batches())
    with reporter.task("following the gradient back", len(found.documents)) as advance:
        diagnosis = diagnose(
            found.model, batches, loss=found.loss, exact=EXACT if exact else 0, advance=advance
        )
    source = data if isinstance(data, str | Path) else found.source
    return Diagnosed(str(name), str(source), found.followed, found.max_length, diagnosis)


@dataclass(frozen=True)
class _Subject:
    """A model with documents, and what is followed back from them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    documents: Documents
    max_length: int
    loss: Callable[[nn.Module, Any], Tensor]
    followed: str
    source: str

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """One document a batch, and no longer than it is."""
        for i in range(len(self.documents)):
            item = self.documents[i]
            collate = PaddedBatches(self.tokenizer, len(item["input_ids"]))
            yield collate([item])


def _of_run(
    name: str | Path,
    data: Any,
    text: str | None,
    label: str | None,
    max_length: int | None,
    documents: int,
    seed: int,
) -> _Subject:
    folder = open_run_folder(name)
    config, space = folder.config(), folder.labels()
    text = text or config.text
    if label is None and config.label in open_table(data).columns:
        label = config.label
    examples = _read(data, text, label, config.label_separator).spelled_like(space.names)
    if label is not None and not space.multi_label:
        space.encode(examples.labels or [])  # lists are refused
        known = [i for i, name in enumerate(examples.labels or []) if name in space.index]
        if not known:
            raise DataError(
                f"No label of {examples.source} is one that the run was trained on, such as "
                f"{space.names[0]!r}. Name another column with --label."
            )
        examples = examples.select(known)
    elif label is not None:
        space.encode(examples.labels or [])
    loss = trained_loss(folder)
    if loss is not None:
        loss.set_progress(1.0)  # the training is over
        followed = f"the loss of the run ({config.loss})"
    else:  # it trained another head, or not this sum
        loss, followed = _usual_loss(space)
    trained = config.max_length or DEFAULT_LENGTH
    length = check_whole("max_length", max_length or trained, at_least=2, at_most=trained)
    trust = config.trust_remote_code
    model = load_model(folder.model, trust_remote_code=trust)
    model = model.to(chosen_device(config.device))  # pyright: ignore[reportArgumentType]
    return _subject(
        model.requires_grad_(True),
        load_tokenizer(folder.model, trust_remote_code=trust),
        _drawn(examples, documents, seed),
        space if label is not None else None,
        length,
        loss=loss,
        named=followed,
        unlabelled="the score of the predicted class",
    )


def _of_model(
    name: str | Path,
    data: Any,
    text: str | None,
    label: str | None,
    max_length: int | None,
    documents: int,
    seed: int,
) -> _Subject:
    folder = Path(name).expanduser()
    if is_pretraining(folder):
        from longarc.training.pretraining.folder import PretrainFolder

        name = open_run_folder(folder, kind=PretrainFolder).model
    if str(name) not in CELLS:
        resolve_model(name)
    limit = usable_length(name)
    length = min(limit or DEFAULT_LENGTH, DEFAULT_LENGTH) if max_length is None else max_length
    check_whole("max_length", length, at_least=2, at_most=limit)
    examples = _read(data, text, label, None)
    space = LabelSpace.from_labels(examples.labels) if label is not None else None
    config = TrainConfig(data="", model=str(name), max_length=length, seed=seed)
    tokenizer = starting_tokenizer(str(name))
    head = space or LabelSpace(("first", "second"), (1, 1), False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = starting_model(config, head, tokenizer).eval()
    loss, kind = _usual_loss(head)
    return _subject(
        model.to(chosen_device()),  # pyright: ignore[reportArgumentType]
        tokenizer,
        _drawn(examples, documents, seed),
        space,
        length,
        loss=loss,
        named=f"the {kind} of a new head, as a training would start",
        unlabelled="a score of a new head",
    )


def _read(data: Any, text: str | None, label: str | None, separator: str | None) -> Examples:
    examples, _ = read_examples(
        data,
        text=text,
        label=label,
        label_separator=separator if label is not None else None,
        need_label=False,
    )
    kept = [i for i, each in enumerate(examples.texts) if each.strip()]
    if not kept:
        raise DataError(f"{examples.source} has no text; expected one row or more with a text.")
    return examples.select(kept)


def _drawn(examples: Examples, documents: int, seed: int) -> Examples:
    places = range(len(examples))
    if documents < len(examples):
        places = sorted(random.Random(seed).sample(places, documents))
    return examples.select(places)


def _usual_loss(space: LabelSpace) -> tuple[Loss, str]:
    """Cross-entropy, binary where labels are independent, and its name."""
    kind = "binary-cross-entropy" if space.multi_label else "cross-entropy"
    return build_loss(kind, class_counts=space.counts, multi_label=space.multi_label), kind


def _subject(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    space: LabelSpace | None,
    length: int,
    *,
    loss: Any,
    named: str,
    unlabelled: str,
) -> _Subject:
    targets = None if space is None else space.encode(examples.labels or [])
    found = Documents(examples.texts, tokenizer, length, targets)
    loss = loss.to(model.device)

    def follow(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs).logits
        if space is None:
            return logits.max(dim=1).values.sum()
        more = {"class_vectors": final_linear(model).weight} if loss.uses_class_vectors else {}
        return loss(logits, batch["labels"], **more)

    named = unlabelled if space is None else named
    return _Subject(model, tokenizer, found, length, follow, named, examples.source)
