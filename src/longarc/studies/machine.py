"""Where, when and with what a study was run, as its folder says it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from typing import Any

from longarc.processor import processor_name
from longarc.version import __version__


def machine() -> dict[str, Any]:
    """The processor and its cores, the GPU if there is one, versions, and today's date (UTC)."""
    import torch

    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "machine": f"{platform.machine()} {processor_name()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **gpu,
        "longarc": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "date": datetime.now(UTC).date().isoformat(),
    }
