"""The machine that something was measured on, in words and numbers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longarc.version import __version__


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, system, versions, and today's date (UTC). Imports no torch.

    >>> list(describe_machine())[:3]
    ['machine', 'cores', 'memory_gib']
    """
    return {
        "machine": f"{platform.machine()} {_processor()}",
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "python": platform.python_version(),
        "longarc": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def describe_gpu() -> dict[str, str]:
    """The GPU's name; nothing without one. To ask takes some of its memory."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def system_load() -> float | None:
    """Processes that ran or waited in the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _processor() -> str:
    """The model as the system names it; what it says of the processor where it names none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()


def _cores() -> int | None:
    """Those that this process may use, where the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
