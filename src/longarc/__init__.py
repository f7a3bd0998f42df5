"""Train text encoders on long documents and long-tailed labels, and explain their predictions.

The names below are loaded when first used, so that ``import longarc`` costs nothing: torch and
transformers come in with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from longarc.version import __version__

if TYPE_CHECKING:
    from longarc.api import Run, fit, open_run
    from longarc.errors import DataError, LongarcError, ModelError, OptionError, RunError
    from longarc.models.loading import load_model
    from longarc.objectives.losses.binary_cross_entropy import BinaryCrossEntropyLoss
    from longarc.objectives.losses.class_weighted import ClassWeightedLoss
    from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
    from longarc.objectives.losses.logit_adjusted import LogitAdjustedLoss
    from longarc.training.config import TrainConfig
    from longarc.training.trainer import Trainer

_HOMES = {
    "Run": "longarc.api",
    "fit": "longarc.api",
    "open_run": "longarc.api",
    "DataError": "longarc.errors",
    "LongarcError": "longarc.errors",
    "ModelError": "longarc.errors",
    "OptionError": "longarc.errors",
    "RunError": "longarc.errors",
    "load_model": "longarc.models.loading",
    "BinaryCrossEntropyLoss": "longarc.objectives.losses.binary_cross_entropy",
    "ClassWeightedLoss": "longarc.objectives.losses.class_weighted",
    "CrossEntropyLoss": "longarc.objectives.losses.cross_entropy",
    "LogitAdjustedLoss": "longarc.objectives.losses.logit_adjusted",
    "TrainConfig": "longarc.training.config",
    "Trainer": "longarc.training.trainer",
}

__all__ = [
    "BinaryCrossEntropyLoss",
    "ClassWeightedLoss",
    "CrossEntropyLoss",
    "DataError",
    "LogitAdjustedLoss",
    "LongarcError",
    "ModelError",
    "OptionError",
    "Run",
    "RunError",
    "TrainConfig",
    "Trainer",
    "__version__",
    "fit",
    "load_model",
    "open_run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'longarc' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
