from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from longarc.errors import OptionError
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.registry import (
    LOSSES,
    build_loss,
    check_loss_options,
    loss_names,
)


def test_names_and_unknown_names_need_no_torch():
    program = """
import sys
from longarc.errors import OptionError
from longarc.objectives.losses.registry import check_loss_options, loss_names
assert "logit-adjusted" in loss_names()
check_loss_options("logit-adjusted", {}, multi_label=False)
try:
    check_loss_options("logit-ajusted")
except OptionError as error:
    assert "torch" not in sys.modules
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "There is no loss 'logit-ajusted'. Did you mean logit-adjusted?" in done.stdout


def test_names_by_kind_of_labels():
    assert loss_names() == list(LOSSES)
    single, multi = set(loss_names(multi_label=False)), set(loss_names(multi_label=True))
    assert single | multi == set(LOSSES)
    assert {"cross-entropy", "class-weighted", "logit-adjusted"} <= single - multi
    assert "binary-cross-entropy" in multi - single
    assert {"focal", "dice", "soft-f1"} <= single & multi


def test_an_unknown_name_lists_only_what_fits_the_labels():
    with pytest.raises(OptionError, match=r"Known: binary-cross-entropy, ") as refused:
        check_loss_options("cross-entropi", multi_label=True)
    assert "logit-adjusted" not in str(refused.value)
    assert "focal" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "multi_label", "message"),
    [
        (
            "logit-adjusted",
            True,
            "several labels each, which loss logit-adjusted is not for. "
            "Choose one that is: binary-cross-entropy, ",
        ),
        (
            "binary-cross-entropy",
            False,
            "exactly one label each, which loss binary-cross-entropy is not for. "
            "Choose one that is: cross-entropy, class-weighted, ",
        ),
    ],
)
def test_a_loss_for_the_other_kind_of_labels(name, multi_label, message):
    with pytest.raises(OptionError, match=message):
        build_loss(name, class_counts=[1, 2], multi_label=multi_label)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("logit-adjusted", {"tua": 2}, r"no option 'tua'. Did you mean tau\? Known: tau \(default"),
        ("class-weighted", {"reduction": "sum"}, r"no option 'reduction'. Known: power \(default"),
        ("cross-entropy", {"class_counts": [1]}, "no option 'class_counts'"),
        ("logit-adjusted", {"tau": "1"}, r"tau must be a finite number.* found '1' \(str\)"),
        ("logit-adjusted", {"tau": -1}, r"tau must be .* at least 0; found -1"),
        ("logit-adjusted", {"tau": float("nan")}, "tau must be a finite number"),
        ("logit-adjusted", {"tau": float("inf")}, "tau must be a finite number"),
        ("logit-adjusted", {"tau": True}, "tau must be a finite number"),
        ("class-weighted", {"power": None}, "power must be a finite number"),
        ("cross-entropy", {"label_smoothing": 1}, "label_smoothing must be .* and below 1; found"),
        ("binary-cross-entropy", {"pos_weight_power": -0.5}, "pos_weight_power must be"),
    ],
)
def test_options_are_refused_before_any_data(name, options, message):
    with pytest.raises(OptionError, match=message):
        check_loss_options(name, options)
    with pytest.raises(OptionError, match=message):
        build_loss(name, class_counts=[3, 1], options=options, multi_label=LOSSES[name].multi_label)


def test_good_options_pass_and_arrive():
    check_loss_options("logit-adjusted", {"tau": 2}, multi_label=False)
    check_loss_options("binary-cross-entropy", {"pos_weight_power": 0.5}, multi_label=True)
    assert build_loss("logit-adjusted", class_counts=[3, 1], options={"tau": 2}).tau == 2.0
    loss = build_loss(
        "binary-cross-entropy",
        class_counts=[3, 1],
        num_examples=4,
        options={"pos_weight_power": 1},
        multi_label=True,
    )
    assert loss.pos_weight().tolist() == pytest.approx([1 / 3, 3.0])


@pytest.mark.parametrize("name", ["class-weighted", "logit-adjusted"])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -1], "-1 for class 1; a count is 0 or more"),
        ([0, 0], "all 0: 0, 0"),
        ([2.5, 1], "not all whole numbers: 2.5, 1"),
        ([float("nan"), 1], "not all whole numbers: nan"),
        ([float("inf"), 1], "not all whole numbers: inf"),
        ([True, False], "not all whole numbers"),
        ([], r"shape \(0,\), not \(C,\)"),
        ([[1, 2]], r"shape \(1, 2\), not \(C,\)"),
        (["a"], "cannot be read as numbers"),
        ({"a": 1}, "cannot be read as numbers"),
    ],
)
def test_class_counts_that_cannot_be_counts(name, counts, message):
    with pytest.raises(OptionError, match=message):
        build_loss(name, class_counts=counts)


@pytest.mark.parametrize(
    "counts", [(9, 1), np.array([9, 1]), torch.tensor([9, 1]), [9.0, 1.0]], ids=str
)
def test_class_counts_in_any_form_are_copied(counts):
    loss = build_loss("logit-adjusted", class_counts=counts)
    assert loss.class_counts.dtype == torch.int64
    if isinstance(counts, torch.Tensor):
        counts[0] = 1
    assert loss.class_counts.tolist() == [9, 1]


def test_positive_weights_need_the_number_of_examples():
    options = {"pos_weight_power": 1.0}
    with pytest.raises(OptionError, match="needs class_counts and num_examples"):
        build_loss("binary-cross-entropy", class_counts=[3, 1], options=options, multi_label=True)
    with pytest.raises(OptionError, match=r"3 for label 0, more than num_examples=2"):
        build_loss(
            "binary-cross-entropy",
            class_counts=[3, 1],
            num_examples=2,
            options=options,
            multi_label=True,
        )


def test_the_contracts_own_arguments():
    with pytest.raises(OptionError, match=r"no reduction 'avg'.*Known: mean, sum, none"):
        Loss(reduction="avg")  # type: ignore[arg-type]
    for ignore_index in (0, 5, 1.5):
        with pytest.raises(OptionError, match="ignore_index must be a negative whole number"):
            Loss(ignore_index=ignore_index)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_belongs_to_the_batch_says_so(name):
    """Whether an example's loss changes with the others of its batch."""
    several = name not in loss_names(multi_label=False)
    loss = build_loss(name, class_counts=[6, 3, 2], num_examples=11, multi_label=several)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    target = torch.tensor([1, 0, 2, 1])
    target = torch.eye(3, dtype=torch.float64)[target] if several else target
    known = {"class_vectors": torch.eye(3, dtype=torch.float64)} if loss.uses_class_vectors else {}
    whole, part = (loss(logits[:n], target[:n], reduction="none", **known)[0] for n in (4, 2))
    assert bool(whole != part) == loss.belongs_to_batch
