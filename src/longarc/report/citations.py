"""What a run rests on: the works to cite for exactly the parts that it used. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longarc.models.recurrent.options import CELLS
from longarc.report.saved import as_dict, parse_options, read_json, read_log, read_text
from longarc.training.pretraining.folder import PretrainFolder
from longarc.training.run_folder import RunFolder, is_pretraining, open_run_folder

REFERENCES = Path(__file__).with_name("references.bib")

FOLKLORE = "folklore: we know of no paper"

LOSSES: dict[str, tuple[str, ...] | str] = {
    "cross-entropy": "textbook",
    "class-weighted": FOLKLORE,
    "class-balanced": ("cui2019class",),
    "logit-adjusted": ("menon2021long", "ren2020balanced"),
    "ldam": ("cao2019learning",),
    "radius-margin": ("xu2009robustness",),
    "binary-cross-entropy": "textbook",
    "soft-accuracy": ("zhang2018generalized",),
    "soft-f1": ("benedict2022sigmoidf1",),
    "f1-weighted": FOLKLORE,
    "truncated": FOLKLORE,
    "focal": ("lin2017focal", "charoenphakdee2021focal"),
    "dice": ("li2020dice",),
    "multilabel-softmax": ("su2022zlpr",),
    "asymmetric": ("ridnik2021asymmetric",),
}
"""Keys of ``references.bib`` for each loss, or why there are none."""

REGULARIZERS: dict[str, tuple[str, ...] | str] = {
    "fgm": ("miyato2017adversarial",),
    "pgd": ("madry2018towards",),
    "freelb": ("zhu2020freelb",),
    "vat": ("miyato2018virtual",),
    "input-gradient-penalty": ("drucker1992improving", "huber1964robust"),
    "gradient-penalty": ("barrett2021implicit", "karakida2023understanding"),
    "sam": ("foret2021sharpness",),
    "flooding": ("ishida2020do",),
    "r-drop": ("liang2021rdrop",),
}

ATTENTIONS: dict[str, tuple[str, ...] | str] = {
    "exact": ("vaswani2017attention",),
    "performer": ("choromanski2021rethinking",),
    "linear": ("katharopoulos2020transformers",),
    "block-sparse": ("zaheer2020big",),
    "local-performer": ("choromanski2021rethinking",),
    "clustered": ("vyas2020fast",),
    "local-clustered": ("vyas2020fast",),
    "learned": ("vyas2020fast",),
}

POSITIONS: dict[str, tuple[str, ...] | str] = {
    "hierarchical": ("su2020hierarchical",),
    "copy": ("beltagy2020longformer",),
    "interpolate": FOLKLORE,
}

RECURRENT: dict[str, tuple[str, ...] | str] = {
    "rnn": ("elman1990finding",),
    "relu-rnn": ("le2015simple",),
    "lstm": ("hochreiter1997long", "jozefowicz2015empirical"),
    "gru": ("cho2014learning",),
    "output-gated-gru": ("cho2014learning",),
}

SECOND_STAGES: dict[str, tuple[str, ...] | str] = {
    "none": "nothing was changed",
    "post-hoc": ("menon2021long",),
    "tau-norm": ("kang2020decoupling",),
    "crt": ("kang2020decoupling",),
}

OBJECTIVES: dict[str, tuple[str, ...] | str] = {
    "simcse": ("gao2021simcse", "chen2020simple"),
    "simsiam": ("chen2021exploring",),
    "byol": ("grill2020bootstrap",),
    "mlm": ("devlin2019bert",),
}

ENCODERS: dict[str, tuple[str, ...] | str] = {
    "BertModel": ("devlin2019bert",),
    "RobertaModel": ("liu2019roberta",),
    "XLMRobertaModel": ("conneau2020unsupervised",),
    "DistilBertModel": ("sanh2019distilbert",),
    "ElectraModel": ("clark2020electra",),
    "LongformerModel": ("beltagy2020longformer",),
    "BigBirdModel": ("zaheer2020big",),
}
"""By the class that a run's provenance names."""

MINILM = ("wang2020minilm", "reimers2019sentence")


@dataclass(frozen=True)
class Citation:
    """A part of a run: which one, its name, and its references, or a note why it has none."""

    part: str
    name: str
    keys: tuple[str, ...] = ()
    note: str | None = None


