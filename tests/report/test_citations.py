"""What a run is cited with: every registered part has its reference, and no other part is named."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
import yaml

from longarc.models.attention.registry import ATTENTIONS as KERNELS
from longarc.models.attention.registry import EXACT
from longarc.models.recurrent.options import CELLS
from longarc.objectives.losses.registry import LOSSES as LOSS_REGISTRY
from longarc.objectives.regularizers.registry import REGULARIZERS as REGULARIZER_REGISTRY
from longarc.report import citations
from longarc.report.citations import bibtex, cited, config_of, entries
from longarc.studies.registry import STUDIES

TABLES = {
    "loss": (citations.LOSSES, set(LOSS_REGISTRY)),
    "regularizer": (citations.REGULARIZERS, set(REGULARIZER_REGISTRY)),
    "attention": (citations.ATTENTIONS, {EXACT, *KERNELS}),
    "recurrent": (citations.RECURRENT, set(CELLS)),
    "positions": (citations.POSITIONS, {"hierarchical", "copy", "interpolate"}),
    "second stage": (citations.SECOND_STAGES, {"none", "post-hoc", "tau-norm", "crt"}),
    "objective": (citations.OBJECTIVES, {"simcse", "simsiam", "byol", "mlm"}),
    "encoder": (citations.ENCODERS, set(citations.ENCODERS)),
}
SOURCE = Path(citations.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("part", TABLES)
def test_everything_registered_has_its_reference_or_says_why_not(part):
    table, registered = TABLES[part]
    assert table.keys() == registered
    known = entries()
    for name, keys in table.items():
        assert keys, name
        assert isinstance(keys, str) or set(keys) <= known.keys(), name


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_its_references(name):
    references = STUDIES[name].references
    assert references
    assert set(references) <= entries().keys()


def test_every_entry_is_used_by_something():
    named = SOURCE + "".join(key for info in STUDIES.values() for key in info.references)
    assert [key for key in entries() if key not in named] == []


@pytest.mark.parametrize(("key", "entry"), entries().items(), ids=lambda value: value[:20])
def test_an_entry_has_author_title_and_year(key, entry):
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
    assert {"author", "title", "year"} <= fields.keys()
    assert entry.count("{") == entry.count("}")
    assert len(entry.splitlines()) == len(fields) + 2  # each field in a line of its own
    first = re.sub(r"\{\\.?\{?(\w)\}?\}|[^\w]", r"\1", fields["author"].split(",")[0]).lower()
    year = re.search(r"\d{4}", key)
    assert year is not None
    assert key.startswith(first.replace(" ", "")[:4])
    assert year[0] == fields["year"]


def test_the_entries_agree_with_what_the_docstrings_say():
    """Each arXiv number in the sources next to a name and a year is the entry's."""
    numbers = {}
    for entry in entries().values():
        number = re.search(r"eprint = \{(.+?)\}", entry)
        author = re.search(r"author = \{(.+?),", entry)
        year = re.search(r"year = \{(.+?)\}", entry)
        assert author is not None
        assert year is not None
        if number is not None:
            numbers[number[1]] = (re.sub(r"\\.|[{}]", "", author[1]), year[1])
    said = 0
    for path in (Path(citations.__file__).parents[1]).rglob("*.py"):
        text = " ".join(path.read_text(encoding="utf-8").split())
        for name, year, number in re.findall(
            r"([A-Z][\w-]+)(?: et al\.,?| & \w+) (\d{4})[^;.]{0,160}?\(?arXiv (\d{4}\.\d{5})", text
        ):
            if number in numbers:
                assert numbers[number] == (plain(name), year), f"{path.name}: {name} {number}"
                said += 1
    assert said > 30


def plain(name):
    """A name without its accents."""
    letters = unicodedata.normalize("NFD", name)
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def parts(folder):
    return {(one.part, one.name): one.keys or one.note for one in cited(folder)}


def change(folder, **options):
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config | options), encoding="utf-8")


