"""The predictions of a run, explained by its training documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longarc.attribution.explanation import Explanation
from longarc.attribution.kernel_machine import KernelMachine
from longarc.attribution.query import MEASURES, Query, measure
from longarc.attribution.sweep import explain
from longarc.errors import OptionError, RunError, close_matches
from longarc.objectives.losses.registry import build_loss
from longarc.options import check_choice
from longarc.training.batches import Documents, PaddedBatches
from longarc.training.recorded_path import RecordedPath, load_training

if TYPE_CHECKING:
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
    tolerance: float = 1e-3,
    parameters: Callable[[str], bool] | None = None,
    advance: Callable[[float], Any] | None = None,
) -> list[Explanation]:
    """Explain what a run's model says of texts; see :meth:`longarc.Run.explain`.

    ``over`` names the other class of each text's margin, in place of the strongest one.
    ``predictor`` serves the run's model. Its weights are those after all that followed the
    training; what that changed in a number is the term ``afterwards``.
    """
    check_choice("measure", of, MEASURES)
    path = _path_of(folder)
    space = folder.labels()
    if label is not None and label not in space.names:
        raise OptionError(f"There is no label '{label}'. {close_matches(label, space.names)}")
    served = predictor.logits(texts)
    model, length = predictor.model, predictor.max_length
    collate = PaddedBatches(predictor.tokenizer, length)
    documents = Documents(texts, predictor.tokenizer, length)
    queries, finals = [], []
    for i, logits in enumerate(torch.from_numpy(np.asarray(served))):
        order = logits.argsort(descending=True).tolist()
        chosen = order[0] if label is None else space.names.index(label)
        rival = next(c for c in order if c != chosen) if len(order) > 1 else None
        if over is not None and (named := over[i]) is not None and named != space.names[chosen]:
            rival = space.names.index(named)
        name = f"{of} of {space.names[chosen]}"
        if of == "margin" and rival is not None:
            name += f" over {space.names[rival]}"
        value = measure(of, chosen, rival)
        inputs = {k: v.to(model.device) for k, v in collate([documents[i]]).items()}
        queries.append(Query(inputs, value, name))
        finals.append(float(value(logits)))
    training, labels = load_training(folder.training_file)
    names = [", ".join(each) if isinstance(each, list) else each for each in labels]
    found = explain(
        path,
        model,
        Documents(training, predictor.tokenizer, length),
        collate,
        queries,
        tolerance=tolerance,
        parameters=parameters,
        labels=names,
        advance=advance,
    )
    changed = folder.config().hybrid or folder.recipe().get("second_stage", {}).get("head_changed")
    return [
        dataclasses.replace(
            e,
            texts=training,
            final=final if changed else e.final,
            afterwards=final - e.final if changed else 0.0,
        )
        for e, final in zip(found, finals, strict=True)
    ]


def kernel_machine_of_run(
    folder: RunFolder, predictor: Predictor, *, together: int = 32, tolerance: float = 1e-3
) -> KernelMachine:
    """A run's model over its training documents; see :meth:`longarc.Run.kernel_machine`."""
    path = _path_of(folder)
    config, space, length = folder.config(), folder.labels(), predictor.max_length
    training, _ = load_training(folder.training_file)
    return KernelMachine(
        path,
        predictor.model,
        Documents(training, predictor.tokenizer, length),
        PaddedBatches(predictor.tokenizer, length),
        read=lambda texts: Documents(texts, predictor.tokenizer, length),
        names=space.names,
        loss=build_loss(
            config.loss,
            class_counts=space.counts,
            num_examples=len(training),
            options=config.loss_options,
            multi_label=space.multi_label,
        ),
        together=together,
        tolerance=tolerance,
    )


def _path_of(folder: RunFolder) -> RecordedPath:
    if not folder.recorded.is_dir():
        raise RunError(
            f"the run in {folder.path} recorded no training path, so nothing is known of how its "
            "documents made its predictions. Train it again with the path: longarc train "
            f"--config {folder.config_file} --record-path --out {folder.path}-recorded"
        )
    return RecordedPath(folder.recorded)
