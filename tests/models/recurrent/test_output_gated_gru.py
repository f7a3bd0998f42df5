"""The output-gated GRU against its step-by-step form, and like nn.GRU where they are alike."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from longarc.models.recurrent.output_gated_gru import OutputGatedGRU, reference

LENGTHS = ([5, 5, 5], [7, 1, 4], [1], [3, 9, 9, 2, 1])


def by_hand(cell: OutputGatedGRU, x: torch.Tensor, lengths: list[int], state) -> tuple:
    """Every document alone through the reference: outputs (b, n, ·) with zeros, and (h, c)."""
    weights = dict(cell.named_parameters())
    ends = ("", "_reverse") if cell.bidirectional else ("",)
    rows = []
    for i, length in enumerate(lengths):
        layer_in, hs, cs = x[i, :length, None], [], []
        for layer in range(cell.num_layers):
            outs = []
            for j, end in enumerate(ends):
                name = f"l{layer}{end}"
                bias = weights[f"bias_ih_{name}"] + weights[f"bias_hh_{name}"]
                place = layer * len(ends) + j
                out, h, c = reference(
                    layer_in.flip(0) if j else layer_in,
                    *(part[place, i : i + 1] for part in state),
                    weights[f"weight_ih_{name}"],
                    weights[f"weight_hh_{name}"],
                    bias,
                )
                outs.append(out.flip(0) if j else out)
                hs.append(h)
                cs.append(c)
            layer_in = torch.cat(outs, dim=-1)
        padded = nn.functional.pad(layer_in[:, 0], (0, 0, 0, max(lengths) - length))
        rows.append((padded, torch.stack(hs), torch.stack(cs)))
    out, h, c = zip(*rows, strict=True)
    return torch.stack(out), torch.cat(h, dim=1), torch.cat(c, dim=1)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_and_all_gradients_are_the_reference_s(lengths, both, layers):
    torch.manual_seed(0)
    cell = OutputGatedGRU(
        3, 4, num_layers=layers, batch_first=True, bidirectional=both, dtype=torch.float64
    )
    x = torch.randn(len(lengths), max(lengths), 3, dtype=torch.float64, requires_grad=True)
    shape = (layers * cell.directions, len(lengths), 4)
    state = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    packed = pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=False)
    out, (h, c) = cell(packed, tuple(state))
    found = (pad_packed_sequence(out, batch_first=True)[0], h, c)
    expected = by_hand(cell, x, lengths, state)
    wanted = [x, *state, *cell.parameters()]
    weights = [torch.randn_like(part) for part in expected]
    gradients = [
        torch.autograd.grad([(w * p).sum() for w, p in zip(weights, parts, strict=True)], wanted)
        for parts in (found, expected)
    ]
    for a, b in zip(found + gradients[0], expected + gradients[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradcheck_and_twice_with_plain_kernels():
    torch.manual_seed(1)
    cell = OutputGatedGRU(2, 3, batch_first=True, bidirectional=True, dtype=torch.float64)
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    state = [torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    names, weights = zip(*cell.named_parameters(), strict=True)

    def run(x, h, c, *values):
        named = dict(zip(names, values, strict=True))
        out, (h, c) = torch.func.functional_call(cell, named, (x, (h, c)))
        return out, h, c

    assert torch.autograd.gradcheck(run, (x, *state, *weights))
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradcheck(run, (x, *state, *weights), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, (x, *state, *weights), atol=1e-4)


def test_a_second_derivative_of_the_fused_loop_is_refused():
    cell = OutputGatedGRU(2, 3)
    x = torch.randn(4, 1, 2, requires_grad=True)
    with pytest.raises(NotImplementedError, match="no gradient of the gradient"):
        torch.autograd.grad(cell(x)[0].square().sum(), x, create_graph=True)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_called_and_shaped_like_nn_gru(batch_first, bias):
    options = {"num_layers": 2, "bias": bias, "batch_first": batch_first, "bidirectional": True}
    mine, theirs = OutputGatedGRU(3, 4, **options), nn.GRU(3, 4, **options)
    shapes = [{n: p.shape for n, p in cell.named_parameters()} for cell in (mine, theirs)]
    assert shapes[0] == shapes[1]
    for x in (torch.randn(5, 2, 3), torch.randn(5, 3)):
        out, (h, c) = mine(x)
        expected, last = theirs(x)
        assert (out.shape, h.shape, c.shape) == (expected.shape, last.shape, last.shape)


def test_layouts_agree():
    cell = OutputGatedGRU(3, 4, bidirectional=True)
    first = copy.deepcopy(cell)
    first.batch_first = True
    x = torch.randn(6, 2, 3)
    out, state = cell(x)
    again, same = first(x.transpose(0, 1))
    torch.testing.assert_close(again.transpose(0, 1), out)
    torch.testing.assert_close(same, state)
    alone, _ = cell(x[:, 1])
    torch.testing.assert_close(alone, out[:, 1])


def test_dropout_is_between_layers_and_in_training_alone():
    cell = OutputGatedGRU(3, 4, num_layers=2, dropout=0.5)
    x = torch.randn(6, 2, 3)
    assert not torch.equal(cell(x)[0], cell(x)[0])
    cell.eval()
    assert torch.equal(cell(x)[0], cell(x)[0])


def test_wrong_widths_are_told():
    cell = OutputGatedGRU(3, 4)
    with pytest.raises(RuntimeError, match="width 3, found 2"):
        cell(torch.randn(5, 1, 2))
    with pytest.raises(RuntimeError, match=r"\(1, 2, 4\), found \(1, 1, 4\)"):
        cell(torch.randn(5, 2, 3), (torch.zeros(1, 1, 4), torch.zeros(1, 2, 4)))


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_the_gradients_that_come_in_stay_as_they_are(both):
    cell = OutputGatedGRU(2, 3, bidirectional=both)
    x = torch.randn(4, 2, 2, requires_grad=True)
    out, (h, c) = cell(x)
    given = [torch.randn_like(part) for part in (out, h, c)]
    before = [part.clone() for part in given]
    torch.autograd.grad((out, h, c), [x, *cell.parameters()], given)
    for part, same in zip(given, before, strict=True):
        assert torch.equal(part, same)


def test_two_cells_may_share_the_gradient_of_their_c():
    cells = [OutputGatedGRU(2, 3, dtype=torch.float64) for _ in range(2)]
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    weights = [w for cell in cells for w in cell.parameters()]
    found = []
    for plain in (False, True):
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            c_a, c_b = (cell(x)[1][1] for cell in cells)
        found.append(torch.autograd.grad((c_a + c_b).square().sum(), weights))
    torch.testing.assert_close(*found)


def test_under_autocast_it_is_called_and_typed_like_nn_lstm():
    torch.manual_seed(0)
    options = {"num_layers": 2, "batch_first": True, "bidirectional": True}
    mine, theirs = OutputGatedGRU(3, 4, **options), nn.LSTM(3, 4, **options)
    x = torch.randn(2, 5, 3)
    state = (torch.randn(4, 2, 4), torch.randn(4, 2, 4))
    # torch's own LSTM has a bfloat16 kernel on some processors only, and raises on the others.
    cells = (mine, theirs) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (mine,)
    for given in (None, state, tuple(part.bfloat16() for part in state)):
        for cell in cells:
            with torch.autocast("cpu", torch.bfloat16):
                out, (h, c) = cell(x, given)
            assert [part.dtype for part in (out, h, c)] == [torch.bfloat16] * 3
    packed = pack_padded_sequence(x, torch.tensor([3, 5]), True, enforce_sorted=False)
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = mine(packed)
        alone, _ = mine(x[1])
    assert again.data.dtype == alone.dtype == torch.bfloat16
    torch.testing.assert_close(alone, pad_packed_sequence(again, batch_first=True)[0][1])


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
def test_under_autocast_the_steps_keep_the_weights_precision(plain):
    """Where the product with the inputs is exact in bfloat16, nothing but the result is rounded."""
    torch.manual_seed(0)
    cell = OutputGatedGRU(1, 4)
    with torch.no_grad():
        for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(cell, name).zero_()
    state = tuple(torch.randn(1, 2, 4, requires_grad=True) for _ in range(2))
    wanted, found = [*state, cell.weight_hh_l0], []
    for mixed in (False, True):
        kernels = sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()
        with kernels, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out, (h, c) = cell(torch.zeros(300, 2, 1), state)
        gradients = torch.autograd.grad(out[:50].float().sum() + c.float().sum(), wanted)
        found.append((out, h, c, gradients))
    for exact, rounded in zip(found[0][:3], found[1][:3], strict=True):
        assert torch.equal(exact.bfloat16(), rounded)
    torch.testing.assert_close(found[0][3], found[1][3])


def test_a_step_of_training_under_autocast_is_near_the_exact_one():
    torch.manual_seed(0)
    cell = OutputGatedGRU(3, 8, num_layers=2, bidirectional=True)
    x, found = torch.randn(6, 2, 3), []
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = cell(x)[0].float().square().mean()
        found.append(torch.autograd.grad(loss, list(cell.parameters())))
    assert {g.dtype for g in found[1]} == {torch.float32}
    exact, rounded = (torch.cat([g.flatten() for g in gradients]) for gradients in found)
    assert (exact - rounded).norm() < 0.02 * exact.norm()
