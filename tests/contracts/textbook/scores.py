"""The re-weighting losses: soft scores, and cross-entropy that looks at p."""

from __future__ import annotations

import math

from textbook.form import Textbook, sigmoid, softmax


def single_soft_accuracy(z, t, counts, num_examples, options):
    p = softmax(z)
    return 1 - sum(t[c] * p[c] for c in range(len(z))), 1.0


def multi_soft_accuracy(z, t, counts, num_examples, options):
    p = [sigmoid(value) for value in z]
    return sum(t[c] + p[c] - 2 * t[c] * p[c] for c in range(len(z))) / len(z), 1.0


def f1_of(p, t, c):
    hits = sum(t[i][c] * p[i][c] for i in range(len(p)))
    return 2 * hits / sum(t[i][c] + p[i][c] for i in range(len(p)))


def soft_f1(probabilities):
    def textbook(z, t, counts, num_examples, options):
        p = [probabilities(row) for row in z]
        present = [c for c in range(len(z[0])) if sum(row[c] for row in t) > 0]
        if not present:
            return [(0.0, 1.0) for _ in z]
        losses = []
        for i in range(len(z)):
            share = 0.0
            for c in present:
                mean = sum(t[j][c] + p[j][c] for j in range(len(z))) / len(z)
                share += 2 * t[i][c] * p[i][c] / mean
            losses.append(1 - share / len(present))
        macro_f1 = sum(f1_of(p, t, c) for c in present) / len(present)
        assert math.isclose(sum(losses) / len(losses), 1 - macro_f1, abs_tol=1e-12)
        return [(loss, 1.0) for loss in losses]

    return textbook


def f1_weighted(probabilities, share_of_a_class):
    def textbook(z, t, counts, num_examples, options):
        p = [probabilities(row) for row in z]
        f1 = [f1_of(p, t, c) for c in range(len(z[0]))]
        pairs = []
        for i in range(len(z)):
            loss = 0.0
            for c in range(len(f1)):
                loss -= t[i][c] * (1 - f1[c] / 2) * math.log(p[i][c])
                loss -= (1 - t[i][c]) * f1[c] / 2 * math.log(1 - p[i][c])
            pairs.append((loss * share_of_a_class(z[i]), 1.0))
        return pairs

    return textbook


def single_truncated(z, t, counts, num_examples, options):
    threshold = options.get("threshold", 0.6)
    p = softmax(z)
    return -sum(t[c] * math.log(p[c]) for c in range(len(z)) if p[c] <= threshold), 1.0


def multi_truncated(z, t, counts, num_examples, options):
    threshold = options.get("threshold", 0.6)
    loss = 0.0
    for c in range(len(z)):
        p = sigmoid(z[c])
        if p <= threshold:
            loss -= t[c] * math.log(p)
        if p >= 1 - threshold:
            loss -= (1 - t[c]) * math.log(1 - p)
    return loss / len(z), 1.0


def single_focal(z, t, counts, num_examples, options):
    gamma = options.get("gamma", 2.0)
    p = softmax(z)
    return -sum(t[c] * (1 - p[c]) ** gamma * math.log(p[c]) for c in range(len(z))), 1.0


def multi_focal(z, t, counts, num_examples, options):
    gamma, alpha = options.get("gamma", 2.0), options.get("alpha")
    positive, negative = (1, 1) if alpha is None else (alpha, 1 - alpha)
    loss = 0.0
    for c in range(len(z)):
        p = sigmoid(z[c])
        loss -= positive * t[c] * (1 - p) ** gamma * math.log(p)
        loss -= negative * (1 - t[c]) * p**gamma * math.log(1 - p)
    return loss / len(z), 1.0


def dice_of(p, t, options):
    form, smooth = options.get("form", "plain"), options.get("smooth", 1.0)
    if form == "self-adjusting":
        p = (1 - p) ** options.get("alpha", 1.0) * p
    if form == "squared":
        return 1 - (2 * p * t + smooth) / (p**2 + t**2 + smooth)
    return 1 - (2 * p * t + smooth) / (p + t + smooth)


def single_dice(z, t, counts, num_examples, options):
    return sum(dice_of(p, y, options) for p, y in zip(softmax(z), t, strict=True)), 1.0


def multi_dice(z, t, counts, num_examples, options):
    losses = [dice_of(sigmoid(value), y, options) for value, y in zip(z, t, strict=True)]
    return sum(losses) / len(z), 1.0


def sigmoids(row):
    return [sigmoid(value) for value in row]


SCORES = {
    "soft-accuracy": Textbook(single=single_soft_accuracy, multi=multi_soft_accuracy, at_worst=0.4),
    "soft-f1": Textbook(
        single=soft_f1(softmax), multi=soft_f1(sigmoids), whole_batch=True, at_worst=0.4
    ),
    "f1-weighted": Textbook(
        single=f1_weighted(softmax, lambda row: 1),
        multi=f1_weighted(sigmoids, lambda row: 1 / len(row)),
        whole_batch=True,
        detached=True,
    ),
    "truncated": Textbook(
        single=single_truncated, multi=multi_truncated, variants=[{}, {"threshold": 0.8}]
    ),
    "focal": Textbook(
        single=single_focal,
        multi=multi_focal,
        variants=[{}, {"gamma": 0.5}, {"gamma": 0}],
        multi_variants=[{"alpha": 0.25}],
    ),
    "dice": Textbook(
        single=single_dice,
        multi=multi_dice,
        variants=[
            {},
            {"form": "squared", "smooth": 0.1},
            {"form": "self-adjusting"},
            {"form": "self-adjusting", "alpha": 0.5, "smooth": 1e-3},
        ],
        at_worst=0.05,
    ),
}
