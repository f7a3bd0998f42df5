"""The cross-entropies: plain, weighted, adjusted, and one for each label."""

from __future__ import annotations

import math

from textbook.form import Textbook, sigmoid, softmax


def textbook_cross_entropy(z, t, counts, num_examples, options):
    epsilon = options.get("label_smoothing", 0.0)
    p = softmax(z)
    loss = 0.0
    for c in range(len(z)):
        loss -= ((1 - epsilon) * t[c] + epsilon / len(z)) * math.log(p[c])
    return loss, 1.0


def textbook_class_weighted(z, t, counts, num_examples, options):
    raw = [max(n, 1) ** -options.get("power", 1.0) for n in counts]
    mean_over_training_examples = sum(n * w / sum(counts) for n, w in zip(counts, raw, strict=True))
    weights = [w / mean_over_training_examples for w in raw]
    p = softmax(z)
    loss = weight = 0.0
    for c in range(len(z)):
        loss -= weights[c] * t[c] * math.log(p[c])
        weight += weights[c] * t[c]
    return loss, weight


def textbook_logit_adjusted(z, t, counts, num_examples, options):
    seen = [max(n, 1) for n in counts]
    tau = options.get("tau", 1.0)
    # Menon et al., eq. 10, in its margin form: log(1 + Σ_{y'≠y} (π_y'/π_y)^τ e^{z_y' − z_y}).
    loss = 0.0
    for y in range(len(z)):
        others = 0.0
        for c in range(len(z)):
            if c != y:
                others += (seen[c] / seen[y]) ** tau * math.exp(z[c] - z[y])
        loss += t[y] * math.log(1 + others)
    return loss, 1.0


def textbook_binary_cross_entropy(z, t, counts, num_examples, options):
    power = options.get("pos_weight_power", 0.0)
    loss = 0.0
    for c in range(len(z)):
        ratio = max(num_examples - counts[c], 1) / max(counts[c], 1)
        p = sigmoid(z[c])
        loss -= ratio**power * t[c] * math.log(p) + (1 - t[c]) * math.log(1 - p)
    return loss / len(z), 1.0


CROSS_ENTROPIES = {
    "cross-entropy": Textbook(
        single=textbook_cross_entropy, variants=[{}, {"label_smoothing": 0.1}]
    ),
    "class-weighted": Textbook(single=textbook_class_weighted, variants=[{}, {"power": 0.5}]),
    "logit-adjusted": Textbook(single=textbook_logit_adjusted, variants=[{}, {"tau": 0.7}]),
    "binary-cross-entropy": Textbook(
        multi=textbook_binary_cross_entropy, variants=[{}, {"pos_weight_power": 0.5}]
    ),
}
