"""The suite every registered regularizer passes: what holds whatever it does to a step.

That a regularizer computes what it should is tested against its formula in
``tests/objectives/test_regularizer_mathematics.py``.
"""

from __future__ import annotations

import importlib
import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longarc import Regularizer
from longarc.errors import LongarcError, ModelError, OptionError
from longarc.objectives.losses.f1_weighted import F1WeightedCrossEntropy
from longarc.objectives.losses.registry import build_loss
from longarc.objectives.regularizers.batch import Batch
from longarc.objectives.regularizers.fgm import FGM
from longarc.objectives.regularizers.gradient_penalty import GradientPenalty
from longarc.objectives.regularizers.registry import REGULARIZERS, build_regularizers
from longarc.objectives.regularizers.step import Surroundings, regularized_backward
from shared_draws import SharedDropout, shared_noise
from small_classifier import CLASSES, SPECIAL, cut, gradients, make_batch, make_model, rows_of

# Options with which each does something that the small classifier shows.
OPTIONS = {
    "flooding": {"level": 2.5}, "gradient-penalty": {"weight": 0.05, "warmup": 0.0},
    "input-gradient-penalty": {"weight": 0.02}, "sam": {"rho": 0.3},
}  # fmt: skip
# Options with which each leaves the loss alone.
OFF = {
    "fgm": {"weight": 0.0}, "pgd": {"weight": 0.0}, "freelb": {"epsilon": 0.0},
    "vat": {"weight": 0.0}, "input-gradient-penalty": {"weight": 0.0},
    "gradient-penalty": {"weight": 0.0}, "sam": {"rho": 0.0}, "flooding": {"level": 0.0},
    "r-drop": {"alpha": 0.0},
}  # fmt: skip
every = pytest.mark.parametrize("name", REGULARIZERS)


@pytest.fixture(autouse=True)
def same_direction(monkeypatch):
    """VAT's random direction follows the batch's shape: here it is the same for any."""
    monkeypatch.setattr(Batch, "noise", shared_noise)


def model_for(names):
    """One that each of them does something to, and whose dropout does not depend on the batches."""
    model = make_model()
    if "r-drop" in names:  # without dropout there is nothing to agree on
        model.dropout = SharedDropout()
    return model


def run(names, model, batches, loss="cross-entropy", surroundings=None, **more):
    """The plain loss and the gradient."""
    chosen = [n if isinstance(n, dict) else {n: OPTIONS.get(n, {})} for n in names]
    criterion = build_loss(loss, class_counts=[30, 10, 3], num_examples=43, **more)
    plain = regularized_backward(
        model, batches, criterion, build_regularizers(chosen), special=SPECIAL,
        surroundings=surroundings,
    )  # fmt: skip
    return plain, gradients(model)


@every
def test_does_something(name):
    model, batch = make_model(dropout=0.2), make_batch()
    torch.manual_seed(1)
    _, found = run([name], model, batch)
    torch.manual_seed(1)
    _, plain = run([], model, batch)
    assert (found - plain).norm() > 1e-2 * plain.norm()


@every
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_off_is_plain(name, dropout):
    if dropout and name == "r-drop":
        pytest.skip("two draws of dropout are not one")
    model, batch = make_model(dropout=dropout), make_batch()
    torch.manual_seed(1)
    loss, found = run([{name: OFF[name]}], model, batch)
    torch.manual_seed(1)
    expected, plain = run([], model, batch)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


@every
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_a_step_is_the_same_however_it_is_cut(name, data):
    rows = data.draw(st.integers(2, 7))
    first = data.draw(st.integers(1, rows - 1))
    loss = data.draw(st.sampled_from(["cross-entropy", "class-weighted", "focal"]))
    model, batch = model_for([name]), make_batch(rows, seed=rows)
    torch.manual_seed(0)
    _, off = run([{name: OFF[name]}], model, batch, loss)
    expected_loss, expected = run([name], model, batch, loss)
    assert (expected - off).norm() > 1e-3 * off.norm(), "else the comparison below is empty"
    found_loss, found = run([name], model, cut(batch, first, rows - first), loss)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found_loss, expected_loss, rtol=0, atol=1e-12)


@every
def test_padding_and_order_do_not_matter(name):
    model = make_model()
    _, expected = run([name], model, make_batch())
    _, padded = run([name], model, make_batch(width=20))
    torch.testing.assert_close(padded, expected, rtol=1e-7, atol=1e-9)
    _, turned = run([name], model, rows_of(make_batch(), [3, 0, 5, 1, 4, 2]))
    torch.testing.assert_close(turned, expected, rtol=1e-7, atol=1e-9)


