"""The suite every registered loss passes: a new loss is covered by its entry in TEXTBOOK.

About ten seconds.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import longarc
from longarc.errors import DataError, OptionError
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.registry import LOSSES, build_loss
from textbook import TEXTBOOK
from textbook.form import Textbook


@dataclass(frozen=True)
class Case:
    """A loss with its options, for one kind of labels."""

    name: str
    multi_label: bool
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def textbook(self) -> Textbook:
        return TEXTBOOK[self.name]

    def __str__(self) -> str:
        kind = "-multi" if self.multi_label and self.textbook.single else ""
        return f"{self.name}{kind}" + (f"-{self.options}" if self.options else "")


COUNTS = [900, 40, 7, 1, 0]
NUM_EXAMPLES = 948
CASES = [
    Case(name, multi_label, options)
    for name, textbook in TEXTBOOK.items()
    for multi_label in (False, True)
    if (textbook.multi if multi_label else textbook.single)
    for options in [*textbook.variants, *(textbook.multi_variants if multi_label else [])]
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
# Errors do not depend on the options.
every_loss = pytest.mark.parametrize("case", [c for c in CASES if not c.options], ids=str)
hard_and_soft = pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])


def build(case: Case, counts: Any = COUNTS, **contract: Any) -> Loss:
    """Build a registered loss, with the contract's own arguments set afterwards."""
    loss = build_loss(
        case.name,
        class_counts=counts,
        num_examples=NUM_EXAMPLES,
        options=case.options,
        multi_label=case.multi_label,
    )
    for key, value in contract.items():
        setattr(loss, key, value)
    return loss


def batch(
    case: Case, *, soft: bool, rows: int = 6, classes: int = len(COUNTS), seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 logits (b, C) and a target that suits the loss."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    if not soft:
        return logits, torch.randint(classes, (rows,), generator=generator)
    if case.multi_label:
        target = torch.rand(rows, classes, generator=generator, dtype=torch.float64)
        target[::2] = target[::2].round()  # multi-hot and soft rows
        target[0] = 0  # an example without a label
        return logits, target
    target = torch.rand(rows, classes, generator=generator, dtype=torch.float64) + 0.01
    return logits, target / target.sum(dim=1, keepdim=True)


def one_hot(target: torch.Tensor, classes: int) -> torch.Tensor:
    if target.ndim == 2:
        return target.double()
    return torch.eye(classes, dtype=torch.float64)[target]


def textbook(
    case: Case, logits: torch.Tensor, target: torch.Tensor, counts: list[int] = COUNTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the textbook's losses and weights, (b,) each."""
    formula = case.textbook.multi if case.multi_label else case.textbook.single
    z, t = logits.tolist(), one_hot(target, logits.shape[1]).tolist()
    if case.textbook.whole_batch:
        pairs = formula(z, t, counts, NUM_EXAMPLES, case.options)
    else:
        pairs = [
            formula(row, labels, counts, NUM_EXAMPLES, case.options)
            for row, labels in zip(z, t, strict=True)
        ]
    losses, weights = zip(*pairs, strict=True)
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


def value_and_gradient(
    loss: Callable[..., torch.Tensor], logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, target)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return value.detach(), gradient


def test_every_registered_loss_has_its_textbook_form():
    assert set(TEXTBOOK) == set(LOSSES), "add the loss's formula to TEXTBOOK"


@pytest.mark.parametrize("name", list(TEXTBOOK))
def test_the_registry_tells_the_truth_about_the_class(name):
    info = LOSSES[name]
    module, _, attribute = info.path.partition(":")
    loss_class = getattr(importlib.import_module(module), attribute)
    assert issubclass(loss_class, Loss)
    assert getattr(longarc, attribute) is loss_class
    assert info.single_label == (TEXTBOOK[name].single is not None)
    assert info.multi_label == (TEXTBOOK[name].multi is not None)
    for case in CASES:
        if case.name == name:
            assert build(case).multi_label == case.multi_label
    assert "\n" not in info.summary


@every_case
@hard_and_soft
def test_equals_the_textbook_under_each_reduction(case, soft):
    logits, target = batch(case, soft=soft)
    losses, weights = textbook(case, logits, target)
    expected = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / weights.sum()}
    for reduction, value in expected.items():
        actual = build(case, reduction=reduction)(logits, target)
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, value, rtol=1e-12, atol=1e-12)


