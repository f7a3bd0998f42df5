"""The output-gated GRU: a GRU whose second gate acts on what leaves the cell, fast on a CPU.

    r_t, z_t = σ(W x_t + U h_{t−1} + b)
    ĉ_t = tanh(W x_t + U h_{t−1} + b)
    c_t = (1 − z_t) c_{t−1} + z_t ĉ_t
    h_t = r_t c_t

All three sums read h_{t−1} directly, so a step has one matrix product, and the LSTM's separate c
carries the memory with one gate. :func:`reference` is the same, step by step.

Legend: b documents, n steps, N steps of all documents together, d inputs, H hidden, D directions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from longarc.models.plain_kernels import plain_kernels_wanted

State = tuple[Tensor, Tensor]
"""h and c, each (layers · D, b, H)."""


def reference(
    inputs: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of one layer, as it is written on paper.

    Shapes: ``inputs`` (n, b, d), ``h`` and ``c`` (b, H), ``weight_ih`` (3H, d), ``weight_hh``
    (3H, H), ``bias`` (3H,), in the order r, z, ĉ. Returns h of every step (n, b, H), and the last
    h and c.
    """
    outputs = []
    for x in inputs:
        r, z, candidate = (x @ weight_ih.T + h @ weight_hh.T + bias).chunk(3, dim=-1)
        r, z, candidate = r.sigmoid(), z.sigmoid(), candidate.tanh()
        c = (1 - z) * c + z * candidate
        h = r * c
        outputs.append(h)
    return torch.stack(outputs), h, c


