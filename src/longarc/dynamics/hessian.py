"""Products of a loss's Hessian with vectors; the Hessian itself is never formed.

Legend: N parameters, H the Hessian (N, N) of the loss at the present weights, v a vector (N,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from longarc.dynamics.replay import replayed
from longarc.errors import ModelError
from longarc.options import check_choice

ProductMethod = Literal["auto", "exact", "finite-difference"]

STEP = 3e-6
"""Length of a finite difference's step as a share of ‖θ‖.

For the leading eigenvector of MiniLM's cross-entropy, in float32, products are then within 6e-5 of
the exact ones. The gradient's rounding makes a tenth of that length worse (6e-4), and what the loss
has beyond its second derivative makes 10 times worse (4e-3) and 300 times useless (.87).
"""


class HessianProducts:
    """v ↦ Hv for the loss at the weights as they are; random numbers repeat in every pass.

    Args:
        loss: evaluates the loss, a scalar, at the present weights.
        parameters: what to differentiate by; those that the loss does not use have zeros in Hv.
        method: ``"exact"`` differentiates the gradient once more (the forward pass and the gradient
            are computed once, for all products); ``"finite-difference"`` takes
            (g(θ + εv) − g(θ − εv)) / 2ε, two gradients a product, wherever a first derivative
            exists; ``"auto"`` the first where PyTorch can, else the second. Attention is computed
            by SDPA's math backend for the exact product, since its fused kernels have no second
            derivative.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> product = HessianProducts(lambda: theta[0] ** 2 * theta[1], [theta])
    >>> product(torch.tensor([1.0, 0.0]))
    tensor([4., 2.])
    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        parameters: Sequence[Tensor],
        *,
        method: ProductMethod = "auto",
    ):
        check_choice("method of Hessian products", method, ("auto", "exact", "finite-difference"))
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ModelError("no parameter requires a gradient, so the loss has no Hessian.")
        self.method: ProductMethod = method
        self.count = 0
        self._loss = replayed(loss, self.parameters)
        self._gradient: Tensor | None = None

    @property
    def size(self) -> int:
        """N."""
        return sum(p.numel() for p in self.parameters)

    def __call__(self, vector: Tensor) -> Tensor:
        """Hv (N,) for v (N,), both with the parameters flattened and joined in order."""
        self.count += 1
        if self.method == "finite-difference":
            return self._difference(vector)
        try:
            product = self._second(vector)
        except (RuntimeError, NotImplementedError) as error:
            if self.method == "exact" or isinstance(error, torch.OutOfMemoryError):
                raise
            self.method, self._gradient = "finite-difference", None
            return self._difference(vector)
        self.method = "exact"
        return product

    def _differentiate(self, *, create_graph: bool = False) -> Tensor:
        """G (N,)."""
        loss = self._loss()
        # That requires a gradient too, so that an operation without a second one shows.
        one = torch.ones_like(loss, requires_grad=create_graph)
        return flat(
            torch.autograd.grad(
                loss,
                self.parameters,
                grad_outputs=one,
                create_graph=create_graph,
                allow_unused=True,
                materialize_grads=True,
            )
        )

    def _second(self, vector: Tensor) -> Tensor:
        if self._gradient is None:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                gradient = self._differentiate(create_graph=True)
            refuse_cut(gradient)
            self._gradient = gradient
        products = torch.autograd.grad(
            self._gradient,
            self.parameters,
            grad_outputs=vector,
            retain_graph=True,
            allow_unused=True,
        )
        filled = [
            torch.zeros_like(p) if product is None else product
            for p, product in zip(self.parameters, products, strict=True)
        ]
        return flat(filled).detach()

    @torch.no_grad()
    def _difference(self, vector: Tensor) -> Tensor:
        weights = [p.clone() for p in self.parameters]
        length = float(vector.norm())
        if not length:
            return torch.zeros_like(vector)
        epsilon = STEP * max(float(flat(weights).norm()), 1.0) / length
        ends = []
        try:
            for sign in (1, -1):
                move(self.parameters, weights, vector, sign * epsilon)
                with torch.enable_grad():
                    ends.append(self._differentiate())
        finally:
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)
        return (ends[0] - ends[1]) / (2 * epsilon)


def refuse_cut(gradient: Tensor) -> None:
    """Raise NotImplementedError if a part of the gradient's graph is missing.

    The gradient must be of a loss times a number that requires a gradient. An operation that can be
    differentiated once leaves an error in the graph, which PyTorch raises when it is passed. On the
    way to weights that lie on the other side of it nothing passes: what they get through that
    operation would be left out without a word.

    >>> x = torch.ones(1, requires_grad=True)
    >>> one = torch.ones(1, requires_grad=True)
    >>> refuse_cut(torch.autograd.grad(x**3, x, grad_outputs=one, create_graph=True)[0])
    """
    waiting, seen = [gradient.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise NotImplementedError(
                "a part of the model has no second derivative. Use method='finite-difference'."
            )
        waiting += [of for of, _ in node.next_functions]


def flat(parts: Sequence[Tensor]) -> Tensor:
    """The tensors as one vector (N,)."""
    return torch.cat([part.reshape(-1) for part in parts])


def move(
    parameters: Sequence[Tensor], weights: Sequence[Tensor], vector: Tensor, by: float
) -> None:
    """Set the parameters to ``weights`` + by · ``vector`` (N,)."""
    start = 0
    for parameter, weight in zip(parameters, weights, strict=True):
        part = vector[start : start + weight.numel()].view_as(weight)
        torch.add(weight, part, alpha=by, out=parameter.data)
        start += weight.numel()
