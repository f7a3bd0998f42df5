"""The predictions of a run, explained by its training documents."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longarc.attribution.counterfactual import effects
from longarc.attribution.effects import Effects
from longarc.attribution.explanation import MEASURES, METHODS, Explanation
from longarc.attribution.index import store
from longarc.attribution.index.answer import explain_by_index
from longarc.attribution.index.build import Progress, build_index
from longarc.attribution.kernel_machine import KernelMachine
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.errors import OptionError, close_matches
from longarc.objectives.losses.registry import build_loss
from longarc.objectives.regularizers.changed_loss import ChangedLoss
from longarc.objectives.regularizers.registry import build_regularizers
from longarc.options import check_choice
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.recording.recorded_path import RecordedPath, load_training

if TYPE_CHECKING:
    from longarc.objectives.losses.contract import Loss
    from longarc.training.prediction import Predictor
    from longarc.training.run_folder import RunFolder


def explain_run(
    folder: RunFolder,
    predictor: Predictor,
    texts: Sequence[str],
    *,
    label: str | None = None,
    over: Sequence[str | None] | None = None,
    of: str = "logit",
    method: str = "exact",
    tolerance: float = 1e-3,
    parameters: Callable[[str], bool] | None = None,
    say: Callable[[str], Any] | None = None,
    progress: Progress | None = None,
    advance: Callable[[float], Any] | None = None,
) -> list[Explanation]:
    """Explain what a run's model says of texts; see :meth:`longarc.Run.explain`.

    ``over`` names the other class of each text's margin, in place of the strongest one.
    ``predictor`` serves the run's model. Its weights are those after all that followed the
    training; what that changed in a number is the term ``afterwards``.
    """
    check_choice("measure", of, MEASURES)
    check_choice("method", method, METHODS)
    path = _path(folder)
    if method == "indexed" and parameters is not None:
        raise OptionError(
            "an index has its parameters from when it was built. Name them in build_index, or use "
            "method='exact'."
        )
    queries, finals = _queries(folder, predictor, texts, label=label, over=over, of=of)
    model, length = predictor.model, predictor.max_length
    training, labels = load_training(folder.training_file)
    names = _named(labels)
    if method == "indexed":
        index = index_run(folder, predictor, say=say, progress=progress)
        found = explain_by_index(index, path, model, queries, labels=names)
    else:
        found = explain(
            path,
            model,
            Documents(training, predictor.tokenizer, length),
            PaddedBatches(predictor.tokenizer, length),
            queries,
            tolerance=tolerance,
            parameters=parameters,
            labels=names,
            advance=advance,
        )
    changed = _changed_afterwards(folder)
    return [
        dataclasses.replace(
            e,
            texts=training,
            final=final if changed else e.final,
            afterwards=final - e.final if changed else 0.0,
        )
        for e, final in zip(found, finals, strict=True)
    ]


def effects_of_run(
    folder: RunFolder,
    predictor: Predictor,
    texts: Sequence[str],
    *,
    label: str | None = None,
    of: str = "logit",
    advance: Callable[[float], Any] | None = None,
) -> list[Effects]:
    """What a run's model would say of texts without each document; see :meth:`Run.effects`."""
    check_choice("measure", of, MEASURES)
    path = _path(folder)
    queries, _ = _queries(folder, predictor, texts, label=label, over=None, of=of)
    length = predictor.max_length
    training, labels = load_training(folder.training_file)
    falls = effects(
        path,
        predictor.model,
        Documents(training, predictor.tokenizer, length, folder.labels().encode(labels)),
        PaddedBatches(predictor.tokenizer, length),
        queries,
        loss=_loss(folder, len(training)),
        advance=advance,
    )
    return [
        Effects(
            query.name,
            each,
            labels=_named(labels),
            texts=training,
            afterwards=_changed_afterwards(folder),
        )
        for query, each in zip(queries, falls, strict=True)
    ]


def kernel_machine_of_run(
    folder: RunFolder, predictor: Predictor, *, together: int = 32, tolerance: float = 1e-3
) -> KernelMachine:
    """A run's model over its training documents; see :meth:`longarc.Run.kernel_machine`."""
    path = _path(folder)
    space, length = folder.labels(), predictor.max_length
    training, _ = load_training(folder.training_file)
    return KernelMachine(
        path,
        predictor.model,
        Documents(training, predictor.tokenizer, length),
        PaddedBatches(predictor.tokenizer, length),
        read=lambda texts: Documents(texts, predictor.tokenizer, length),
        names=space.names,
        loss=_loss(folder, len(training)),
        together=together,
        tolerance=tolerance,
    )


