"""Repeat a recorded training, step by step."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from longarc.errors import DataError, ModelError
from longarc.training.recording.recorded_path import RecordedBatch, RecordedPath

LABELS = ("labels", "label", "label_ids")
"""What a batch calls the targets, which no model is given in a replay."""


@dataclass(frozen=True)
class Drift:
    """How far a replay is from a recorded snapshot: 0 where it is the same to the last bit.

    Attributes:
        step: of the snapshot that was reached from the one before.
        difference: the largest of any parameter.
        movement: the largest that a parameter moved since the snapshot before, for scale.
    """

    step: int
    difference: float
    movement: float


class Replay:
    """A model on the recorded path: put on a snapshot, it takes the steps that followed.

    The model's own weights are put back when ``with`` ends.

    Args:
        path: what was recorded.
        model: of the architecture that was trained; its weights do not matter.
        dataset: the training set, in the order it had.
        collate: makes a batch of its items, as in training.

    Raises:
        ModelError: the model has not the parameters of the path.
        DataError: the training set has another size; during the replay, documents that differ.
    """

    def __init__(
        self,
        path: RecordedPath,
        model: nn.Module,
        dataset: Any,
        collate: Callable[[list[Any]], Mapping[str, Any]],
    ):
        self.path = path
        self.model = model
        self.dataset = dataset
        self.collate = collate
        self.device = next(model.parameters()).device
        about = path.about
        if len(dataset) != about["documents"]:
            raise DataError(
                f"the training set has {len(dataset)} documents, and the path was recorded with "
                f"{about['documents']}. Give the same documents in the same order."
            )
        names = [name for group in about["groups"] for name in group["parameters"]]
        mine = dict(model.named_parameters())
        if missing := [name for name in names if name not in mine]:
            raise ModelError(
                f"the model has no parameter {missing[0]}, which was trained on the path in "
                f"{path.folder}. Give a model of the same architecture."
            )
        self.parameters: dict[str, nn.Parameter] = {name: mine[name] for name in names}
        self.max_grad_norm: float = about["max_grad_norm"]
        self._kept: dict[str, Tensor] | None = None

    def __enter__(self) -> Replay:
        state = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self._kept = {name: value.detach().clone() for name, value in state.items()}
        self._needed_grad = {n: p.requires_grad for n, p in self.model.named_parameters()}
        self._was_training = self.model.training
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.parameters)
        self._load(self.path.constants())
        return self

    def __exit__(self, *_: Any) -> None:
        self._load(cast(dict[str, Tensor], self._kept))
        self._kept = None
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._needed_grad[name])
            parameter.grad = None
        self.model.train(self._was_training)

    # Where the model is

    def go_to(self, snapshot: int) -> None:
        """Put the model and a fresh optimizer on a recorded snapshot."""
        tensors = self.path.snapshot(snapshot)
        for name, parameter in self.parameters.items():
            _copy(parameter, tensors[f"parameter.{name}"])
        groups = [
            {**group["options"], "params": [self.parameters[n] for n in group["parameters"]]}
            for group in self.path.about["groups"]
        ]
        for group in groups:
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        optimizer = getattr(torch.optim, self.path.about["optimizer"])
        self.optimizer: torch.optim.Optimizer = optimizer(groups, lr=0.0)
        for name, parameter in self.parameters.items():
            prefix = f"state.{name}."
            state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                fused = self.optimizer.param_groups[0].get("fused")
                self.optimizer.state[parameter] = {
                    key: value if key == "step" and not fused else value.to(parameter.device)
                    for key, value in state.items()
                }

    def step(self, batches: Sequence[RecordedBatch]) -> float:
        """Make the update of these batches; return the factor by which the gradient was clipped."""
        self.model.zero_grad()
        for batch in batches:
            self.backward(batch)
        clip = self.clip()
        for group, rate in zip(self.optimizer.param_groups, batches[0].learning_rates, strict=True):
            group["lr"] = rate
        self.optimizer.step()
        return clip

    def clip(self) -> float:
        """Clip the gradients as the training did; return the factor."""
        if not self.max_grad_norm:
            return 1.0
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        return min(1.0, self.max_grad_norm / (float(norm) + 1e-6))

    # The model on a batch

    def backward(self, batch: RecordedBatch) -> None:
        """Add the gradient of one recorded batch to the parameters'."""
        logits = self.logits(batch)
        logits.backward(batch.gradient.to(logits))

    def logits(self, batch: RecordedBatch, inputs: Mapping[str, Any] | None = None) -> Tensor:
        """The batch's logits in training, with the very dropout it had."""
        inputs = self.inputs(batch) if inputs is None else inputs
        self.model.train()
        with self.random(batch):
            return self.forward(inputs)

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        """Logits in the precision of the training, as it handed them to the loss."""
        with self.autocast():
            logits = logits_of(self.model(**inputs))
        return logits.float() if self.path.about["autocast"] else logits

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the training."""
        name = self.path.about["autocast"]
        return torch.autocast(self.device.type, getattr(torch, name)) if name else nullcontext()

    def inputs(self, batch: RecordedBatch) -> dict[str, Any]:
        """What the model was given, rebuilt from the training set and compared with the record."""
        inputs = self.inputs_of(batch.documents)
        if fingerprint((), inputs) != batch.inputs:
            raise DataError(
                f"the documents of step {batch.step} are not what the model was trained on. Give "
                "the same training set in the same order, the same tokenizer and the same padding; "
                "a collator that draws at random cannot be replayed."
            )
        return inputs

    def inputs_of(self, documents: Iterable[int]) -> dict[str, Any]:
        """What the model takes of documents of the training set, on its device."""
        collated = self.collate([self.dataset[int(i)] for i in documents])
        return without_labels(collated, self.device)

    @contextmanager
    def random(self, batch: RecordedBatch) -> Iterator[None]:
        """Draw inside the block what the training drew; the generators come out as they were."""
        before = generator_bytes(self.device)
        set_generator_bytes(self.device, batch.random, batch.device_random)
        try:
            yield
        finally:
            set_generator_bytes(self.device, *before)

    # The check

    def verify(self) -> list[Drift]:
        """Replay from each snapshot to the next one and compare; 0 is the same to the last bit.

        Drift is to be expected on another machine, with another number of threads (a sum in
        another order), or on a GPU with kernels that are not deterministic.
        """
        drifts = []
        with self:
            for first, after in pairwise(self.path.snapshots):
                self.go_to(first)
                before = {n: p.detach().clone() for n, p in self.parameters.items()}
                for batches in self.path.batches(first, after):
                    self.step(batches)
                recorded = self.path.snapshot(after)
                far = moved = 0.0
                for name, parameter in self.parameters.items():
                    there = recorded[f"parameter.{name}"].to(self.device)
                    far = max(far, _largest(parameter.detach() - there))
                    moved = max(moved, _largest(there - before[name]))
                drifts.append(Drift(after, far, moved))
        return drifts

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        state = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, value in tensors.items():
            if name in state and state[name].shape == value.shape:
                _copy(state[name], value)
            else:
                raise ModelError(
                    f"the path in {self.path.folder} has {name} of shape {tuple(value.shape)}, "
                    "which does not fit the model. Give a model of the same architecture."
                )


def without_labels(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What the model takes of a collated batch, on its device.

    >>> without_labels({"x": torch.ones(1), "labels": torch.ones(1)}, torch.device("cpu"))
    {'x': tensor([1.])}
    """
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name not in LABELS
    }


