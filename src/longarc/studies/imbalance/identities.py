"""What each loss's gradient weight is by its formula, against automatic differentiation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longarc.objectives.losses.registry import LOSSES, build_loss
from longarc.studies.imbalance.rare_class import (
    GRID,
    NUM_EXAMPLES,
    RARE,
    P,
    Y,
    build_for_rare_class,
    rare_class_weights,
)
from longarc.studies.study import Finding

TOLERANCE = 1e-9
_GRID = f"{len(GRID)} probabilities with the class and {len(GRID)} without"
_TOLERANCE = f"counts as equal below {TOLERANCE:g}"

#: Seven classes with a long tail, for what two classes cannot tell apart.
_COUNTS = [500, 200, 100, 50, 20, 5, 1]


def identities() -> list[Finding]:
    """Check every identity that the study claims."""
    return [
        *_weight_of_one(),
        _soft_accuracy(),
        *_f1(),
        *_truncated_and_focal(),
        _dice(),
        *_class_weights(),
        *_margins(),
        *_multi_label(),
    ]


def equal(claim: str, what: str, pairs: Iterable[tuple[Tensor, Tensor]]) -> Finding:
    """Return the finding that measured and expected values are the same, pair by pair.

    >>> equal("One is one", "one number", [(torch.ones(1), torch.ones(1))]).holds
    True
    """
    largest = max(float((measured - expected).abs().max()) for measured, expected in pairs)
    how = f"Largest difference, {what}; {_TOLERANCE}."
    return Finding(claim, "no difference", largest, largest < TOLERANCE, how)


def _weights(name: str, multi_label: bool, **options: Any) -> tuple[Tensor, Tensor]:
    return rare_class_weights(build_for_rare_class(name, multi_label=multi_label, **options))


def _kinds(name: str) -> list[bool]:
    return [
        k for k in (False, True) if (LOSSES[name].multi_label if k else LOSSES[name].single_label)
    ]


def _against(
    name: str, present: Tensor, absent: Tensor, kinds: list[bool] | None = None, **options: Any
) -> list[tuple[Tensor, Tensor]]:
    """Measured and expected weights, with the class and without, for each kind of labels."""
    pairs = []
    for multi_label in _kinds(name) if kinds is None else kinds:
        found = _weights(name, multi_label, **options)
        pairs += zip(found, (present, absent), strict=True)
    return pairs


def _weight_of_one() -> list[Finding]:
    one = torch.ones_like(GRID)
    names = ("cross-entropy", "binary-cross-entropy")
    pairs = [pair for name in names for pair in _against(name, one, one)]
    return [equal("Cross-entropy, of two classes or of one label, has the weight 1.", _GRID, pairs)]


def _soft_accuracy() -> Finding:
    claim = (
        "Soft accuracy’s gradient is ∂L/∂z = (1 − 2y) p (1 − p), so its weight is the probability "
        "of the true class: it vanishes where the model is most wrong."
    )
    raw = []
    for multi_label in (False, True):
        present, absent = _weights("soft-accuracy", multi_label)
        raw += [(present * (GRID - 1), -GRID * (1 - GRID)), (absent * GRID, GRID * (1 - GRID))]
    return equal(claim, _GRID, [*raw, *_against("soft-accuracy", GRID, 1 - GRID)])


def _f1() -> list[Finding]:
    # By summing over the batch; the class's probability is 1 − p for the other class.
    points = list(zip(P.tolist(), Y.tolist(), strict=True))
    size = sum(y + p for p, y in points)
    f1 = 2 * sum(y * p for p, y in points) / size
    other = 2 * sum((1 - y) * (1 - p) for p, y in points) / sum(2 - y - p for p, y in points)
    one = torch.ones_like(GRID)
    shift = (other - f1) / 2
    factor = 2 * len(points) / size
    return [
        equal(
            "F1-weighted cross-entropy of one label has the weight 1 − F/2 with the label and F/2 "
            f"without, F its soft F1 in the batch (here {f1:.4f}).",
            _GRID,
            _against("f1-weighted", one * (1 - f1 / 2), one * f1 / 2, [True]),
        ),
        equal(
            "Of two classes both have such a term, and the weights are 1 + (F₀ − F₁)/2 with the "
            f"class and 1 − (F₀ − F₁)/2 without (here F₀ = {other:.4f}).",
            _GRID,
            _against("f1-weighted", one * (1 + shift), one * (1 - shift), [False]),
        ),
        equal(
            "Soft F1 of one label has F1-weighted cross-entropy’s weight times the probability of "
            "the true answer, times 2n / Σ(y + p), the same for all n examples of the batch.",
            _GRID,
            _against(
                "soft-f1",
                factor * (1 - f1 / 2) * GRID,
                factor * f1 / 2 * (1 - GRID),
                [True],
            ),
        ),
    ]


def _truncated_and_focal() -> list[Finding]:
    threshold = 0.6
    cut = []
    for found, true in zip(
        _against("truncated", GRID, 1 - GRID, threshold=threshold),
        [GRID, 1 - GRID] * 2,
        strict=True,
    ):
        inside = (true - threshold).abs() > 1e-6  # at the threshold itself rounding decides
        cut.append((found[0][inside], (true < threshold).double()[inside]))
    one = torch.ones_like(GRID)
    gammas = (0.5, 1.0, 2.0, 5.0)
    focal = [
        pair
        for gamma in gammas
        for pair in _against(
            "focal", _focal_weight(GRID, gamma), _focal_weight(1 - GRID, gamma), gamma=gamma
        )
    ]
    return [
        equal(
            "Truncated cross-entropy has the weight 1 while the true class’s probability is below "
            "the threshold, and 0 above.",
            f"{_GRID}, threshold {threshold:g}, which itself is left out",
            cut,
        ),
        equal(
            "Focal loss with γ = 0 has the weight 1.", _GRID, _against("focal", one, one, gamma=0)
        ),
        equal(
            "Focal loss has the weight (1 − q)^γ − γ q (1 − q)^(γ−1) log q, q the probability of "
            "the true class.",
            f"{_GRID}, γ = {', '.join(f'{g:g}' for g in gammas)}",
            focal,
        ),
    ]


def _focal_weight(q: Tensor, gamma: float) -> Tensor:
    return (1 - q) ** gamma - gamma * q * (1 - q) ** (gamma - 1) * q.log()


def _dice() -> Finding:
    e = 1.0
    present = GRID * (2 + e) / (1 + GRID + e) ** 2
    absent = (1 - GRID) * e / (GRID + e) ** 2
    return equal(
        "Dice loss of one label has the weight p (2 + ε) / (1 + p + ε)² with the label and "
        "(1 − p) ε / (p + ε)² without: it too vanishes where the model is most wrong.",
        f"{_GRID}, ε = 1",
        _against("dice", present, absent, [True]),
    )


def _class_weights() -> list[Finding]:
    counts = [NUM_EXAMPLES - RARE, RARE]
    one = torch.ones_like(GRID)
    others, rare = (NUM_EXAMPLES / (2 * n) for n in counts)
    beta = 0.999
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    mean = sum(n * w for n, w in zip(counts, raw, strict=True)) / NUM_EXAMPLES
    balanced = [w / mean for w in raw]
    return [
        equal(
            f"Class weights are constants of the counts: N / (2 n_c), here {rare:.3g} for the rare "
            f"class and {others:.3g} for the other.",
            _GRID,
            _against("class-weighted", rare * one, others * one),
        ),
        equal(
            f"So are class-balanced weights, (1 − β) / (1 − β^n_c) scaled to a mean of 1: here "
            f"{balanced[1]:.3g} and {balanced[0]:.3g}.",
            f"{_GRID}, β = {beta:g}",
            _against("class-balanced", balanced[1] * one, balanced[0] * one, beta=beta),
        ),
        equal(
            "So is binary cross-entropy’s weight of the positives, (N − n) / n; negatives have 1.",
            f"{_GRID}, pos_weight_power 1",
            _against(
                "binary-cross-entropy", (NUM_EXAMPLES / RARE - 1) * one, one, pos_weight_power=1
            ),
        ),
    ]


def _margins() -> list[Finding]:
    generator = torch.Generator().manual_seed(0)
    shape = (70, len(_COUNTS))
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    y = torch.arange(shape[0]) % shape[1]
    true = F.one_hot(y, shape[1]).double()
    total = sum(_COUNTS)
    m = torch.tensor([-math.log(n / total) for n in _COUNTS], dtype=torch.float64)
    delta = torch.tensor([0.5 * (min(_COUNTS) / n) ** 0.25 for n in _COUNTS], dtype=torch.float64)

    def ours(name: str) -> tuple[Tensor, Tensor]:
        loss = build_loss(name, class_counts=_COUNTS)
        return _with_gradient(lambda z: loss(z, y, reduction="none"), logits)

    def theirs(margin: Tensor) -> tuple[Tensor, Tensor]:
        """log(1 + Σ_{i≠y} e^{z_i − z_y + margin_yi}), margin (b, C)."""

        def losses(z: Tensor) -> Tensor:
            apart = z - z.gather(1, y[:, None]) + margin
            return torch.log1p(torch.where(true > 0, 0, apart.exp()).sum(dim=1))

        return _with_gradient(losses, logits)

    what = f"losses and gradients of {shape[0]} random rows of {shape[1]} classes"
    radius, adjusted, ldam = (ours(n) for n in ("radius-margin", "logit-adjusted", "ldam"))
    own, pairwise = m[y][:, None].expand(shape), m[y][:, None] - m
    gap, most = radius[0] - adjusted[0], torch.where(true > 0, 0, m).amax(dim=1)
    between = bool(((gap > 0) & (gap < most)).all())
    return [
        equal(
            "Radius margin with class vectors of norm 1 is cross-entropy with the margin "
            "m_y = −τ log π_y on the true logit, whatever the rival.",
            what,
            zip(radius, theirs(own), strict=True),
        ),
        equal(
            "Logit adjustment is cross-entropy with the margin m_y − m_i between the true class y "
            "and a rival i: negative where the rival is the rarer.",
            what,
            zip(adjusted, theirs(pairwise), strict=True),
        ),
        Finding(
            "So the two are not the same loss: radius margin’s is the larger, by less than the "
            "largest margin of a rival.",
            "every difference between 0 and that margin",
            f"{float(gap.min()):.3g} to {float(gap.max()):.3g} nats, mean {float(gap.mean()):.3g}",
            between,
            f"Radius margin less logit adjustment, {shape[0]} random rows of {shape[1]} classes.",
        ),
        equal(
            "LDAM is cross-entropy with the margin Δ_y = ½ (n_min / n_y)^¼ on the true logit.",
            what,
            zip(ldam, theirs(delta[y][:, None].expand(shape)), strict=True),
        ),
    ]


def _with_gradient(losses: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    z = logits.clone().requires_grad_()
    values = losses(z)
    (gradient,) = torch.autograd.grad(values.sum(), z)
    return values.detach(), gradient


def _multi_label() -> list[Finding]:
    one = torch.ones_like(GRID)
    gamma, margin = 4.0, 0.05
    kept = (GRID - margin).clamp(min=0)
    absent = (1 - GRID) * (
        kept**gamma / (1 - kept) - gamma * kept ** (gamma - 1) * torch.log1p(-kept)
    )
    return [
        equal(
            "Multi-label softmax of a single label is binary cross-entropy: the weight is 1.",
            _GRID,
            _against("multilabel-softmax", one, one),
        ),
        equal(
            "Asymmetric loss has focal loss’s weight (γ = 1) with the label; without it nothing "
            "below p = m, and (1 − p) [ r^γ / (1 − r) − γ r^(γ−1) log(1 − r) ], r = p − m, above.",
            f"{_GRID}, γ⁺ = 1, γ⁻ = {gamma:g}, m = {margin:g}",
            _against("asymmetric", _focal_weight(GRID, 1.0), absent),
        ),
    ]
