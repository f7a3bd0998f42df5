"""Candidates are checked before anything runs, and errors name them."""

from __future__ import annotations

import pytest

from longarc.comparison.candidates import (
    Candidate,
    in_a_comparison,
    make_candidates,
    read_candidates,
    what_differs,
)
from longarc.comparison.config import CompareConfig
from longarc.comparison.folder import refuse_existing
from longarc.comparison.presets import PRESETS
from longarc.comparison.scratch_names import SCRATCH
from longarc.errors import LongarcError, OptionError, RunError
from longarc.models.attention.registry import ATTENTIONS, AttentionInfo
from longarc.objectives.losses.registry import LOSSES, LossInfo, loss_names
from longarc.objectives.regularizers.registry import REGULARIZERS, RegularizerInfo
from longarc.training.config import TrainConfig

PLAIN = {"plain": {}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atention": "linear"}, r"candidate 'x'.*'atention'.*Did you mean attention"),
        ({"zzz": 1}, "longarc train --help lists them"),
        ({"text": "body"}, "same for all: give it to longarc compare itself"),
        ({"seed": 1}, "give --seeds to longarc compare"),
        ({"epochs": 3}, "the budget says how long"),
        ({"attention": "linaer"}, r"candidate 'x': There is no attention 'linaer'.*linear"),
        ({"attention": "performer", "attention_options": {"featurs": 1}}, "candidate 'x'.*featurs"),
        ({"loss": "focl"}, "candidate 'x'.*focal"),
        ({"loss": "focal", "loss_options": {"gama": 1}}, "candidate 'x'.*gama"),
        ({"batch_size": "many"}, "candidate 'x': --batch-size is 'many'"),
        ({"model": "minilmm"}, "candidate 'x': no model 'minilmm'"),
        ({"model": "lstm", "attention": "linear"}, "candidate 'x': --attention is for Transf"),
        ({"regularizers": ["fgn"]}, "candidate 'x'.*fgm"),
        ({"regularizers": [{"fgm": {"epsilon": -1}}]}, "candidate 'x': Regularizer fgm: epsilon"),
        ({"regularizers": [{"sam": {"roh": 1}}]}, "candidate 'x': .*no option 'roh'.*rho"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, message):
    with pytest.raises(LongarcError, match=message):
        make_candidates({**PLAIN, "x": options})


@pytest.mark.parametrize(
    ("registry", "name", "info", "options"),
    [
        (LOSSES, "mine", LossInfo("mine:Mine", "", True, False), {"loss": "mine"}),
        (REGULARIZERS, "mine", RegularizerInfo("mine:Mine", ""), {"regularizers": ["mine"]}),
        (ATTENTIONS, "mine", AttentionInfo("mine:Mine", ""), {"attention": "mine"}),
    ],
    ids=["loss", "regularizer", "attention"],
)
def test_what_is_registered_in_this_process_alone(monkeypatch, registry, name, info, options):
    """longarc.fit knows it, and a candidate's own process would not."""
    monkeypatch.setitem(registry, name, info)
    TrainConfig(data="t", out="o", **options).validate()
    with pytest.raises(OptionError, match=r"candidate 'x': .* mine was registered in this Python"):
        make_candidates({**PLAIN, "x": options})


def test_numbers_are_read_as_the_command_line_reads_them():
    given = "{a: {learning_rate: 1e-3}, b: {learning_rate: -1.5E3, loss: 1e-focal}, c: {x: .5e+2}}"
    assert read_candidates(given) == {
        "a": {"learning_rate": 1e-3},
        "b": {"learning_rate": -1500.0, "loss": "1e-focal"},
        "c": {"x": 50.0},
    }


def test_names_stay_as_they_were_typed():
    given = "{1e-3: {learning_rate: 1e-3}, 0.001: {}, yes: {}, 2024-01-01: {}}"
    assert list(read_candidates(given)) == ["1e-3", "0.001", "yes", "2024-01-01"]


def test_hints_name_options_as_a_candidate_has_them():
    with pytest.raises(OptionError) as refused:
        make_candidates({**PLAIN, "x": {"freeze": True, "sampler": "class-balanced"}})
    assert "Here they are freeze, sampler and recipe: among the options of the cand" in str(
        refused.value
    )
    for message in ("memory ran out", "Name another --out, or --test."):
        assert in_a_comparison(message) == message


def test_what_differs_is_named():
    then = {"a": {"loss": "focal", "freeze": True}, "b": {}, "c": {"loss": "dice"}}
    assert what_differs(then, then) == ""
    now = {"b": {"pooling": "cls"}, "a": {"loss": "focal", "freeze": False}, "d": {}}
    assert what_differs(then, now) == (
        "c is gone, d is new; a: freeze True then, False now; b: pooling not named then, 'cls' now"
    )


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", " x", "", "a" * 41, "a\nb", "what?"])
def test_a_name_has_to_be_a_folders(name):
    with pytest.raises(OptionError, match="can be a folder's"):
        make_candidates({**PLAIN, name: {}})


def test_names_that_some_disks_take_for_one():
    with pytest.raises(OptionError, match="comes twice, as some disks see it"):
        make_candidates({"Exact": {}, "exact": {}})


def test_one_candidate_is_no_comparison():
    with pytest.raises(OptionError, match="1 candidate was named: expected at least two"):
        make_candidates({"all": {"max_length": 64}, "x": {}})


def test_options_for_all_come_last():
    found = {"all": {"max_length": 64, "batch_size": 4}, "a": {}, "b": {"max_length": 32}}
    a, b = make_candidates(found, {"batch_size": 8})
    assert a == Candidate("a", {"max_length": 64, "batch_size": 8})
    assert b == Candidate("b", {"max_length": 32, "batch_size": 8})
    with pytest.raises(OptionError, match="every candidate has an option 'sedd'"):
        make_candidates(found, {"sedd": 1})


def test_the_budget_is_used_up_unless_patience_is_named():
    assert Candidate("a", {}).config(data="t", out="o").patience == 0
    assert Candidate("a", {"patience": 2}).config(data="t", out="o").patience == 2
    assert Candidate("a", {"model": "lstm"}).config(data="t", out="o").batch_size == 32
    assert isinstance(Candidate("a", {}).config(data="t", out="o"), TrainConfig)


def test_a_file_and_a_line_say_the_same(tmp_path):
    file = tmp_path / "candidates.yaml"
    file.write_text("mean:\ncls: {pooling: cls}\n", encoding="utf-8")
    assert read_candidates(str(file)) == read_candidates("{mean: , cls: {pooling: cls}}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {}\na: {}\n", "candidate 'a' comes twice"),
        ("- a\n- b\n", "holds no candidates"),
        ("", "holds no candidates"),
        ("a: linear\nb: {}\n", "candidate 'a' in .* is 'linear'"),
        ("a: {b\n", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, text, message):
    file = tmp_path / "candidates.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        read_candidates(str(file))


def test_a_file_that_is_not_there_might_be_a_preset():
    with pytest.raises(OptionError, match=r"no such file.*Did you mean attention"):
        read_candidates("atention")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("length", [128, 2048])
def test_presets_are_candidates(name, multi_label, length):
    made = make_candidates(PRESETS[name].candidates(length, multi_label), {"max_length": length})
    assert len(made) >= 8
    losses = {c.options.get("loss") for c in made} - {None}
    assert losses <= set(loss_names(multi_label))
    models = {c.options.get("model") for c in made} - {None, "lstm"}
    assert models <= set(SCRATCH)
    for candidate in made:
        stretched = candidate.options.get("positions") == "hierarchical"
        own = candidate.options["max_length"]
        packaged = candidate.options.get("model") is None
        if name == "attention":
            assert stretched == (packaged and own > 512)


def test_a_folder_named_like_its_preset_is_not_taken_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attention").mkdir()
    refuse_existing(CompareConfig(data="t.csv", candidates="attention", out="attention"))
    (tmp_path / "mine").mkdir()
    for name in ("compare.yaml", "mine.yaml"):
        (tmp_path / "mine" / name).write_text("exact: {}")
    ours = {"data": "t.csv", "out": "mine", "overwrite": True}
    refuse_existing(CompareConfig(candidates="{exact: {}}", **ours))
    with pytest.raises(RunError, match=r"mine.yaml lies in mine, which --overwrite deletes"):
        refuse_existing(CompareConfig(candidates="mine/mine.yaml", **ours))


def test_options_for_all_fit_the_frozen_candidate_of_a_preset():
    everywhere = {"max_length": 64, "accumulation": 4, "head_learning_rate": 1e-3}
    made = make_candidates(PRESETS["everything-small"].candidates(64, False), everywhere)
    assert {c.name: c.options["accumulation"] for c in made}["probe only"] == 1
    assert {c.options["accumulation"] for c in made} == {1, 4}