def logits_of(outputs: Any) -> Tensor:
    """The logits among a model's outputs: a tensor, or what transformers' classifiers return."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) or hasattr(outputs, "logits"):
        return outputs["logits"]
    return next(part for part in outputs if isinstance(part, Tensor) and part.ndim > 1)


def fingerprint(inputs: tuple, keywords: Mapping[str, Any]) -> str:
    """A checksum of the tensors a model is given, but for the labels.

    >>> fingerprint((), {"input_ids": torch.tensor([[1, 2]])})
    'input_ids:1x2:...'
    """
    named = {str(i): value for i, value in enumerate(inputs)} | dict(keywords)
    parts = []
    for name in sorted(named):
        value = named[name]
        if isinstance(value, Tensor) and value.ndim and name not in LABELS:
            raw = value.detach().cpu().contiguous().view(torch.uint8).numpy()
            shape = "x".join(map(str, value.shape))
            parts.append(f"{name}:{shape}:{zlib.crc32(np.ascontiguousarray(raw).data):08x}")
    return " ".join(parts)


def width(inputs: str) -> int:
    """Numbers of one example in the largest of the inputs of a fingerprint: its length in tokens.

    >>> width("attention_mask:2x48:0b1f2c3d input_ids:2x48:1c2d3e4f")
    48
    """
    shapes = (part.split(":")[1].split("x") for part in inputs.split())
    return max((math.prod(map(int, shape[1:])) for shape in shapes), default=0)


def generator_bytes(device: torch.device) -> tuple[bytes, bytes]:
    """The state of torch's generator, and of the device's if it has its own, as they are kept."""
    own = torch.get_rng_state().numpy().tobytes()
    if device.type != "cuda":
        return own, b""
    return own, torch.cuda.get_rng_state(device).numpy().tobytes()


def set_generator_bytes(device: torch.device, own: bytes, of_device: bytes) -> None:
    """Set what :func:`generator_bytes` told."""
    torch.set_rng_state(torch.frombuffer(bytearray(own), dtype=torch.uint8))
    if of_device and device.type == "cuda":
        state = torch.frombuffer(bytearray(of_device), dtype=torch.uint8)
        torch.cuda.set_rng_state(state, device)


def _copy(target: Tensor, source: Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0
