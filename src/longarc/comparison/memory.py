"""The peak memory of this process, and of what it has on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

MIB = 2**20


def peak_mib() -> float | None:
    """MiB that the process held in memory at most; None where the system does not say.

    Linux keeps it for each program (``VmHWM``). ``getrusage``, which other systems have, counts
    what the process was before it became this program.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        found = next(line for line in lines if line.startswith("VmHWM"))
        return round(int(found.split()[1]) / 1024, 1)
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return round(size / (MIB if sys.platform == "darwin" else 1024), 1)


def gpu_peak_mib() -> float | None:
    """MiB of the GPU's memory that this process's tensors held at most; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.max_memory_allocated() / MIB, 1)