def index_run(
    folder: RunFolder,
    predictor: Predictor,
    *,
    checkpoints: int | None = None,
    dimensions: int | None = None,
    overwrite: bool = False,
    parameters: Callable[[str], bool] | None = None,
    say: Callable[[str], Any] | None = None,
    progress: Progress | None = None,
) -> store.Index:
    """Build a run's index, go on with it, or give the one it has; see :meth:`Run.build_index`."""
    path = _path(folder)
    place = path.folder / "index"
    asked: dict[str, Any] = {"checkpoints": checkpoints, "dimensions": dimensions}
    given = {name: value for name, value in asked.items() if value is not None}
    if overwrite:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise OptionError(
                "several processes cannot replace an index together: one would remove what another "
                f"has built. Remove {place} first."
            )
        store.remove(place)
    elif (place / "index.json").is_file():
        index = store.Index(place)
        about = index.about
        asked_for = given or parameters is not None
        if about["path"] == store.path_identity(path) and not (asked_for or index.missing):
            return index
        # Options that are not given are those it was begun with.
        given = {"checkpoints": about["asked"], "dimensions": about["dimensions"]} | given
        if parameters is None:
            parameters = set(about["parameters"]).__contains__
    training, _ = load_training(folder.training_file)
    length = predictor.max_length
    return build_index(
        path,
        predictor.model,
        Documents(training, predictor.tokenizer, length),
        PaddedBatches(predictor.tokenizer, length),
        place,
        parameters=parameters,
        say=say,
        progress=progress,
        **given,
    )


def _queries(
    folder: RunFolder,
    predictor: Predictor,
    texts: Sequence[str],
    *,
    label: str | None,
    over: Sequence[str | None] | None,
    of: str,
) -> tuple[list[Query], list[float]]:
    """A query for each text, and what the model that is served says."""
    space = folder.labels()
    names = space.names
    if label is not None and label not in names:
        raise OptionError(f"There is no label '{label}'. {close_matches(label, names)}")
    collate = PaddedBatches(predictor.tokenizer, predictor.max_length)
    documents = Documents(texts, predictor.tokenizer, predictor.max_length)
    queries, finals = [], []
    for i, logits in enumerate(torch.from_numpy(np.asarray(predictor.logits(texts)))):
        order = logits.argsort(descending=True).tolist()
        chosen = order[0] if label is None else names.index(label)
        rival = next(c for c in order if c != chosen) if len(order) > 1 else None
        if over is not None and (named := over[i]) is not None and named != names[chosen]:
            rival = names.index(named)
        name = f"{of} of {names[chosen]}"
        if of == "margin" and rival is not None:
            name += f" over {names[rival]}"
        value = measure(of, chosen, rival, multi_label=space.multi_label)
        inputs = {k: v.to(predictor.model.device) for k, v in collate([documents[i]]).items()}
        queries.append(Query(inputs, value, name))
        finals.append(float(value(logits)))
    return queries, finals


def _changed_afterwards(folder: RunFolder) -> bool:
    """Whether the model that is served is more than the one that was trained."""
    stage = folder.recipe().get("second_stage", {})
    return bool(folder.config().hybrid or stage.get("head_changed"))


def _named(labels: Sequence[Any]) -> list[str]:
    """A name for each document, which may have several labels."""
    return [", ".join(each) if isinstance(each, list) else each for each in labels]


def _loss(folder: RunFolder, documents: int) -> Loss:
    """What the run minimised."""
    config, space = folder.config(), folder.labels()
    loss = build_loss(
        config.loss,
        class_counts=space.counts,
        num_examples=documents,
        options=config.loss_options,
        multi_label=space.multi_label,
    )
    regularizers = build_regularizers(config.regularizers)
    return ChangedLoss(loss, regularizers) if regularizers else loss


def _path(folder: RunFolder) -> RecordedPath:
    folder.refuse_unrecorded()
    return RecordedPath(folder.recorded)
