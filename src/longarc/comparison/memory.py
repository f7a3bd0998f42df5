"""The peak memory of this process and of what it has on a GPU, and what is left for others."""

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


def available_mib() -> float | None:
    """MiB that processes can still take; None where the system does not say.

    Linux says it of the machine (``MemAvailable``), and of a container that has less.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable"))
        machine = int(found.split()[1]) / 1024
    except (OSError, StopIteration):
        return None
    group = _left_in_group()
    return machine if group is None else min(machine, group)


def _left_in_group() -> float | None:
    """MiB that the control group of this process has left; None without a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        name = next(line[3:] for line in lines if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup") / name.lstrip("/")
        limit, used = (int((folder / f"memory.{n}").read_text("utf-8")) for n in ("max", "current"))
        stat = (folder / "memory.stat").read_text("utf-8").splitlines()
        cache = next(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    except (OSError, StopIteration, ValueError):  # "max" is no number
        return None
    return (limit - used + cache) / MIB


def gpu_free_mib() -> float | None:
    """MiB of the GPU's memory that no process holds; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return round(torch.cuda.mem_get_info()[0] / MIB, 1)