@every_case
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    classes=st.integers(2, 17),
    soft=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_the_textbook_at_any_shape(case, rows, classes, soft, seed):
    counts = [(seed // (c + 1)) % 50 for c in range(classes)]
    counts[seed % classes] = 50
    loss = build(case, counts)
    logits, target = batch(case, soft=soft, rows=rows, classes=classes, seed=seed)
    losses, weights = textbook(case, logits, target, counts)
    torch.testing.assert_close(loss(logits, target), losses.sum() / weights.sum())


@every_case
@hard_and_soft
def test_gradients_are_those_of_the_value(case, soft):
    if case.textbook.detached:
        pytest.skip("a factor counts as a constant; its own tests check the gradient")
    logits, target = batch(case, soft=soft, rows=4)
    for reduction in ("mean", "none"):
        loss = build(case, reduction=reduction)
        assert torch.autograd.gradcheck(loss, (logits.requires_grad_(), target))


@every_case
@hard_and_soft
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saturated_logits_give_finite_losses_and_gradients(case, soft, dtype):
    _, target = batch(case, soft=soft, rows=8)
    signs = torch.tensor([[1 if (r >> c) & 1 else -1 for c in range(5)] for r in range(8)])
    for scale in (1e4, 100.0, 30.0):
        value, gradient = value_and_gradient(
            build(case, reduction="none"), (scale * signs).to(dtype), target
        )
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()
        least = scale / 10 if case.textbook.at_worst is None else case.textbook.at_worst
        assert value.max() > least, "a wrong and certain example must cost something"


@every_case
@hard_and_soft
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(case, soft, dtype):
    loss = build(case)
    logits, target = batch(case, soft=soft)
    rounded = logits.to(dtype)
    value, gradient = value_and_gradient(loss, rounded, target)
    expected, expected_gradient = value_and_gradient(loss, rounded.float(), target)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype), rtol=0, atol=0)


@every_case
@hard_and_soft
def test_autocast_does_not_lower_the_precision(case, soft):
    logits, target = batch(case, soft=soft)
    logits = logits.float()
    model = torch.nn.Linear(5, 5)
    for loss in (build(case), build(case).to(torch.bfloat16)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = model(logits)
            actual = loss(z, target)
        assert z.dtype == torch.bfloat16
        expected = build(case)(z.detach().float(), target)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@every_case
@hard_and_soft
def test_the_order_of_the_batch_does_not_matter(case, soft):
    logits, target = batch(case, soft=soft)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    each, mean = build(case, reduction="none"), build(case)
    torch.testing.assert_close(each(logits[order], target[order]), each(logits, target)[order])
    torch.testing.assert_close(mean(logits[order], target[order]), mean(logits, target))


@every_case
@hard_and_soft
def test_the_order_of_the_classes_does_not_matter(case, soft):
    logits, target = batch(case, soft=soft)
    order = torch.tensor([4, 2, 0, 3, 1])
    permuted = target[:, order] if soft else torch.argsort(order)[target]
    loss = build(case, torch.tensor(COUNTS)[order])
    value, gradient = value_and_gradient(build(case), logits, target)
    value_permuted, gradient_permuted = value_and_gradient(loss, logits[:, order], permuted)
    torch.testing.assert_close(value_permuted, value)
    torch.testing.assert_close(gradient_permuted, gradient[:, order])


@every_case
def test_indices_and_one_hot_labels_agree(case):
    logits, target = batch(case, soft=False)
    for dtype in (torch.float64, torch.int64, torch.bool):
        hot = one_hot(target, 5).to(dtype)
        for reduction in ("mean", "none"):
            loss = build(case, reduction=reduction)
            torch.testing.assert_close(loss(logits, hot), loss(logits, target))
    for dtype in (torch.int32, torch.uint8):
        torch.testing.assert_close(loss(logits, target.to(dtype)), loss(logits, target))


@every_case
@hard_and_soft
@pytest.mark.parametrize("ignore_index", [-100, -1])
def test_ignored_rows_are_as_if_absent(case, soft, ignore_index):
    logits, target = batch(case, soft=soft)
    kept, dropped = torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4])
    masked = target.clone()
    masked[dropped] = ignore_index
    spoilt = logits.clone()  # not even an infinity in an ignored row may leak
    spoilt[1], spoilt[3], spoilt[4] = torch.inf, torch.nan, 1e300
    for reduction in ("mean", "sum", "none"):
        loss = build(case, reduction=reduction, ignore_index=ignore_index)
        value, gradient = value_and_gradient(loss, spoilt, masked)
        expected, expected_gradient = value_and_gradient(loss, logits[kept], target[kept])
        if reduction == "none":
            assert torch.equal(value[dropped], torch.zeros(3, dtype=torch.float64))
            value = value[kept]
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient[kept], expected_gradient)
        assert torch.equal(gradient[dropped], torch.zeros(3, 5, dtype=torch.float64))


@every_case
@hard_and_soft
@pytest.mark.parametrize("rows", [0, 3], ids=["empty", "all ignored"])
def test_no_examples_give_an_honest_zero(case, soft, rows):
    weight = torch.ones(4, 5, requires_grad=True)
    target = torch.full((rows, 5), -100.0) if soft else torch.full((rows,), -100)
    for reduction, shape in (("mean", ()), ("sum", ()), ("none", (rows,))):
        value = build(case, reduction=reduction)(torch.ones(rows, 4) @ weight, target)
        assert torch.equal(value, torch.zeros(shape))
        (gradient,) = torch.autograd.grad(value.sum(), weight)
        assert torch.equal(gradient, torch.zeros(4, 5))


