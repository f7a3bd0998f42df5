"""Charts of what the step size did in training: sharpness, update sizes, the implicit penalty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longarc.report.drawing import Panel
from longarc.report.saved import is_number
from longarc.report.training_charts import best_step, by_step, curve

SHARPNESS = "Sharpness"
UPDATES = "Size of an update, as a share of the weights"
PENALTY = "Implicit gradient penalty, as a share of the loss"
CAPTIONS = {
    SHARPNESS: "How sharply the loss curves along the update, beside 2 / learning rate: a dot "
    "above the line is a step that overshot, on its own batch.",
    UPDATES: "How far a step moves the weights.",
    PENALTY: "The gradient penalty ¼ Σ learning rate × ‖gradient‖² that plain gradient descent’s "
    "step size would add to the loss, as a share of it. The run used AdamW, whose step size "
    "penalises another thing: take that curve as the size of the gradient, not as what was "
    "minimised.",
}
"""What each drawing shows, by its title: a short training has no sharpness."""


def step_size_curves(log: Sequence[dict[str, Any]]) -> list[Panel]:
    """What the monitors wrote, by step; none for a run without them."""
    update, sharpness = by_step(log, "update"), by_step(log, "sharpness")
    if not update and not sharpness:
        return []
    train = by_step(log, "train")
    span = (0, max(record["step"] for record in update + sharpness + train))
    best = best_step(log)
    limits = [
        {"step": record["step"], "limit": 2 / record["learning_rate"]}
        for record in train
        if is_number(record.get("learning_rate")) and record["learning_rate"] > 0
    ]
    depths = [
        {"step": record["step"], **{str(k): v for k, v in ratios.items()}}
        for record in update
        if isinstance(ratios := record.get("update_ratios"), dict)
    ]
    sharp = [("critical sharpness", sharpness, "critical_sharpness")]
    drawn = [
        curve(
            SHARPNESS,
            [("2 / learning rate", limits, "limit"), *sharp],
            span,
            best,
            log_scale=True,
        )
        if sharpness
        else None,
        curve(
            UPDATES,
            [
                ("all weights", update, "update_ratio"),
                ("head", depths, "head"),
                ("embeddings", depths, "embeddings"),
            ],
            span,
            best,
            log_scale=True,
        ),
        curve(
            PENALTY,
            [("share", update, "implicit_share")],
            span,
            best,
            log_scale=True,
        ),
    ]
    return [panel for panel in drawn if panel is not None]
