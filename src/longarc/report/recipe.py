"""What a recipe tried before and after training, as the report and the model card show it."""

from __future__ import annotations

from typing import Any

from longarc.report.quantities import duration
from longarc.report.saved import SavedRun

_STAGES = {"loss": "Loss", "second_stage": "Second stage"}


def recipe_tables(run: SavedRun) -> list[dict[str, Any]]:
    """A table of trials for the loss and for the second stage; none for a run without a recipe."""
    tables = []
    for key, title in _STAGES.items():
        if key not in run.recipe:
            continue
        stage = run.recipe[key]
        tables.append(
            {
                "title": title,
                "why": stage["why"],
                "rows": [
                    {
                        **row,
                        "name": named(row),
                        "chosen": row["name"] == stage["chosen"],
                        "duration": duration(row["seconds"]),
                    }
                    for row in stage["trials"]
                ],
                "not_tried": stage["not_tried"],
            }
        )
    return tables


def second_stage(run: SavedRun) -> str | None:
    """What was done to the head after training, in a few words; None if nothing was.

    >>> from pathlib import Path
    >>> from longarc.data.labels import LabelSpace
    >>> stage = {"chosen": "post-hoc", "trials": [{"name": "post-hoc", "tau": 0.8}],
    ...          "temperature": {"value": 1.314}, "head_changed": True}
    >>> space = LabelSpace(("a", "b"), (3, 2), multi_label=False)
    >>> run = SavedRun(Path("r"), {}, "", space, {}, recipe={"second_stage": stage})
    >>> second_stage(run)
    'post-hoc with τ = 0.8, temperature 1.31'
    """
    stage = run.recipe.get("second_stage")
    if not stage or not stage.get("head_changed"):
        return None
    parts = [named(row) for row in stage["trials"] if row["name"] == stage["chosen"] != "none"]
    if stage.get("temperature"):
        parts.append(f"temperature {stage['temperature']['value']:.2f}")
    return ", ".join(parts)


def without_prior(run: SavedRun) -> str | None:
    """The name of what took the class prior out of the probabilities, if anything did."""
    if run.config.get("loss") == "logit-adjusted":
        return "logit-adjusted"
    stage = run.recipe.get("second_stage") or {"trials": [], "chosen": "none"}
    for row in stage["trials"]:
        if row["name"] == stage["chosen"] and (row["name"] == "crt" or row.get("tau", 0) > 0):
            return row["name"] if row["name"] in ("post-hoc", "crt") else None
    return None


def named(row: dict[str, Any]) -> str:
    """A trial's name with what it settled on.

    >>> named({"name": "tau-norm", "tau": 0.5}), named({"name": "crt", "penalty": 0.001})
    ('tau-norm with τ = 0.5', 'crt')
    """
    return f"{row['name']} with τ = {row['tau']:g}" if "tau" in row else row["name"]
