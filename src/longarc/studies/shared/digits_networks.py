"""Small networks on scikit-learn's digits, one for each seed, trained side by side.

All weights of a network are a row of one matrix (S, P), S seeds, so that any optimizer of PyTorch
that works weight by weight trains S networks independently.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional

WIDTHS = (64, 32, 32, 32, 10)
"""Inputs, three hidden layers, classes."""

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Digits:
    """Images (S, N, 64) with digits (S, N) to train on, and others to test with, for each seed."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Slope:
    """Losses (S,) and their gradients (S, P), of the training images."""

    loss: Tensor
    gradient: Tensor

    @property
    def squared(self) -> Tensor:
        """‖g‖², (S,)."""
        return self.gradient.square().sum(1)

    @property
    def one_norm(self) -> Tensor:
        """‖g‖₁, (S,)."""
        return self.gradient.abs().sum(1)


def draw_digits(seeds: int, train: int, wrong: float) -> Digits:
    """Draw ``train`` images for each seed; the share ``wrong`` of their labels is random.

    The others, some 1,500, are to test with. Pixels are between 0 and 1, less their mean.
    """
    images, digits = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    images = (images / 16).float()
    images, digits = images - images.mean(0), digits.long()
    drawn = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(digits), generator=generator)
        known, others = order[:train], order[train:]
        labels = digits[known]
        any_label = torch.randint(0, WIDTHS[-1], (train,), generator=generator)
        labels = torch.where(torch.rand(train, generator=generator) < wrong, any_label, labels)
        drawn.append((images[known], labels, images[others], digits[others]))
    return Digits(*(torch.stack(part) for part in zip(*drawn, strict=True)))


def start_weights(seeds: int) -> Tensor:
    """He's normal weights and biases of 0, (S, P)."""
    rows = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(1000 + seed)
        parts = []
        for inputs, outputs in itertools.pairwise(WIDTHS):
            weight = torch.randn(inputs * outputs, generator=generator) * (2 / inputs) ** 0.5
            parts += [weight, torch.zeros(outputs)]
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def logits(weights: Tensor, x: Tensor, activation: Activation = functional.gelu) -> Tensor:
    """Logits (S, N, 10) of images (S, N, 64). GELU, as in BERT, has all derivatives."""
    shapes = list(itertools.pairwise(WIDTHS))
    parts = weights.split([size for i, o in shapes for size in (i * o, o)], dim=1)
    for layer, (inputs, outputs) in enumerate(shapes):
        x = activation(x) if layer else x
        weight = parts[2 * layer].view(-1, inputs, outputs)
        x = torch.baddbmm(parts[2 * layer + 1][:, None], x, weight)
    return x


def losses(weights: Tensor, digits: Digits, activation: Activation = functional.gelu) -> Tensor:
    """Mean cross-entropy of each network on its training images, (S,)."""
    scores = logits(weights, digits.x, activation).transpose(1, 2)
    return functional.cross_entropy(scores, digits.y, reduction="none").mean(1)


def slope_at(weights: Tensor, digits: Digits, activation: Activation = functional.gelu) -> Slope:
    """Losses and gradients at weights (S, P)."""
    at = weights.detach().requires_grad_()
    loss = losses(at, digits, activation)
    (gradient,) = torch.autograd.grad(loss.sum(), at)
    return Slope(loss.detach(), gradient)


def penalised_slope_at(
    weights: Tensor, digits: Digits, penalty: float, activation: Activation = functional.gelu
) -> tuple[Slope, Tensor]:
    """The slope, and the gradient (S, P) of L + λ ‖g‖² by double backward."""
    at = weights.detach().requires_grad_()
    loss = losses(at, digits, activation)
    (gradient,) = torch.autograd.grad(loss.sum(), at, create_graph=True)
    (whole,) = torch.autograd.grad(loss.sum() + penalty * gradient.square().sum(), at)
    return Slope(loss.detach(), gradient.detach()), whole


@torch.no_grad()
def accuracy(weights: Tensor, digits: Digits, noise: float = 0.0, draws: int = 20) -> Tensor:
    """Share (S,) of the test images that are recognised.

    With ``noise`` σ every weight is multiplied by 1 + σ ε, ε normal; the mean of ``draws``.
    """
    if not noise:
        found = logits(weights, digits.test_x).argmax(2) == digits.test_y
        return found.float().mean(1)
    generator = torch.Generator().manual_seed(0)
    shares = [
        accuracy(weights * (1 + noise * torch.randn(weights.shape, generator=generator)), digits)
        for _ in range(draws)
    ]
    return torch.stack(shares).mean(0)