class OutputGatedGRU(nn.Module):
    """A layer, or several, called like ``nn.LSTM``, with the weights of ``nn.GRU``.

    ``weight_ih_l0`` (3H, d), ``weight_hh_l0`` (3H, H), ``bias_ih_l0`` and ``bias_hh_l0`` (3H,) hold
    the output gate r, the update gate z and the candidate, in this order; ``_reverse`` marks the
    second direction, ``l1`` the second layer.

    The products with the inputs are one matrix product for all steps, and so are the gradients of
    the weights; the loop over the steps does the rest in place, forward and back, both directions
    in one. What that reaches against ``nn.GRU``: docs/recurrent.md.

    Args:
        input_size: d.
        hidden_size: H.
        num_layers: the second reads what the first one puts out.
        bias: whether there are b's.
        batch_first: inputs and outputs (b, n, ·) instead of (n, b, ·); states never are.
        dropout: between layers, in training.
        bidirectional: D = 2: outputs are those of both directions, side by side.

    Called with a tensor, (d) in place of (b, d) for a single document, or a ``PackedSequence``, and
    ``(h, c)`` before the first step, zeros by default. Returns the outputs and the last (h, c).
    Second derivatives and forward mode take the plain loop: ``sdpa_kernel(SDPBackend.MATH)`` around
    the call asks for it, as it does of attention.

    Under ``torch.autocast`` outputs and states are in autocast's type, as ``nn.LSTM``'s are, and so
    is the product with the inputs. The steps keep the weights' own precision: a state that every
    step adds to loses in bfloat16 what is small.

    >>> cell = OutputGatedGRU(4, 8, batch_first=True, bidirectional=True)
    >>> outputs, (h, c) = cell(torch.randn(2, 5, 4))
    >>> outputs.shape, c.shape
    (torch.Size([2, 5, 16]), torch.Size([2, 2, 8]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        size = 3 * hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self.directions
            for end in self._ends(layer):
                shapes = {"weight_ih": (size, width), "weight_hh": (size, hidden_size)}
                shapes |= {"bias_ih": (size,), "bias_hh": (size,)} if bias else {}
                for kind, shape in shapes.items():
                    values = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(f"{kind}_{end}", nn.Parameter(values))
        self.reset_parameters()

    @property
    def directions(self) -> int:
        """D."""
        return 2 if self.bidirectional else 1

    def reset_parameters(self) -> None:
        """Uniform in ±1/√H, as torch's recurrent layers start."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """The sizes, and what is not the default."""
        told = f"{self.input_size}, {self.hidden_size}"
        usual = {
            "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
            "bidirectional": False,
        }  # fmt: skip
        found = {name: getattr(self, name) for name in usual}
        return told + "".join(f", {k}={v}" for k, v in found.items() if v != usual[k])

    def forward(self, input: Any, hx: State | None = None) -> tuple[Any, State]:  # noqa: A002
        """Outputs as the input came, and the last (h, c)."""
        if isinstance(input, PackedSequence):
            outputs, state = self._packed(input, hx)
            return input._replace(data=outputs), state
        single = input.ndim == 2
        if single:
            input = input.unsqueeze(1)  # noqa: A001
            hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        elif self.batch_first:
            input = input.transpose(0, 1)  # noqa: A001
        steps, documents = input.shape[:2]
        sizes = torch.full((steps,), documents)
        flat, state = self._packed(PackedSequence(input.reshape(-1, input.shape[2]), sizes), hx)
        outputs = flat.view(steps, documents, -1)
        if single:
            return outputs.squeeze(1), (state[0].squeeze(1), state[1].squeeze(1))
        return outputs.transpose(0, 1) if self.batch_first else outputs, state

    def _packed(self, packed: PackedSequence, hx: State | None) -> tuple[Tensor, State]:
        x, sizes, order, back = packed
        if x.shape[1] != self.input_size:
            raise RuntimeError(f"expected inputs of width {self.input_size}, found {x.shape[1]}")
        steps = _Steps(sizes, x.device)
        expected = (self.num_layers * self.directions, steps.documents, self.hidden_size)
        if hx is None:
            hx = (x.new_zeros(expected), x.new_zeros(expected))
        for given in hx:
            if tuple(given.shape) != expected:
                raise RuntimeError(f"expected states {expected}, found {tuple(given.shape)}")
        if order is not None:
            hx = (hx[0].index_select(1, order), hx[1].index_select(1, order))
        last: list[State] = []
        before = [part.split(self.directions) for part in hx]
        for layer, (h, c) in enumerate(zip(*before, strict=True)):
            if layer and self.dropout:
                x = functional.dropout(x, self.dropout, self.training)
            x, *after = self._layer(x, h, c, steps, layer)
            last.append((after[0], after[1]))
        h, c = (torch.cat(parts) for parts in zip(*last, strict=True))
        if back is not None:
            h, c = h.index_select(1, back), c.index_select(1, back)
        return x, (h, c)

    def _layer(
        self, x: Tensor, h: Tensor, c: Tensor, steps: _Steps, layer: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        products, recurrent = [], []
        for end in self._ends(layer):
            bias = None
            if self.bias:
                bias = getattr(self, f"bias_ih_{end}") + getattr(self, f"bias_hh_{end}")
            products.append(functional.linear(x, getattr(self, f"weight_ih_{end}"), bias))
            recurrent.append(getattr(self, f"weight_hh_{end}"))
        if not torch.is_autocast_enabled(x.device.type):
            return _all_steps(products, recurrent, h, c, steps)
        lower, own = products[0].dtype, recurrent[0].dtype
        with torch.autocast(x.device.type, enabled=False):
            products = [product.to(own) for product in products]
            outputs, h, c = _all_steps(products, recurrent, h.to(own), c.to(own), steps)
            return outputs.to(lower), h.to(lower), c.to(lower)

    def _ends(self, layer: int) -> list[str]:
        return [f"l{layer}" + end for end in ("", "_reverse")[: self.directions]]


class _Steps:
    """Where the steps of b documents lie in N rows: step by step, the longest document first."""

    def __init__(self, sizes: Tensor, device: torch.device):
        self.sizes: list[int] = sizes.tolist()
        self.documents = self.sizes[0]
        self.starts = sizes.cumsum(0) - sizes  # of each step's rows
        step = torch.arange(len(sizes)).repeat_interleave(sizes)
        document = torch.arange(len(step)) - self.starts[step]
        lengths = torch.bincount(document, minlength=self.documents)
        rows_before = torch.cat([torch.tensor([self.documents]), sizes[:-1]])
        # Among b rows of what was before the first step, and then all steps.
        self.before = (torch.arange(len(step)) + self.documents - rows_before[step]).to(device)
        self.last = (self.starts[lengths - 1] + torch.arange(self.documents)).to(device)
        self.mirrored = (self.starts[lengths[document] - 1 - step] + document).to(device)

    def turned(self, rows: Tensor, direction: int) -> Tensor:
        """(N, ·) in the order of a direction's own steps, or back: each document is mirrored."""
        return rows.index_select(0, self.mirrored) if direction else rows


def _all_steps(
    products: list[Tensor], recurrent: list[Tensor], h: Tensor, c: Tensor, steps: _Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer from W x_t + b on, by the kernel that can do what the caller wants."""
    parts = (*products, *recurrent, h, c)
    plain = plain_kernels_wanted() or any(
        forward_ad.unpack_dual(part).tangent is not None for part in parts
    )
    if plain:
        return _loop(products, recurrent, h, c, steps)
    return _Scan.apply(steps, h, c, *products, *recurrent)  # pyright: ignore


def _loop(
    products: list[Tensor], recurrent: list[Tensor], h: Tensor, c: Tensor, steps: _Steps
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``_Scan`` computes, in operations that can be differentiated as often as one likes."""
    outputs, last_h, last_c = [], [], []
    for i, (product, weight) in enumerate(zip(products, recurrent, strict=True)):
        h_now, c_now, hs, cs = h[i], c[i], [], []
        for rows in steps.turned(product, i).split(steps.sizes):
            h_now, c_now = h_now[: len(rows)], c_now[: len(rows)]
            r, z, candidate = (rows + h_now @ weight.T).chunk(3, dim=-1)
            c_now = torch.lerp(c_now, candidate.tanh(), z.sigmoid())
            h_now = r.sigmoid() * c_now
            hs.append(h_now)
            cs.append(c_now)
        states = torch.cat(hs)
        outputs.append(steps.turned(states, i))
        last_h.append(states[steps.last])
        last_c.append(torch.cat(cs)[steps.last])
    return torch.cat(outputs, dim=1), torch.stack(last_h), torch.stack(last_c)


class _Scan(torch.autograd.Function):
    """The loop over the steps of one layer: W x_t + b in, h_t out.

    Each direction goes through its steps in its own order, in the same loop. Backward needs of a
    step its gates and c alone; with them every factor that does not depend on later steps is
    computed for all steps at once, and two products a gate are left to the loop.
    """

    @staticmethod
    def forward(
        ctx: Any, steps: _Steps, h: Tensor, c: Tensor, *parts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: ``h``, ``c`` (D, b, H); ``parts`` D times (N, 3H), then D times (3H, H)."""
        directions, _, hidden = h.shape
        products, recurrent = parts[:directions], parts[directions:]
        gates = products[0].new_empty(len(products[0]), directions, 3 * hidden)
        for i, product in enumerate(products):
            gates[:, i] = steps.turned(product, i)
        hs = gates.new_empty(len(gates), directions, hidden)
        cs = torch.empty_like(hs)
        first_h, first_c = h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous()
        transposed = [weight.T for weight in recurrent]
        sums = [gates[:, i].split(steps.sizes) for i in range(directions)]
        sigmoids = gates[..., : 2 * hidden].split(steps.sizes)
        r, z, candidate = (part.split(steps.sizes) for part in gates.chunk(3, dim=-1))
        h_before, c_before = first_h, first_c
        for t, (h_t, c_t) in enumerate(
            zip(hs.split(steps.sizes), cs.split(steps.sizes), strict=True)
        ):
            size = len(h_t)
            if len(h_before) != size:
                h_before, c_before = h_before[:size], c_before[:size]
            for i, weight in enumerate(transposed):
                sums[i][t].addmm_(h_before[:, i], weight)
            sigmoids[t].sigmoid_()
            candidate[t].tanh_()
            torch.lerp(c_before, candidate[t], z[t], out=c_t)
            torch.mul(r[t], c_t, out=h_t)
            h_before, c_before = h_t, c_t
        ctx.steps = steps
        ctx.save_for_backward(gates, hs, cs, first_h, first_c, *recurrent)
        turned = [steps.turned(hs[:, i], i) for i in range(directions)]
        last = hs[steps.last].transpose(0, 1), cs[steps.last].transpose(0, 1)
        return torch.cat(turned, dim=1), last[0].contiguous(), last[1].contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradients of the states before, of W x_t + b, and of U."""
        if torch.is_grad_enabled():  # PyTorch's once_differentiable would cut the graph in silence
            raise NotImplementedError(
                "the output-gated GRU's fused loop has no gradient of the gradient. Call the model "
                "under torch.nn.attention.sdpa_kernel(SDPBackend.MATH), which takes the plain one."
            )
        outer, last_h, last_c = gradients
        gates, hs, cs, first_h, first_c, *recurrent = ctx.saved_tensors
        steps: _Steps = ctx.steps
        directions, hidden = hs.shape[1:]
        dh = torch.empty_like(hs)
        for i, part in enumerate(outer.chunk(directions, dim=1)):
            dh[:, i] = steps.turned(part, i)
        dh.index_add_(0, steps.last, last_h.transpose(0, 1))
        # A copy even where the order is the same: the loop works in it, and it may be another's.
        dc = last_c.transpose(0, 1).clone(memory_format=torch.contiguous_format)

        r, z, candidate = gates.chunk(3, dim=-1)
        keep = 1 - z
        # ∂h/∂(its sum) for r, ∂c/∂(their sums) for z and ĉ; the loop makes gradients of them.
        slopes = torch.empty_like(gates)
        of_r, of_z, of_candidate = slopes.chunk(3, dim=-1)
        torch.mul(r, 1 - r, out=of_r).mul_(cs)
        before = torch.cat([first_c, cs]).index_select(0, steps.before)
        torch.sub(candidate, before, out=of_z).mul_(z).mul_(keep)
        torch.mul(candidate, candidate, out=of_candidate).neg_().add_(1).mul_(z)

        pairs = slopes[..., hidden:].unflatten(-1, (2, hidden)).split(steps.sizes)
        sums = [slopes[:, i].split(steps.sizes) for i in range(directions)]
        r, keep, of_r, dh = (part.split(steps.sizes) for part in (r, keep, of_r, dh))
        with torch.autocast(gates.device.type, enabled=False):
            for t in reversed(range(len(dh))):
                dh_t = dh[t]
                dc_t = dc[: len(dh_t)]
                if t + 1 < len(dh):
                    for i, weight in enumerate(recurrent):
                        after = sums[i][t + 1]
                        dh_t[: len(after), i].addmm_(after, weight)
                dc_t.addcmul_(dh_t, r[t])
                of_r[t].mul_(dh_t)
                pairs[t].mul_(dc_t.unsqueeze(2))
                dc_t.mul_(keep[t])
            first = [sums[i][0] @ weight for i, weight in enumerate(recurrent)]
            before = torch.cat([first_h, hs]).index_select(0, steps.before)
            weights = [slopes[:, i].T @ before[:, i] for i in range(directions)]
        products = [steps.turned(slopes[:, i], i) for i in range(directions)]
        return None, torch.stack(first), dc.transpose(0, 1), *products, *weights