def cited(run: str | Path) -> list[Citation]:
    """Return the parts of a run of ``longarc train`` or ``longarc pretrain``, in a fixed order.

    Parts that a run did not use are left out; ``config.yaml``, and where they exist ``recipe.json``
    and ``explanations.json``, say what it used.

    Raises:
        RunError: no run folder there, or a damaged one.
    """
    if is_pretraining(run):
        folder = open_run_folder(run, complete=False, kind=PretrainFolder)
        config = parse_options(folder.config_file, read_text(folder.config_file))
        return [*_pretraining(config), *_encoder(config), *_training(config), *_software(config)]
    folder = open_run_folder(run, complete=False, kind=RunFolder)
    config = parse_options(folder.config_file, read_text(folder.config_file))
    recipe = folder.path / "recipe.json"
    return [
        *_loss(config),
        *_recipe(as_dict(read_json(recipe)) if recipe.is_file() else {}),
        *_encoder(config),
        *_training(config),
        *_softened(folder.log_file),
        *_explained(config, folder.path),
        *_software(config),
    ]


def cited_together(runs: Iterable[str | Path], *, baseline: bool = False) -> list[Citation]:
    """Return the parts of several runs, each once; with ``baseline`` the linear classifier's too.

    In the order of the runs, but for the software, which comes last.

    Raises:
        RunError: as :func:`cited`.
    """
    found = dict.fromkeys(citation for run in runs for citation in cited(run))
    if baseline:
        found |= dict.fromkeys(_software({"baseline": True}))
    return sorted(found, key=lambda citation: citation.part == "software")


def bibtex(citations: Iterable[Citation], config: Mapping[str, Any] | None = None) -> str:
    """Return the entries of all citations as BibTeX, each once, and longarc's own last.

    ``config`` is the run's, whose provenance names the version and the year.

    >>> print(bibtex([Citation("loss", "ldam", ("cao2019learning",))]).splitlines()[0])
    @inproceedings{cao2019learning,
    """
    known = entries()
    keys = dict.fromkeys(key for citation in citations for key in citation.keys)
    return "\n\n".join([*(known[key] for key in keys), software_entry(config or {})]) + "\n"


def entries() -> dict[str, str]:
    """Return every entry of ``references.bib`` by its key.

    >>> "devlin2019bert" in entries()
    True
    """
    text = REFERENCES.read_text(encoding="utf-8")
    found = re.findall(r"^(@\w+\{([\w:-]+),\n.*?^\})$", text, re.MULTILINE | re.DOTALL)
    return {key: entry for entry, key in found}


def software_entry(config: Mapping[str, Any]) -> str:
    """Return longarc's own entry, with the version and the year that a run's provenance names."""
    provenance = as_dict(config.get("provenance"))
    lines = [
        "@software{longarc,",
        "  author = {{The longarc authors}},",
        "  title = {longarc: text encoders for long documents and long-tailed labels},",
    ]
    if provenance.get("longarc"):
        lines.append(f"  version = {{{_plain(provenance['longarc'])}}},")
    if year := re.match(r"\d{4}", str(provenance.get("created", ""))):
        lines.append(f"  year = {{{year[0]}}},")
    return "\n".join([*lines, "  url = {https://github.com/longarc/longarc},", "}"])


def config_of(run: str | Path) -> dict[str, Any]:
    """Return what a run's ``config.yaml`` holds."""
    return parse_options(Path(run) / "config.yaml", read_text(Path(run) / "config.yaml"))


def _loss(config: Mapping[str, Any]) -> list[Citation]:
    name = str(config.get("loss"))
    found = [_citation("loss", name, LOSSES)]
    if as_dict(config.get("loss_options")).get("label_smoothing"):
        found.append(Citation("loss", "label smoothing", ("szegedy2016rethinking",)))
    return found


def _recipe(recipe: Mapping[str, Any]) -> list[Citation]:
    found = []
    stage = as_dict(recipe.get("second_stage"))
    if stage.get("head_changed") and stage.get("chosen", "none") != "none":
        found.append(_citation("second stage", str(stage["chosen"]), SECOND_STAGES))
    if stage.get("temperature"):
        found.append(Citation("second stage", "temperature", ("guo2017calibration",)))
    return found