@pytest.fixture
def run(tmp_path, run_folder):
    import shutil

    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def test_a_plain_run_cites_what_it_used_and_nothing_else(run):
    change(
        run, loss="cross-entropy", loss_options=None, freeze=False, record_path=False,
        baseline=False, layer_decay=1.0, head_start="scratch",
    )  # fmt: skip
    assert parts(run) == {
        ("loss", "cross-entropy"): "textbook",
        ("encoder", "minilm"): ("wang2020minilm", "reimers2019sentence", *_kind(run)),
        ("optimiser", "AdamW"): ("loshchilov2019decoupled", "kingma2015adam"),
        ("software", "transformers and PyTorch"): ("wolf2020transformers", "paszke2019pytorch"),
    }


def _kind(run):
    return ("devlin2019bert",) if config_of(run)["provenance"].get("encoder") == "BertModel" else ()


def test_every_option_brings_its_reference(run):
    change(
        run, loss="logit-adjusted", regularizers=["fgm", {"flooding": {"level": 0.1}}],
        attention="performer", attention_options={"projection": "simplex"}, positions="copy",
        residual_attention="gated", sampler="square-root", layer_decay=0.9, head_start="probe",
        freeze=False, record_path=True,
    )  # fmt: skip
    found = parts(run)
    assert found["loss", "logit-adjusted"] == ("menon2021long", "ren2020balanced")
    assert found["regularizer", "fgm"] == ("miyato2017adversarial",)
    assert found["regularizer", "flooding"] == ("ishida2020do",)
    assert found["attention", "performer"] == (
        "choromanski2021rethinking", "likhosherstov2022chefs", "reid2023simplex",
    )  # fmt: skip
    assert found["positions", "copy"] == ("beltagy2020longformer",)
    assert found["residual attention", "gated"] == ("he2021realformer",)
    assert found["sampler", "square-root"] == ("kang2020decoupling",)
    assert found["step sizes", "by layer"] == ("howard2018universal",)
    assert found["head's start", "linear probe"] == ("kumar2022fine",)
    assert ("head's start", "temperature") not in found
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "probe", "penalty": 0.001, "temperature": 2.5}\n')
    assert parts(run)["head's start", "temperature"] == ("guo2017calibration",)
    explained = found["explanations", "contributions along the path"]
    assert explained == ("domingos2020every", "pruthi2020estimating")


def test_a_recurrent_run_cites_its_cell_and_no_pretrained_encoder(run):
    change(run, model="lstm", pooling="max-attention", embeddings=None, head_start="scratch")
    found = parts(run)
    assert found["encoder", "lstm"] == ("hochreiter1997long", "jozefowicz2015empirical")
    assert found["encoder", "attention pooling"] == ("yang2016hierarchical",)
    assert not any("minilm" in name for _, name in found)


def test_the_second_stage_that_was_chosen_is_cited(run):
    record = (
        '{"second_stage": {"chosen": "tau-norm", "trials": [], "not_tried": {}, "why": "",'
        ' "temperature": {"value": 1.2}, "head_changed": true}}'
    )
    (run / "recipe.json").write_text(record, encoding="utf-8")
    found = parts(run)
    assert found["second stage", "tau-norm"] == ("kang2020decoupling",)
    assert found["second stage", "temperature"] == ("guo2017calibration",)
    (run / "recipe.json").write_text(record.replace("true", "false"), encoding="utf-8")
    assert ("second stage", "tau-norm") not in parts(run)


def test_bibtex_has_each_entry_once_and_longarc_with_its_version(run):
    text = bibtex(cited(run), config_of(run))
    keys = re.findall(r"^@\w+\{([\w-]+),$", text, re.MULTILINE)
    assert len(keys) == len(set(keys))
    assert keys[-1] == "longarc"
    wanted = {key for one in cited(run) for key in one.keys}
    assert set(keys) == wanted | {"longarc"}
    version = config_of(run)["provenance"]["longarc"]
    assert f"version = {{{version}}}" in text


def test_a_hostile_version_ends_no_field(run):
    change(run, provenance={"longarc": "1}, evil = {x\n@misc{y", "created": "2026-01-01"})
    entry = bibtex([], config_of(run))
    assert entry.count("{") == entry.count("}")
    assert len(re.findall(r"^@", entry, re.MULTILINE)) == 1
