"""How captum, TRAK and dattri attribute the loss of a query, each by its own documented calls.

Every function takes a :class:`Task` and returns contributions to the loss, (queries, documents),
of which the higher raise it, with the seconds of processor time for the documents and for the
queries, and the bytes kept for a document. Where a task asks for margins, a query's loss is its
negative margin.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Plain(nn.Module):
    """A classifier of transformers as a function of tensors: ids, types, mask → logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(b, n) each → (b, C)."""
        return self.model(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask
        ).logits


@dataclass
class Task:
    """One trained model, its checkpoints, and tensors of its documents and queries.

    ``train`` and ``queries`` are what the model takes, and the label; ``checkpoints`` are state
    dicts of the model, ``rates`` the sum of learning rates that each stands for.
    """

    model: nn.Module
    train: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    checkpoints: list[dict[str, Tensor]]
    rates: list[float]
    head: list[str]
    dimensions: int
    batch: int
    margin: bool = False


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """Give log p / (1 − p) of the labels, (b,), from logits (b, C): what TRAK attributes."""
    chosen = label.reshape(-1, 1)
    others = logits.scatter(1, chosen, -torch.inf)
    return logits.gather(1, chosen)[:, 0] - others.logsumexp(dim=1)


@dataclass
class Found:
    """What a method found, and what it cost."""

    scores: np.ndarray
    index_seconds: float
    query_seconds: float
    bytes_per_document: float
    gradients: int


def captum_tracin(task: Task) -> Found:
    """TracInCP of captum over all layers: gradients of documents are made anew for each query."""
    from captum.influence import TracInCP

    more: dict[str, Any] = {"loss_fn": nn.CrossEntropyLoss(reduction="none")}
    if task.margin:
        more["test_loss_fn"] = lambda logits, label: -margin(logits, label)
    return _captum(task, TracInCP, more)


def captum_tracin_fast(task: Task) -> Found:
    """TracInCPFast of captum: the last linear layer alone."""
    from captum.influence import TracInCPFast

    head = task.model.get_submodule(task.head[0].rpartition(".")[0])
    more = {"loss_fn": nn.CrossEntropyLoss(reduction="sum"), "final_fc_layer": head}
    return _captum(task, TracInCPFast, more)


def _captum(task: Task, kind: Callable[..., Any], more: dict[str, Any]) -> Found:
    def load(model: nn.Module, number: str) -> float:
        model.load_state_dict(task.checkpoints[int(number)])
        return task.rates[int(number)]

    model = task.model.eval()
    influence = kind(
        model=model,
        train_dataset=TensorDataset(*task.train),
        checkpoints=[str(i) for i in range(len(task.checkpoints))],
        checkpoints_load_func=load,
        batch_size=task.batch,
        **more,
    )
    started = time.process_time()
    scores = influence.influence(task.queries, k=None)
    took = time.process_time() - started
    number = len(task.train[0])
    return Found(-scores.numpy(), took, took, 0.0, number * len(task.checkpoints))


def trak(task: Task) -> Found:
    """TRAK with its BasicProjector, over the same checkpoints."""
    from trak import TRAKer
    from trak.modelout_functions import (
        ImageClassificationModelOutput,
        TextClassificationModelOutput,
    )
    from trak.projectors import BasicProjector, ProjectionType

    model = task.model.eval()
    # Both are margins; that for images is of models with one input.
    output = (
        ImageClassificationModelOutput()
        if len(task.train) == 2
        else TextClassificationModelOutput()
    )
    number, asked = len(task.train[0]), len(task.queries[0])
    size = sum(p.numel() for p in model.parameters())
    device = str(task.train[0].device)  # told apart from "cpu" as text
    # Of a single block it forgets the signs when its features are done, and fails afterwards.
    projector = BasicProjector(
        size,
        task.dimensions,
        0,
        ProjectionType.rademacher,
        device,
        block_size=min(128, task.dimensions // 2),
    )
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            model, output, number, save_dir=folder, device=device,
            projector=projector, proj_dim=task.dimensions, use_half_precision=False,
            logging_level=50,
        )  # fmt: skip
        started = time.process_time()
        for i, weights in enumerate(task.checkpoints):
            traker.load_checkpoint(weights, model_id=i)
            for first in range(0, number, task.batch):
                some = [t[first : first + task.batch] for t in task.train]
                traker.featurize(some, num_samples=len(some[0]))
        traker.finalize_features()
        indexed = time.process_time()
        for i, weights in enumerate(task.checkpoints):
            traker.start_scoring_checkpoint("asked", weights, model_id=i, num_targets=asked)
            traker.score(list(task.queries), num_samples=asked)
        scores = traker.finalize_scores("asked")
        done = time.process_time()
    kept = len(task.checkpoints) * 4 * task.dimensions
    gradients = number * len(task.checkpoints)
    return Found(-np.array(scores).T, indexed - started, done - indexed, kept, gradients)


def dattri_tracin(task: Task) -> Found:
    """TracIn of dattri with its random projection."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    def loss(parameters: Mapping[str, Tensor], data: tuple[Tensor, ...]) -> Tensor:
        *inputs, label = data
        given = tuple(each[None] for each in inputs)
        logits = torch.func.functional_call(task.model, dict(parameters), given)
        return nn.functional.cross_entropy(logits, label[None])

    def target(parameters: Mapping[str, Tensor], data: tuple[Tensor, ...]) -> Tensor:
        *inputs, label = data
        given = tuple(each[None] for each in inputs)
        logits = torch.func.functional_call(task.model, dict(parameters), given)
        return -margin(logits, label)[0]

    attributor = TracInAttributor(
        AttributionTask(
            loss, task.model.eval(), task.checkpoints,
            target_func=target if task.margin else None,
        ),
        weight_list=torch.tensor(task.rates),
        normalized_grad=False,
        projector_kwargs={"proj_dim": task.dimensions, "proj_max_batch_size": task.batch},
        device=str(task.train[0].device),
    )  # fmt: skip
    loaders = [
        DataLoader(TensorDataset(*tensors), batch_size=size)
        for tensors, size in ((task.train, task.batch), (task.queries, len(task.queries[0])))
    ]
    started = time.process_time()
    scores = attributor.attribute(*loaders)
    took = time.process_time() - started
    number = len(task.train[0])
    return Found(-scores.T.numpy(), took, took, 0.0, number * len(task.checkpoints))


def no_shortcut_for_masks() -> None:
    """Let attention masks be made without a look at their values, which vmap forbids."""
    from transformers import masking_utils

    masking_utils._ignore_bidirectional_mask_sdpa = lambda *_, **__: False


PEERS: dict[str, Callable[[Task], Found]] = {
    "captum TracInCP": captum_tracin,
    "captum TracInCPFast": captum_tracin_fast,
    "TRAK BasicProjector": trak,
    "dattri TracIn": dattri_tracin,
}
