"""The machine that a comparison was measured on, in words and numbers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from longarc.processor import processor_name


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system, versions, and the load at this moment.

    >>> sorted(machine())[:3]
    ['cores', 'load', 'longarc']
    """
    return {
        "processor": processor_name(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()}-{platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("longarc", "torch", "transformers")},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


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
