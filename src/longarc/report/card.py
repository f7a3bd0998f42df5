"""The model card: what the saved model was trained for, how good it is and where it is not."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

from longarc.errors import RunError
from longarc.models.loading import PACKAGED
from longarc.report.drawing import printable
from longarc.report.html import length_limit, lengths_of, metrics_table
from longarc.report.measures import figure, measures_of, verdict
from longarc.report.quantities import percent
from longarc.report.recipe import second_stage
from longarc.report.saved import SavedRun, is_number, read_run

FEW = 20
"""Labels that the card lists by name; training examples below which a label is rare."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_HUB_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "weighted_f1": "f1",
    "mean_average_precision": "mean_average_precision",
}
# Paths of the machine that trained it, and options that say nothing about the model.
_LOCAL = {
    "data", "validation", "test", "unlabelled", "out", "provenance", "resume", "overwrite",
    "device",
}  # fmt: skip
_LOCAL |= {"checkpoint_minutes", "keep_checkpoints", "baseline"}
_MARKDOWN = re.compile(r"([\\`*_\[\]|~#$])")


def model_card(run: str | Path) -> str:
    """The README.md for ``RUN/model``: metadata that the Hugging Face Hub reads, then the text.

    The licence is left out, because only the owner of data and model can name it; the base model
    is named only where the run was trained from a Hub id. Raises ``RunError`` for a missing or
    damaged run folder.
    """
    from huggingface_hub import ModelCard

    saved = read_run(run)
    split = saved.splits[0]
    rare = [
        (name, count)
        for name, count in zip(saved.space.names, saved.space.counts, strict=True)
        if count < FEW
    ]
    metrics = saved.metrics[split]["model"]
    unlearnt = [
        row["label"]
        for row in metrics.get("per_class") or []
        if row.get("support") and row.get("recall") == 0
    ]
    share = (lengths_of(saved) or {}).get("truncated_tokens")
    options = shown_options(saved.config, saved.provenance)
    context = {
        "run": saved,
        "name": saved.name,
        "rows": saved.rows(),
        "groups": saved.group_sizes(),
        "split": split,
        "table": metrics_table(saved, split),
        "verdict": verdict(saved.metrics[split]),
        "rare": sorted(rare, key=lambda item: item[1])[:FEW],
        "rare_count": len(rare),
        "unlearnt": unlearnt[:FEW],
        "unlearnt_count": len(unlearnt),
        "limit": length_limit(saved),
        "second_stage": second_stage(saved),
        "truncated": percent(share) if is_number(share) and share else None,
        "data": data_name(saved.config),
        "base": base_model(saved.config),
        "longarc_class": needs_longarc(saved.folder / "model"),
        "mean": saved.config.get("pooling") != "cls",
        "hybrid": saved.config.get("hybrid") or 0,
        "recurrent": saved.provenance.get("encoder") == "RecurrentModel",
        "options": options,
        "fence": fence(options),
    }
    body = render_card("card.md.j2", context)
    return str(ModelCard(f"---\n{_metadata(saved, split).to_yaml()}\n---\n\n{body}"))


def literal(value: Any) -> str:
    r"""Text that Markdown shows as it is, on one line.

    >>> print(literal("<b>a_b</b> | *c*"))
    &lt;b&gt;a\_b&lt;/b&gt; \| \*c\*
    """
    line = " ".join(printable(str(value)).split())
    return _MARKDOWN.sub(r"\\\1", html.escape(line, quote=False))


def _metadata(run: SavedRun, split: str) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    metrics = run.metrics[split]["model"]
    data = printable(data_name(run.config))
    results = []
    for measure in measures_of(run.space.multi_label):
        found = figure(metrics, measure.key)
        # Of a hybrid the figures are the sum's, and what the Hub holds is the encoder alone.
        if found is None or measure.key not in _HUB_METRICS or run.config.get("hybrid"):
            continue
        results.append(
            EvalResult(
                task_type="text-classification",
                task_name="Text classification",
                dataset_type=data,
                dataset_name=data,
                dataset_split=split,
                metric_type=_HUB_METRICS[measure.key],
                metric_name=measure.name,
                metric_value=round(found.value, 4),
            )
        )
    return ModelCardData(
        model_name=printable(run.name),
        library_name="longarc" if needs_longarc(run.folder / "model") else "transformers",
        pipeline_tag="text-classification",
        tags=["longarc", "text-classification", *["long-tailed"] * bool(run.group_sizes()["tail"])],
        base_model=base_model(run.config),
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        eval_results=results or None,
    )


def needs_longarc(model: Path) -> bool:
    """Whether plain transformers, and so sentence-transformers, refuses the model in a folder."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"cannot read the model in {model}: {error}. A card is of a model."
        ) from None
    return "longarc" in config or str(config.get("model_type")).startswith("longarc-")


def data_name(config: dict[str, Any]) -> str:
    """The Hub id or the file's name: the folders above it are nobody's business."""
    data = str(config.get("data") or "") or "unnamed data"
    is_hub_id = _HUB_ID.fullmatch(data) and not Path(data).exists() and not Path(data).suffix
    return data if is_hub_id else Path(data).name


def base_model(config: dict[str, Any]) -> str | None:
    """The Hub id that a run started from; None for a local folder."""
    name = str(config.get("model") or "")
    if name in PACKAGED:
        return PACKAGED[name][1]
    return name if _HUB_ID.fullmatch(name) and not Path(name).expanduser().exists() else None


def shown_options(config: dict[str, Any], provenance: dict[str, Any]) -> str:
    """The options that made the model what it is, as YAML, local folders by their last part."""
    import yaml

    options = {k: v for k, v in config.items() if k not in _LOCAL and v is not None}
    if "model" in options and base_model(config) is None:
        options["model"] = Path(str(options["model"])).name
    for key in ("longarc", "torch", "transformers"):
        if key in provenance:
            options.setdefault("versions", {})[key] = provenance[key]
    return printable(yaml.safe_dump(options, sort_keys=False, allow_unicode=True)).rstrip()


def fence(options: str) -> str:
    """Backticks, more than the text has anywhere in a row."""
    return "`" * (2 + max((len(ticks) for ticks in re.findall("`+", options)), default=1))


def render_card(template: str, context: dict[str, Any]) -> str:
    """A card's text. Markdown is not escaped as HTML is: ``literal`` makes each value inert."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("longarc", "report/templates"),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["literal"] = literal
    return environment.get_template(template).render(**context)
