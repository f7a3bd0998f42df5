"""Sharpness: the largest eigenvalue of the loss's Hessian, or what bounds a step along a direction.

Gradient descent on a quadratic is stable below γ = 2 / λ_max; above it, the component along that
eigenvector grows from step to step. Legend: N parameters, λ an eigenvalue of the Hessian (N, N).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from longarc.dynamics.critical_rate import critical_learning_rate
from longarc.dynamics.hessian import HessianProducts
from longarc.dynamics.replay import buffers_kept, replayed
from longarc.errors import ModelError
from longarc.options import check_choice

EigenvalueMethod = Literal["lanczos", "power"]

BASIS = 16
"""Vectors (N,) that Lanczos keeps before it starts anew from the best combination of them."""


@dataclass(frozen=True)
class Eigenvalue:
    """An eigenvalue with its vector; one of the Hessian's is within ``residual`` of it."""

    value: float
    vector: Tensor
    """(N,), of length 1."""
    residual: float
    """‖Hv − λv‖."""
    products: int
    """Hessian-vector products that it took."""


def sharpness(
    model: nn.Module,
    batch: dict[str, Any],
    *,
    loss: Callable[[nn.Module, dict[str, Any]], Tensor] | None = None,
    method: Literal["lanczos", "power", "critical"] = "lanczos",
) -> float:
    """How sharply the loss of a batch curves at the model's weights.

    The model stays in the mode that it is in; in training mode dropout repeats its masks. Weights
    and random state are as before afterwards. Weights that require no gradient do not count.

    Args:
        model: any module.
        batch: what ``loss`` takes; by default the model's keyword arguments, labels included.
        loss: (model, batch) → scalar; by default the model's own, ``model(**batch).loss``.
        method: ``"lanczos"`` and ``"power"`` for λ_max, see :func:`largest_eigenvalue`;
            ``"critical"`` for 2 / γ_c along the gradient, at the cost of a gradient and 5 or 6
            forward passes (:func:`~longarc.dynamics.critical_rate.critical_learning_rate`). For a
            quadratic it is gᵀHg / ‖g‖², never more than λ_max.

    Raises:
        ModelError: no weight requires a gradient, there is no loss, or its derivatives are not
            numbers.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> square = lambda model, batch: 3 * model(batch["x"]).square().sum()
    >>> round(sharpness(model, {"x": torch.ones(2, 1)}, loss=square), 4)
    12.0
    """
    check_choice("method of sharpness", method, ("lanczos", "power", "critical"))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def evaluate() -> Tensor:
        found = model(**batch).loss if loss is None else loss(model, batch)
        if found is None:
            raise ModelError(
                f"{type(model).__name__} gave no loss for this batch. Put labels into the batch "
                "of a model that computes its own, or pass loss=…, a function of (model, batch)."
            )
        return found

    with buffers_kept(model):
        products = HessianProducts(evaluate, parameters)
        if method != "critical":
            return largest_eigenvalue(products, method=method).value
        with torch.enable_grad():
            value = replayed(evaluate, parameters)()
            gradient = torch.autograd.grad(
                value, parameters, allow_unused=True, materialize_grads=True
            )
        squared = float(sum(part.double().square().sum() for part in gradient))
        if not squared:
            return 0.0
        if not math.isfinite(squared):
            raise ModelError(
                f"the gradient's squared norm is {squared}, so there is no direction to measure "
                f"along. The loss is {float(value.detach())}: look for what made it so."
            )
        # Where a line would reach a loss of 0, or for a negative loss its opposite.
        guess = max(abs(float(value.detach())), 1e-6) / squared
        return critical_learning_rate(evaluate, parameters, gradient, guess=guess).sharpness


def largest_eigenvalue(
    products: HessianProducts,
    *,
    method: EigenvalueMethod = "lanczos",
    tolerance: float = 1e-3,
    max_products: int = 200,
    seed: int = 0,
) -> Eigenvalue:
    """λ_max, the algebraically largest eigenvalue of the Hessian.

    Lanczos keeps up to 16 orthogonal vectors and starts anew from the best combination of them; it
    takes several times fewer products than power iteration, which needs memory for two vectors. A
    power iteration that ends at a negative eigenvalue is repeated on the Hessian shifted by it.

    Args:
        products: of the loss, see :class:`~longarc.dynamics.hessian.HessianProducts`.
        method: ``"lanczos"`` or ``"power"``.
        tolerance: stop at a residual of this share of the eigenvalue.
        max_products: stop after as many; ``residual`` says how near it came.
        seed: of the random start.

    >>> theta = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    >>> spectrum = torch.tensor([5.0, -9.0, 1.0])
    >>> products = HessianProducts(lambda: (spectrum * theta**2).sum() / 2, [theta])
    >>> found = largest_eigenvalue(products)
    >>> round(found.value, 4), found.vector.abs().round(decimals=3)
    (5.0, tensor([1., 0., 0.]))
    """
    check_choice("method of largest_eigenvalue", method, ("lanczos", "power"))
    like = products.parameters[0]
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(products.size, generator=generator).to(like.device, like.dtype)
    before = products.count
    iterate = _lanczos if method == "lanczos" else _power
    value, vector, residual = iterate(products, start / start.norm(), tolerance, max_products)
    return Eigenvalue(value, vector, residual, products.count - before)


def _lanczos(
    products: HessianProducts, vector: Tensor, tolerance: float, max_products: int
) -> tuple[float, Tensor, float]:
    last = products.count + max_products
    while True:
        basis, diagonal, beside = [vector], [], []
        while True:
            image = _finite(products(basis[-1]))
            diagonal.append(float(basis[-1] @ image))
            for _ in range(2):  # rounding leaves something after the first
                for other in basis:
                    image -= (other @ image) * other
            beside.append(float(image.norm()))
            values, vectors = np.linalg.eigh(
                np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
            )
            residual = beside[-1] * abs(float(vectors[-1, -1]))
            # Nothing but rounding is left of a Krylov space that is exhausted.
            ended = residual <= tolerance * abs(values[-1]) or products.count >= last
            if ended or len(basis) == BASIS:
                break
            basis.append(image / beside[-1])
        vector = sum(float(c) * v for c, v in zip(vectors[:, -1], basis, strict=True))  # pyright: ignore[reportAssignmentType]
        vector = vector / vector.norm()
        if ended:
            return float(values[-1]), vector, residual


def _finite(image: Tensor) -> Tensor:
    if not bool(image.isfinite().all()):
        raise ModelError(
            "the loss's second derivatives are not all numbers at these weights, so no eigenvalue "
            "can be found. Is the loss finite? In 16 bits, measure in float32."
        )
    return image


def _power(
    products: HessianProducts, vector: Tensor, tolerance: float, max_products: int
) -> tuple[float, Tensor, float]:
    last, shift, start = products.count + max_products, 0.0, vector
    while True:
        image = _finite(products(vector))
        value = float(vector @ image)
        residual = float((image - value * vector).norm())
        small = residual <= tolerance * abs(value)
        if products.count >= last or (small and (value >= 0 or shift)):
            return value, vector, residual
        if small:  # the largest in size is negative: move all of them up
            shift, vector = -value, start
            continue
        image += shift * vector
        vector = image / image.norm()
