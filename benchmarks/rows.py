"""Append a measurement to results.jsonl, with the machine and the versions it was made with."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from longarc.machine import describe_gpu, describe_machine

RESULTS = Path(__file__).parent / "results.jsonl"


def append_row(benchmark: str, **figures: Any) -> None:
    """Write one row and print it."""
    row = {"benchmark": benchmark, **describe_machine(), **describe_gpu(), **figures}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(json.dumps(row, ensure_ascii=False, indent=1))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean, smallest and largest over seeds."""
    return {
        "mean": round(statistics.mean(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def peak_growth(call: Callable[[], object]) -> float:
    """MiB by which the process's resident peak grows in a call. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = _resident_peak()
    call()
    return round((_resident_peak() - before) / 1024, 1)


def peak_growth_of_gpu(call: Callable[[], object]) -> float:
    """MiB by which the peak of the GPU's allocated memory grows in a call."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def _resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