@every_case
@hard_and_soft
def test_the_inputs_stay_as_they_were(case, soft):
    logits, target = batch(case, soft=soft)
    target[1] = -100
    before = logits.clone(), target.clone()
    value_and_gradient(build(case), logits, target)
    with torch.no_grad():
        build(case)(logits, target)
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])


@every_case
@hard_and_soft
def test_moves_with_to_and_makes_no_tensor_on_another_device(case, soft):
    # meta refuses to compute with a tensor of another device, as an accelerator does.
    loss = build(case).to("meta")
    assert all(buffer.device.type == "meta" for buffer in loss.buffers())
    logits, target = batch(case, soft=soft)
    value = loss(logits.to("meta").requires_grad_(), target.to("meta"))
    value.backward()
    assert value.device.type == "meta"


@every_case
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_the_cpu(case):
    logits, target = batch(case, soft=True)
    value, gradient = value_and_gradient(build(case), logits, target)
    on_cuda = value_and_gradient(build(case).cuda(), logits.cuda(), target.cuda())
    torch.testing.assert_close(on_cuda[0].cpu(), value)
    torch.testing.assert_close(on_cuda[1].cpu(), gradient)


@every_case
def test_casting_the_loss_rounds_nothing_and_saves_nothing(case):
    logits, target = batch(case, soft=False)
    loss = build(case)
    expected = loss(logits, target)
    torch.testing.assert_close(loss.half()(logits, target), expected, rtol=0, atol=0)
    assert loss.state_dict() == {}


@every_case
def test_repeatedly_called_it_remembers_nothing(case):
    loss = build(case)
    logits, target = batch(case, soft=False)
    first = loss(logits, target)
    loss(*batch(case, soft=True, seed=1))
    assert torch.equal(loss(logits, target), first)


@every_case
@hard_and_soft
def test_compiles_without_a_graph_break(case, soft):
    loss = build(case)
    logits, target = batch(case, soft=soft)
    target[1] = -100
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, gradient = value_and_gradient(compiled, logits, target)
    expected, expected_gradient = value_and_gradient(loss, logits, target)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@every_case
@hard_and_soft
def test_gradients_of_single_examples_under_vmap(case, soft):
    if case.textbook.whole_batch:
        pytest.skip("an example's gradient depends on its batch")
    loss = build(case, reduction="sum")
    logits, target = batch(case, soft=soft)

    def single(z, t):
        return loss(z[None], t[None])

    gradients = torch.func.vmap(torch.func.grad(single))(logits, target)
    torch.testing.assert_close(gradients, value_and_gradient(loss, logits, target)[1])


@every_loss
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), r"logits have shape \(3,\); expected \(b, C\)"),
        (torch.zeros(3, 5).long(), torch.zeros(3).long(), "logits have type torch.int64"),
        (torch.zeros(3, 5), torch.zeros(4).long(), r"target has shape \(4,\).*logits of shape"),
        (torch.zeros(3, 5), torch.zeros(3, 4), r"target has shape \(3, 4\).*\(3, 5\)"),
        (torch.zeros(3, 5), torch.zeros(3, 1).long(), r"target has shape \(3, 1\)"),
        (torch.zeros(3, 5), torch.zeros(3), r"type torch.float32; class indices.*use .long\(\)"),
        (torch.zeros(3, 5), torch.tensor([0, 5, 1]), "class 5 in row 1.*5 classes: 0 to 4"),
        (torch.zeros(3, 5), torch.tensor([0, 1, -1]), "class -1 in row 2.*ignore_index"),
        (torch.zeros(1, 5), torch.tensor([[0, 2.0, 0, 0, 0]]), "2 in row 0, class 1.*0 and 1"),
        (torch.zeros(1, 5), torch.tensor([[1.0, 0, 0, 0, -100]]), "-100 in row 0, class 4"),
        (torch.zeros(1, 5), torch.full((1, 5), torch.nan), "nan in row 0, class 0"),
        ([[0.0, 1.0]], torch.zeros(1).long(), "logits must be a torch tensor, found list"),
        (torch.zeros(1, 5), [0], "target must be a torch tensor, found list"),
    ],
)
def test_misfit_inputs_are_refused_by_name(case, logits, target, message):
    with pytest.raises(DataError, match=message):
        build(case)(logits, target)


@every_loss
def test_a_row_that_does_not_sum_to_one_is_for_multi_label_losses(case):
    logits, target = torch.zeros(2, 5), torch.tensor([[1.0, 0, 0, 0, 0], [1.0, 0, 1, 0, 0]])
    if case.multi_label:
        assert torch.isfinite(build(case)(logits, target))
    else:
        with pytest.raises(DataError, match=r"row 1 .* sum to 2.*binary-cross-entropy"):
            build(case)(logits, target)


@every_loss
def test_logits_of_another_number_of_classes_are_refused(case):
    loss = build(case)
    logits, target = batch(case, soft=False, classes=4)
    if not list(loss.buffers()):
        assert torch.isfinite(loss(logits, target))
        return
    message = re.escape("class_counts has shape (5,), but the logits have shape (6, 4)")
    with pytest.raises(OptionError, match=message):
        loss(logits, target)
