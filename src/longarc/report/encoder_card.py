"""The model card of an encoder that ``longarc pretrain`` saved."""

from __future__ import annotations

from pathlib import Path

from longarc.report.card import (
    base_model,
    data_name,
    fence,
    needs_longarc,
    render_card,
    shown_options,
)
from longarc.report.drawing import printable
from longarc.report.pretraining import OBJECTIVES, read_pretraining, rows, verdict
from longarc.report.saved import as_dict


def encoder_card(run: str | Path) -> str:
    """The README.md for ``RUN/model`` of a pretraining: the Hub's metadata, then the text.

    As for ``model_card``, the licence is left to the owner. Raises ``RunError`` for a missing or
    damaged run folder.
    """
    from huggingface_hub import ModelCard, ModelCardData

    saved = read_pretraining(run)
    config, provenance = saved.config, as_dict(saved.config.get("provenance"))
    options = shown_options(config, provenance)
    changed = needs_longarc(saved.folder / "model")
    library = "longarc" if changed else "sentence-transformers"
    metadata = ModelCardData(
        model_name=printable(saved.name),
        library_name=library,
        pipeline_tag="sentence-similarity",
        tags=["longarc", "feature-extraction", *[library] * (not changed)],
        base_model=base_model(config),
    )
    body = render_card(
        "encoder_card.md.j2",
        {
            "name": saved.name,
            "base": base_model(config),
            "encoder": provenance.get("encoder") or "a local encoder",
            "data": data_name(config),
            "objective": OBJECTIVES.get(str(config.get("objective")), str(config["objective"])),
            "documents": saved.metrics["documents"],
            "rows": rows(saved.metrics),
            "verdict": verdict(saved.metrics),
            "collapse": saved.collapse,
            "late": saved.late,
            "limit": config.get("max_length"),
            "pooling": config.get("pooling"),
            "longarc_only": changed,
            "options": options,
            "fence": fence(options),
        },
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}"))
