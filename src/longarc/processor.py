"""The processor's name, which measurements are written down with."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The model as the system names it; the architecture where it names none.

    >>> isinstance(processor_name(), str)
    True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()