@every
def test_weights_come_back_bit_for_bit(name):
    model = make_model(dropout=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run([name], model, make_batch())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model.training


@every
def test_a_step_repeats_from_its_random_state(name):
    model, batch = make_model(dropout=0.3), cut(make_batch(), 4, 2)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((run([name], model, batch)[1], torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@every
def test_old_gradients_are_gone(name):
    model, batch = make_model(), make_batch()
    _, expected = run([name], model, batch)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 7.0)
    assert torch.equal(run([name], model, batch)[1], expected)


@every
def test_documents_without_label_add_nothing_but_what_needs_none(name):
    model, batch = make_model(), make_batch()
    batch["labels"][[1, 4]] = -100
    _, found = run([name], model, batch)
    _, expected = run([name], model, rows_of(batch, [0, 2, 3, 5]))
    if name == "vat":
        assert (found - expected).norm() > 1e-3
    else:
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@every
def test_several_labels(name):
    model, batch = make_model(dropout=0.2), make_batch()
    batch["labels"] = torch.nn.functional.one_hot(batch["labels"], CLASSES).double()
    batch["labels"][0] = 0
    batch["labels"][1] = 1
    torch.manual_seed(1)
    _, found = run([name], model, batch, "binary-cross-entropy", multi_label=True)
    torch.manual_seed(1)
    _, plain = run([], model, batch, "binary-cross-entropy", multi_label=True)
    assert found.isfinite().all()
    assert (found - plain).norm() > 1e-2 * plain.norm()


@every
def test_frozen_weights_stay_out(name):
    model = make_model(dropout=0.1)
    for weight in model.bert.embeddings.parameters():
        weight.requires_grad_(False)
    run([name], model, make_batch())
    assert all(weight.grad is None for weight in model.bert.embeddings.parameters())
    assert model.classifier.weight.grad.norm() > 0


@every
def test_non_reentrant_checkpointing(name):
    model, batch = make_model(dropout=0.2), make_batch()
    torch.manual_seed(1)
    _, expected = run([name], model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(1)
    _, found = run([name], model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@every
def test_autocast_is_near(name):
    model, batch = make_model().float(), make_batch()
    _, plain = run([], model, batch)
    _, exact = run([name], model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        _, plain_16 = run([], model, batch)
        _, found = run([name], model, batch)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.1 * exact.norm()
    if name != "r-drop":  # without dropout it adds nothing
        added, near = exact - plain, found - plain_16
        assert torch.cosine_similarity(added, near, dim=0) > 0.95


@pytest.mark.parametrize("outer", ["gradient-penalty", "sam"])
@pytest.mark.parametrize("inner", [*REGULARIZERS, {"sam": {"fraction": 0.5}}])
def test_every_pass_of_a_step_is_of_the_same_function(inner, outer):
    """A second sweep from almost the same weights differs by almost nothing, dropout and all."""
    tiny = {"gradient-penalty": {"epsilon": 1e-7, "weight": 1e-7}, "sam": {"rho": 1e-7}}
    if outer in inner:
        pytest.skip("each is named once")
    model, batch = make_model(dropout=0.3), cut(make_batch(), 4, 2)
    torch.manual_seed(1)
    _, expected = run([inner], model, batch)
    torch.manual_seed(1)
    _, found = run([inner, {outer: tiny[outer]}], model, batch)
    assert (found - expected).norm() < 1e-3 * expected.norm()


@every
def test_a_scaled_backward_is_unscaled_again(name):
    model, batch = make_model(), make_batch()
    _, expected = run([name], model, batch)
    scale = 2.0**14
    around = Surroundings(
        backward=lambda value: (scale * value).backward(), gradient_scale=lambda: scale
    )
    _, found = run([name], model, batch, surroundings=around)
    torch.testing.assert_close(found / scale, expected, rtol=1e-9, atol=1e-11)


@every
def test_weights_of_16_bits(name):
    model = make_model().to(torch.bfloat16)
    _, found = run([name], model, make_batch())
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()


@every
def test_the_loss_that_is_returned_is_the_plain_one(name):
    model, batch = make_model(), make_batch()
    expected, _ = run([], model, batch)
    options = [OPTIONS.get(name, {})]
    if name == "flooding":
        options.append({"level": 5.0, "per_example": True})
    for option in options:
        loss, _ = run([{name: option}], model, batch)
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)


@every
def test_a_weight_that_no_loss_reaches_gets_no_gradient(name):
    model = make_model()
    model.idle = torch.nn.Linear(2, 2)
    run([name], model, make_batch())
    assert model.idle.weight.grad is None


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.4, 0.5, 0.85])
def test_a_part_of_any_batch(fraction):
    for rows in range(1, 200):
        whole = Batch(
            torch.nn.Linear(1, 1), {"x": torch.arange(rows)}, torch.arange(rows),
            build_loss("cross-entropy", class_counts=[1, 1]), [], per_loss=1.0, per_row=1.0,
        )  # fmt: skip
        part = whole.part(fraction).target
        assert len(part) == max(1, round(fraction * rows)) == len(part.unique())


@pytest.mark.parametrize("names", list(itertools.permutations(["fgm", "r-drop", "flooding"])))
def test_terms_add_in_any_order(names):
    model, batch = make_model(dropout=0.2), make_batch()
    torch.manual_seed(1)
    _, expected = run(["fgm", "r-drop", "flooding"], model, batch)
    torch.manual_seed(1)
    _, found = run(names, model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@settings(max_examples=8, deadline=None)
@given(names=st.lists(st.sampled_from(list(REGULARIZERS)), min_size=2, max_size=4, unique=True))
def test_any_of_them_together(names):
    model, batch = model_for(names), make_batch()
    torch.manual_seed(0)
    _, expected = run(names, model, batch)
    _, found = run(names, model, cut(batch, 4, 2))
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@every
def test_options_are_checked(name):
    with pytest.raises(OptionError, match="has no option 'epsilom'"):
        build_regularizers([{name: {"epsilom": 1}}])
    module, _, attribute = REGULARIZERS[name].path.partition(":")
    known = getattr(importlib.import_module(module), attribute)
    assert issubclass(known, Regularizer)
    for option in inspect.signature(known).parameters:
        for wrong in (float("nan"), -1.0, "much", None):
            with pytest.raises(OptionError, match=option):
                build_regularizers([{name: {option: wrong}}])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["flodding"], "Did you mean flooding"),
        ([{"sam": {}, "fgm": {}}], "Expected a name"),
        ([{"sam": 0.1}], "Expected a name"),
        (["sam", {"sam": {"rho": 0.1}}], "named twice"),
        ([3], "3 is no regularizer"),
        ([["fgm"]], "is no regularizer"),
        ([{"sam": 0}], "is no regularizer"),
        ([{"sam": False}], "is no regularizer"),
        (["fgm", {"gradient-penalty": {"method": "double-backward"}}], "stands alone"),
        ([{"gradient-penalty": {"warmup": 2}}], "at most 1"),
        ([{"sam": {"fraction": 0}}], "above 0"),
    ],
)
def test_what_cannot_be_built(chosen, message):
    with pytest.raises(OptionError, match=message):
        build_regularizers(chosen)