def _encoder(config: Mapping[str, Any]) -> list[Citation]:
    found = []
    model = str(config.get("model"))
    if model in CELLS:
        found.append(_citation("encoder", model, RECURRENT))
        found.append(Citation("encoder", "orthogonal start", ("saxe2014exact",)))
        found.append(Citation("encoder", "variational dropout", ("gal2016theoretically",)))
        if str(config.get("pooling")).endswith("attention"):
            found.append(Citation("encoder", "attention pooling", ("yang2016hierarchical",)))
    else:
        kind = str(as_dict(config.get("provenance")).get("encoder"))
        known = _citation("encoder", kind, ENCODERS)
        if model == "minilm":
            known = Citation("encoder", model, (*MINILM, *known.keys))
        elif known.note:
            known = Citation("encoder", model, note="cite what its own model card names")
        found.append(known)
    if config.get("embeddings") == "minilm":
        found.append(Citation("token vectors", "minilm", MINILM))
    if config.get("positions", "trained") != "trained":
        found.append(_citation("positions", str(config["positions"]), POSITIONS))
    if config.get("attention"):
        found.append(_attention(str(config["attention"]), as_dict(config.get("attention_options"))))
    if config.get("residual_attention", "none") != "none":
        name = str(config["residual_attention"])
        found.append(Citation("residual attention", name, ("he2021realformer",)))
    return found


def _attention(name: str, options: Mapping[str, Any]) -> Citation:
    found = _citation("attention", name, ATTENTIONS)
    keys = found.keys
    if name == "linear" and options.get("feature_map") == "softmax":
        keys = ("shen2021efficient",)
    if name == "performer" and options.get("optimal", True):
        keys = (*keys, "likhosherstov2022chefs")
    if options.get("projection") == "simplex":
        keys = (*keys, "reid2023simplex")
    return Citation(found.part, found.name, keys, found.note)


def _training(config: Mapping[str, Any]) -> list[Citation]:
    names = _names(config.get("regularizers"))
    found = [_citation("regularizer", name, REGULARIZERS) for name in names]
    if config.get("freeze"):
        return found
    found.append(Citation("optimiser", "AdamW", ("loshchilov2019decoupled", "kingma2015adam")))
    if config.get("head_start") == "probe":
        found.append(Citation("head's start", "linear probe", ("kumar2022fine",)))
    if config.get("layer_decay") not in (None, 1, 1.0):
        found.append(Citation("step sizes", "by layer", ("howard2018universal",)))
    if config.get("sampler", "random") != "random":
        found.append(Citation("sampler", str(config["sampler"]), ("kang2020decoupling",)))
    return found


def _softened(log: Path) -> list[Citation]:
    """The temperature that a probe was divided by, of runs that did."""
    if any(record.get("event") == "probe" for record in read_log(log)):
        return [Citation("head's start", "temperature", ("guo2017calibration",))]
    return []


def _pretraining(config: Mapping[str, Any]) -> list[Citation]:
    objective = str(config.get("objective"))
    found = [_citation("objective", objective, OBJECTIVES)]
    if objective != "mlm":
        if config.get("views") == "crops":
            found.append(Citation("views", "crops", ("izacard2022unsupervised",)))
        if config.get("shuffle") or config.get("delete"):
            found.append(Citation("views", "shuffled or deleted", ("wu2020clear",)))
        if config.get("chunk"):
            found.append(Citation("large batches", "gradient cache", ("gao2021scaling",)))
    return found


def _explained(config: Mapping[str, Any], folder: Path) -> list[Citation]:
    if config.get("record_path") or (folder / "explanations.json").is_file():
        keys = ("domingos2020every", "pruthi2020estimating")
        return [Citation("explanations", "contributions along the path", keys)]
    return []


def _software(config: Mapping[str, Any]) -> list[Citation]:
    found = []
    if config.get("baseline") or config.get("hybrid"):
        keys = ("fan2008liblinear", "pedregosa2011scikit")
        found.append(Citation("linear classifier", "TF-IDF + LinearSVC", keys))
    keys = ("wolf2020transformers", "paszke2019pytorch")
    return [*found, Citation("software", "transformers and PyTorch", keys)]


def _citation(part: str, name: str, known: Mapping[str, tuple[str, ...] | str]) -> Citation:
    keys = known.get(name, "no reference is known to longarc")
    return Citation(part, name, note=keys) if isinstance(keys, str) else Citation(part, name, keys)


def _names(regularizers: Any) -> list[str]:
    """The names in what a configuration holds: words, or mappings of a name to its options."""
    listed = regularizers if isinstance(regularizers, list) else [regularizers or []]
    found: list[str] = []
    for one in listed:
        found += [str(key) for key in one] if isinstance(one, Mapping | list) else [str(one)]
    return found


def _plain(value: Any) -> str:
    """A value that cannot end a BibTeX field."""
    return re.sub(r"[{}\\\n]", "", str(value))
