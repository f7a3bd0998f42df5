"""What a step of pretraining costs beside sentence-transformers.

    python benchmarks/pretraining.py [--rounds 9]

Seconds of one whole step of SimCSE (both views forward, backward, AdamW) on MiniLM, beside
sentence-transformers' MultipleNegativesRankingLoss on the same batches, with the same weights and
dropout, interleaved; in fp32, and in bfloat16 where the machine has it. Needs
sentence-transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import Any

import torch

import longarc
from longarc.models.loading import load_encoder, resolve_model
from longarc.models.pooled_encoder import PooledEncoder
from longarc.training.prediction import bfloat16_is_fast
from rows import append_row, spread


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    chosen = parser.parse_args()
    step(chosen.rounds, chosen.batch, chosen.tokens)


def step(rounds: int, batch: int, tokens: int) -> None:
    """Seconds and ratios of a step, the first round to warm up."""
    kinds = {"fp32": False} | ({"bf16": True} if bfloat16_is_fast(torch.device("cpu")) else {})
    for precision, bf16 in kinds.items():
        steps = {"longarc": _our_step(), "sentence-transformers": _their_step()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        losses: dict[str, float] = {}
        for turn in range(rounds + 1):
            torch.manual_seed(turn)
            shape = (batch, tokens)
            views = [
                {
                    "input_ids": torch.randint(1000, 30000, shape),
                    "attention_mask": torch.ones(shape, dtype=torch.long),
                }
                for _ in range(2)
            ]
            order = list(steps) if turn % 2 else list(reversed(steps))
            for name in order:
                torch.manual_seed(turn)  # the same dropout
                start = time.perf_counter()
                losses[name] = steps[name](views, bf16)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        ours, theirs = seconds.values()
        append_row(
            "pretraining-step",
            precision=precision,
            ratio=spread([a / b for a, b in zip(ours, theirs, strict=True)]),
            seconds={name: spread(times) for name, times in seconds.items()},
            last_losses={name: round(loss, 4) for name, loss in losses.items()},
            documents=batch,
            tokens=tokens,
            threads=torch.get_num_threads(),
        )


def _our_step() -> Any:
    objective = longarc.SimCLR(
        PooledEncoder(load_encoder("minilm")), temperature=0.05, negatives="other"
    ).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5)

    def run(views: list[dict[str, torch.Tensor]], bf16: bool) -> float:
        with _autocast(bf16):
            loss = objective(*views).loss
        return _descend(loss, optimizer)

    return run


def _their_step() -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(resolve_model("minilm"), device="cpu")
    if hasattr(model[0].auto_model, "pooler"):
        model[0].auto_model.pooler = None  # ours has none either
    objective = MultipleNegativesRankingLoss(model, scale=20.0).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5)

    def run(views: list[dict[str, torch.Tensor]], bf16: bool) -> float:
        with _autocast(bf16):
            loss = objective([dict(view) for view in views], None)
        return _descend(loss, optimizer)

    return run


def _descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _autocast(bf16: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()


if __name__ == "__main__":
    main()