@pytest.mark.parametrize(
    ("regularizers", "change", "message"),
    [
        (["fgm"], {}, "is no regularizer"),
        ([FGM()], {"labels": None}, "no labels"),
        ([FGM(), GradientPenalty(method="double-backward")], {}, "stands alone"),
    ],
)
def test_what_a_step_refuses(regularizers, change, message):
    batch = {k: v for k, v in make_batch().items() if k not in change}
    criterion = build_loss("cross-entropy", class_counts=[1, 1, 1])
    with pytest.raises(LongarcError, match=message):
        regularized_backward(make_model(), batch, criterion, regularizers)


@pytest.mark.parametrize("name", ["fgm", "pgd", "freelb", "vat", "input-gradient-penalty"])
def test_a_model_without_embeddings_to_take(name):
    model = torch.nn.Linear(4, 3)
    with pytest.raises(ModelError, match="takes no inputs_embeds"):
        run([name], model, make_batch())


class Watched(F1WeightedCrossEntropy):
    """With a running F1, and all that it has been."""

    def __init__(self):
        super().__init__("running")
        self.seen = []

    def _f1(self, p, target):
        self.seen.append(super()._f1(p, target))
        return self.seen[-1]


TOGETHER = (
    ["r-drop", "fgm"], ["vat", {"flooding": {"level": 2.5, "per_example": True}}],
    [{"sam": {"rho": 0.3, "fraction": 0.5}}], ["pgd", "sam", {"gradient-penalty": {"warmup": 0}}],
    [{"gradient-penalty": {"method": "double-backward", "warmup": 0.0}}],
    [{"input-gradient-penalty": {"method": "double-backward"}}],
)  # fmt: skip


@pytest.mark.parametrize("names", [*([n] for n in REGULARIZERS), *TOGETHER], ids=str)
def test_a_running_f1_moves_once_a_batch_and_from_the_documents_as_they_are(names):
    model, batches = make_model(attn_implementation="eager"), cut(make_batch(8), 4, 4)
    loss, expected = Watched(), Watched()
    chosen = [n if isinstance(n, dict) else {n: OPTIONS.get(n, {})} for n in names]
    half = any(isinstance(n, dict) and "fraction" in n.get("sam", {}) for n in names)
    regularized_backward(model, batches, loss, build_regularizers(chosen), special=SPECIAL)
    for batch in batches:
        labels = batch["labels"][::2] if half else batch["labels"]
        inputs = {k: v[::2] if half else v for k, v in batch.items() if k != "labels"}
        expected(model(**inputs).logits, labels)
    torch.testing.assert_close(loss._sums, expected._sums)
    # One function in all of the step, however often it is evaluated.
    if names != ["vat"]:
        assert len(loss.seen) > len(batches)
    assert all(any(torch.allclose(f1, e) for e in expected.seen) for f1 in loss.seen)
