"""Small networks trained by longarc's trainer with their path recorded, as kernel machines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainingArguments, default_data_collator

from longarc.attribution.kernel_machine import KernelMachine
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.training.recording.path_recorder import PathRecorder
from longarc.training.recording.recorded_path import RecordedPath
from longarc.training.trainer import Trainer


class Network(nn.Module):
    """Linear layers with GELU and dropout between them, in float64."""

    def __init__(self, widths: Sequence[int], seed: int, dropout: float = 0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.config = SimpleNamespace(num_labels=widths[-1])
        self.double()
        with torch.no_grad():
            for layer in self.layers:
                assert isinstance(layer, nn.Linear)
                spread = (2 / layer.in_features) ** 0.5
                drawn = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
                layer.weight.copy_(spread * drawn)
                layer.bias.zero_()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (b, C) of inputs (b, d)."""
        for number, layer in enumerate(self.layers):
            if number:
                x = self.dropout(nn.functional.gelu(x))
            x = layer(x)
        return {"logits": x}


class Points(Dataset[dict[str, Tensor]]):
    """Inputs (N, d) with classes (N,)."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


def items(x: Tensor) -> list[dict[str, Tensor]]:
    """Inputs (A, d) as a machine is asked about them."""
    return [{"x": row} for row in x]


def train(
    folder: Path,
    network: Network,
    points: Points,
    *,
    tolerance: float = 1e-3,
    together: int = 1024,
    **arguments: Any,
) -> KernelMachine:
    """Train, record, and return the machine; plain gradient descent on all points if not told."""
    settings: dict[str, Any] = {
        "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
        "per_device_train_batch_size": len(points), "train_sampling_strategy": "sequential",
    }  # fmt: skip
    settings |= arguments
    trainer = Trainer(
        network,
        TrainingArguments(
            str(folder), use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
            save_strategy="no", logging_strategy="no", report_to="none",
            average_tokens_across_devices=False, dataloader_pin_memory=False, **settings,
        ),
        train_dataset=points,
        data_collator=default_data_collator,
        loss=CrossEntropyLoss(),
        callbacks=[PathRecorder(folder / "path")],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return KernelMachine(
        RecordedPath(folder / "path"), network, points, default_data_collator,
        tolerance=tolerance, together=together,
    )  # fmt: skip
