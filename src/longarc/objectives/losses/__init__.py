"""Losses for long-tailed labels: one file each, one contract, one registry of names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longarc.objectives.losses.gradient_view import gradient_weight

__all__ = ["gradient_weight"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: the registry of names next door must not import torch.
    if name != "gradient_weight":
        raise AttributeError(f"module 'longarc.objectives.losses' has no attribute {name!r}")
    from longarc.objectives.losses.gradient_view import gradient_weight

    return gradient_weight
