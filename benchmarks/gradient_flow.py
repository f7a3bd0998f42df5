"""What taking a gradient apart costs: exact Jacobians of recurrent layers, and the flow of a model.

    python benchmarks/gradient_flow.py [decomposition] [flow] [--repeats 5] [--threads 1]

``decomposition`` takes every step of a layer apart (hidden 256, 512 steps, 8 documents): the terms
and their norms, the spectral radius of each step, the norms of products over distance by 8 probes,
4 Lyapunov exponents. The radius is compared with eigenvalues of whole matrices on a few steps.

``flow`` times ``gradient_flow`` beside a training step (forward, backward, AdamW) of the same model
on the same batch. They take turns, and the ratio is taken within a turn.

Seconds are the process's own, over all its threads, so that what else the machine does counts for
little; ``wall`` is what the clock said.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from longarc.dynamics.gradient_flow import gradient_flow
from longarc.dynamics.jacobian_products import lyapunov_exponents, product_norms, spectral_radii
from longarc.dynamics.recurrent_jacobian import Jacobians, recurrent_jacobians
from longarc.models.recurrent.config import RecurrentConfig
from longarc.models.recurrent.layer import make_cell, start_cell
from longarc.models.recurrent.model import RecurrentForSequenceClassification
from longarc.models.recurrent.options import CELLS
from rows import append_row, spread

HIDDEN, STEPS, BATCH = 256, 512, 8
CHECKED = 12
"""Steps whose eigenvalues are computed from matrices: 512 rows take long."""
BERT = "bert, 6 layers of 384"


def main() -> None:
    """Measure what was asked for, and append a row for each cell or model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["decomposition", "flow"])
    parser.add_argument("--cells", nargs="+", default=CELLS, choices=CELLS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for part in chosen.parts:
        measure, names = {
            "decomposition": (decomposition, chosen.cells),
            "flow": (flow, [*chosen.cells, BERT]),
        }[part]
        for name in names:
            torch.manual_seed(0)
            measure(name, chosen.repeats)


def decomposition(cell: str, repeats: int) -> None:
    layer = make_cell(cell, HIDDEN, HIDDEN)
    start_cell(layer, forget_bias=1.0)
    inputs = torch.randn(BATCH, STEPS, HIDDEN)
    found: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {
        "terms": lambda: recurrent_jacobians(layer, inputs),
        "norms": lambda: Jacobians.norms(found["terms"]),
        "radii": lambda: spectral_radii(found["terms"]),
        "products": lambda: product_norms(found["terms"], probes=8),
        "exponents": lambda: lyapunov_exponents(found["terms"]),
    }
    seconds, wall = take_turns({n: keep(found, n, call) for n, call in calls.items()}, repeats)
    append_row(
        "recurrent-decomposition",
        cell=cell,
        hidden=HIDDEN,
        n=STEPS,
        batch=BATCH,
        threads=torch.get_num_threads(),
        seconds=spread([sum(each) for each in zip(*seconds.values(), strict=True)]),
        wall=spread([sum(each) for each in zip(*wall.values(), strict=True)]),
        parts={name: spread(each) for name, each in seconds.items()},
        radius_error=radius_error(found["terms"], found["radii"]),
    )


def radius_error(jacobians: Jacobians, radii: torch.Tensor) -> dict[str, float]:
    """How far the cheap spectral radius is from that of the matrices, as a share of it."""
    kept = slice(STEPS // CHECKED - 1, STEPS, STEPS // CHECKED)
    exact = spectral_radii(jacobians[0, kept], exact=True)
    return spread((radii[0, kept] / exact - 1).abs().tolist())


def flow(name: str, repeats: int) -> None:
    model: Any
    if name == BERT:
        sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=6, **sizes))
    else:
        config = RecurrentConfig(cell=name, cell_size=HIDDEN, bidirectional=False)
        model = RecurrentForSequenceClassification(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = {
        "input_ids": torch.randint(5, 30000, (BATCH, STEPS)),
        "attention_mask": torch.ones(BATCH, STEPS, dtype=torch.long),
        "labels": torch.randint(0, 2, (BATCH,)),
    }

    def step() -> None:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()

    calls = {"step": step, "flow": lambda: gradient_flow(model, batch, loss=loss)}
    seconds, wall = take_turns(calls, repeats)
    append_row(
        "gradient-flow",
        model=name,
        hidden=384 if name == BERT else HIDDEN,
        n=STEPS,
        batch=BATCH,
        threads=torch.get_num_threads(),
        seconds={key: spread(each) for key, each in seconds.items()},
        wall={key: spread(each) for key, each in wall.items()},
        ratio=spread([b / a for a, b in zip(seconds["step"], seconds["flow"], strict=True)]),
    )


def loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return cross_entropy(model(**inputs).logits, batch["labels"])


def keep(found: dict[str, Any], name: str, call: Callable[[], Any]) -> Callable[[], None]:
    return lambda: found.update({name: call()})


def take_turns(
    calls: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of the process and of the clock, after a turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start, began = time.process_time(), time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
                wall[name].append(time.perf_counter() - began)
    return seconds, wall


if __name__ == "__main__":
    main()
