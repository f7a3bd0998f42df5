from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import longarc
from longarc.attribution.query import Query, measure
from longarc.attribution.sweep import explain
from longarc.training.recording.recorded_path import RecordedPath


def _load_tiny():
    file = Path(__file__).parents[1] / "training" / "worker.py"
    spec = importlib.util.spec_from_file_location("longarc_attribution_worker", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    """tests/training/worker.py: a tiny BERT, its tokenizer, texts and trainers."""
    return _load_tiny()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Points(torch.utils.data.Dataset):
    def __init__(self, number, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(number, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randint(0, 3, (number,), generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i]}


class Net(nn.Module):
    """Two layers with tanh, a layer norm and dropout; in double precision."""

    def __init__(self, dropout=0.0, odd=False):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, 3)
        self.gate = nn.Parameter(torch.ones(6)) if odd else None  # in no layer that is known
        self.dropout = nn.Dropout(dropout)
        self.config = SimpleNamespace(num_labels=3)
        self.double()

    def forward(self, x, labels=None):
        hidden = self.dropout(self.norm(torch.tanh(self.first(x))))
        if self.gate is not None:
            hidden = hidden * self.gate
        return {"logits": self.last(hidden)}


@pytest.fixture
def small():
    return SimpleNamespace(Points=Points, Net=Net)


@pytest.fixture
def record(tiny, tmp_path):
    """Train a small net with a recorder; return trainer, path and a function that explains."""

    def run(*, model=None, data=None, loss=None, collate=None, regularizers=(), **options):
        data = Points(11) if data is None else data
        model = Net() if model is None else model
        settings = {"per_device_train_batch_size": 4, "max_steps": 5} | options
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        trainer = longarc.Trainer(
            model,
            tiny.make_arguments(folder, **settings),
            train_dataset=data,
            data_collator=collate or transformers.default_data_collator,
            loss=loss or longarc.CrossEntropyLoss(),
            regularizers=regularizers,
            callbacks=[longarc.PathRecorder(folder / "path")],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        path = RecordedPath(folder / "path")

        def explained(queries=None, **more):
            if queries is None:
                x = torch.tensor([[0.3, -0.2, 0.5, 1.0]], dtype=torch.float64)
                queries = [
                    Query({"x": x}, measure("logit", 1)),
                    Query({"x": -x}, measure("margin", 0, 2)),
                    Query({"x": 2 * x}, measure("loss", 0)),
                ]
            return explain(path, model, data, trainer.data_collator, queries, **more)

        return SimpleNamespace(trainer=trainer, path=path, explain=explained, data=data)

    return run
