"""Margins and priors: weights by effective number, margins by class, ZLPR and its prior, ASL."""

from __future__ import annotations

import math

from textbook.form import Textbook, sigmoid, softmax


def class_balanced_weights(counts, beta):
    raw = [(1 - beta) / (1 - beta ** max(n, 1)) for n in counts]
    mean_over_training_examples = sum(n * w / sum(counts) for n, w in zip(counts, raw, strict=True))
    return [w / mean_over_training_examples for w in raw]


def textbook_class_balanced(z, t, counts, num_examples, options):
    weights = class_balanced_weights(counts, options.get("beta", 0.999))
    p = softmax(z)
    loss = weight = 0.0
    for c in range(len(z)):
        loss -= weights[c] * t[c] * math.log(p[c])
        weight += weights[c] * t[c]
    return loss, weight


def textbook_ldam(z, t, counts, num_examples, options):
    seen = [max(n, 1) for n in counts]
    scale = options.get("scale", 1.0)
    # Cao et al.: Δ_j = K / n_j^¼, with K such that the largest is max_margin.
    k = options.get("max_margin", 0.5) / max(n**-0.25 for n in seen)
    weights = [1.0] * len(z)
    if options.get("reweight_after") == 0.0:
        weights = class_balanced_weights(counts, options.get("beta", 0.9999))
    loss = weight = 0.0
    for y in range(len(z)):
        true = math.exp(scale * (z[y] - k / seen[y] ** 0.25))
        others = sum(math.exp(scale * z[c]) for c in range(len(z)) if c != y)
        loss -= weights[y] * t[y] * math.log(true / (true + others))
        weight += weights[y] * t[y]
    return loss, weight


def textbook_radius_margin(z, t, counts, num_examples, options):
    """With class vectors of unit norm."""
    seen = [max(n, 1) for n in counts]
    loss = 0.0
    for y in range(len(z)):
        radius = -options.get("tau", 1.0) / 2 * math.log(seen[y] / sum(seen))
        true = math.exp(z[y] - radius)
        others = sum(math.exp(z[c] + radius) for c in range(len(z)) if c != y)
        loss -= t[y] * math.log(true / (true + others))
    return loss, 1.0


def textbook_multilabel_softmax(z, t, counts, num_examples, options):
    absent = present = 1.0
    for c in range(len(z)):
        odds = max(counts[c], 1) / max(num_examples - counts[c], 1)
        s = z[c] + options.get("tau", 0.0) * math.log(odds)
        absent += (1 - t[c]) * math.exp(s)
        present += t[c] * math.exp(-s)
    return math.log(absent) + math.log(present), 1.0


def textbook_asymmetric(z, t, counts, num_examples, options):
    positive = options.get("gamma_positive", 1.0)
    negative = options.get("gamma_negative", 4.0)
    loss = 0.0
    for c in range(len(z)):
        p = sigmoid(z[c])
        shifted = max(p - options.get("margin", 0.05), 0.0)
        loss -= t[c] * (1 - p) ** positive * math.log(p)
        loss -= (1 - t[c]) * shifted**negative * math.log(1 - shifted)
    return loss / len(z), 1.0


MARGINS = {
    "class-balanced": Textbook(single=textbook_class_balanced, variants=[{}, {"beta": 0.9}]),
    "ldam": Textbook(
        single=textbook_ldam,
        variants=[{}, {"max_margin": 1.0, "scale": 3.0}, {"reweight_after": 0.0, "beta": 0.99}],
    ),
    "radius-margin": Textbook(single=textbook_radius_margin, variants=[{}, {"tau": 0.5}]),
    "multilabel-softmax": Textbook(
        multi=textbook_multilabel_softmax, variants=[{}, {"tau": 1.0}]
    ),
    "asymmetric": Textbook(
        multi=textbook_asymmetric,
        variants=[{}, {"gamma_positive": 0.0, "gamma_negative": 0.5, "margin": 0.0},
                  {"gamma_positive": 0.5, "gamma_negative": 0.5, "margin": 0.2}],
    ),
}  # fmt: skip
