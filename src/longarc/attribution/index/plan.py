"""Which snapshots of a path stand for which of its steps, and with what weight a step counts.

The exact sweep gives example i of step t the part −κ_t⟨U_t, ∇ℓ_i(θ_t)⟩, where U_t gathers what a
gradient does in its own step and, through the momentum μ, in later ones. Near a checkpoint the
query's gradient and Adam's second moments are taken as constant, so

U_t ≈ e_t s_c ⊙ ∇f(θ_c),   e_t = a Σ_{τ≥t} lr_τ μ^{τ−t} / (1 − β₁^{τ+1}),   s_c = 1/(√v̂_c + ε),

and example i contributes −⟨s_c ⊙ ∇f(θ_c), Jᵢ(θ_c)ᵀ Σ_t e_t κ_t δ_it⟩. The sum is over the steps
that visited it and that c stands for, δ_it is the gradient of the loss with respect to its logits,
which the path has, and Jᵢ the Jacobian of the logits. With a checkpoint a step, no momentum and no
Adam that is TracIn (https://arxiv.org/abs/2002.08484), whatever the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longarc.training.recording.recorded_path import RecordedPath
from longarc.training.recording.replay import Replay


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot and the steps it stands for.

    Attributes:
        step: the snapshot.
        first: first step it stands for.
        after: the step after the last.
        moments: the snapshot with Adam's second moments: the first after its steps. They hold the
            steps' own gradients, without which a step size may be far too large.
        ratios: step sizes of each parameter group over those of the path's leading group.
        decay: of each group, the sum of decoupled weight decay.
        coupled: of each group, of decay that is part of the gradient.
    """

    step: int
    first: int
    after: int
    moments: int
    ratios: tuple[float, ...]
    decay: tuple[float, ...]
    coupled: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """Checkpoints, and e_t of the leading parameter group, (T,)."""

    checkpoints: tuple[Checkpoint, ...]
    rates: np.ndarray


def plan_checkpoints(path: RecordedPath, number: int) -> Plan:
    """Choose snapshots so that each stands for steps of about the same total weight."""
    end = path.kept
    learning = _learning_rates(path, end)  # (T, groups)
    groups = [group["options"] for group in path.about["groups"]]
    rates = np.stack([_reach(learning[:, g], o) for g, o in enumerate(groups)], axis=1)
    leading = int(rates.sum(axis=0).argmax())
    done = np.concatenate([[0.0], np.cumsum(rates[:, leading])])
    if not done[-1]:
        return Plan((), rates[:, leading])
    snapshots = [s for s in path.snapshots if s <= end]
    aims = (np.arange(number) + 0.5) / number * done[-1]
    places = done[snapshots]
    chosen = sorted({snapshots[int(np.abs(places - aim).argmin())] for aim in aims})
    # Its gradients are those at the step's beginning.
    nearest = np.abs(done[:-1, None] - done[chosen]).argmin(axis=1)
    found = []
    for c, step in enumerate(chosen):
        mine = np.flatnonzero(nearest == c)
        if not len(mine):
            continue
        first, after = int(mine[0]), int(mine[-1]) + 1
        sums = rates[first:after].sum(axis=0)
        steps = learning[first:after].sum(axis=0)
        apart = [_decoupled(path, options) for options in groups]
        found.append(
            Checkpoint(
                step=step,
                first=first,
                after=after,
                moments=min((s for s in path.snapshots if s >= after), default=snapshots[-1]),
                ratios=tuple(float(s / sums[leading]) if sums[leading] else 0.0 for s in sums),
                decay=tuple(
                    float(s * o["weight_decay"] * d)
                    for s, o, d in zip(steps, groups, apart, strict=True)
                ),
                coupled=tuple(
                    float(s * o["weight_decay"] * (not d))
                    for s, o, d in zip(sums, groups, apart, strict=True)
                ),
            )
        )
    return Plan(tuple(found), rates[:, leading])


def loss_gradients(
    path: RecordedPath, checkpoint: Checkpoint, rates: np.ndarray, clips: np.ndarray
) -> tuple[np.ndarray, Tensor]:
    """The documents that a checkpoint's steps visited, (n,), and each one's Σ_t e_t κ_t δ_it."""
    documents: list[np.ndarray] = []
    gradients: list[Tensor] = []
    every = path.about["every"]
    for first in range(checkpoint.first, checkpoint.after, every):
        for batches in path.batches(first, min(first + every, checkpoint.after)):
            for batch in batches:
                documents.append(np.array(batch.documents))
                gradients.append(batch.gradient * float(rates[batch.step] * clips[batch.step]))
    unique, place = np.unique(np.concatenate(documents), return_inverse=True)
    together = torch.cat(gradients)
    sums = together.new_zeros(len(unique), *together.shape[1:])
    return unique, sums.index_add_(0, torch.from_numpy(place), together)


def clip_factors(replay: Replay) -> np.ndarray:
    """(T,) what clipping left of the gradient: measured at the snapshots, a line between them."""
    path, end = replay.path, replay.path.kept
    if not replay.max_grad_norm or not end:
        return np.ones(end)
    at = [s for s in path.snapshots if s < end]
    factors = []
    for step in at:
        replay.go_to(step)
        replay.model.zero_grad()
        for batch in path.batches(step, step + 1)[0]:
            replay.backward(batch)
        factors.append(replay.clip())
        replay.model.zero_grad()
    return np.interp(np.arange(end), at, factors)


def step_sizes(path: RecordedPath, checkpoint: Checkpoint) -> dict[str, Tensor] | None:
    """s_c of every trained parameter; None where all are 1 (SGD).

    It is 0 where nothing has flowed yet, such as in the embedding of a word not seen.
    """
    if path.about["optimizer"] == "SGD":
        return None
    tensors = path.snapshot(checkpoint.moments)
    found = {}
    for group in path.about["groups"]:
        options = group["options"]
        key = "max_exp_avg_sq" if options.get("amsgrad") else "exp_avg_sq"
        for name in group["parameters"]:
            square = tensors.get(f"state.{name}.{key}")
            if square is None:
                found[name] = torch.zeros_like(tensors[f"parameter.{name}"])
                continue
            unbiased = square / (1 - options["betas"][1] ** float(tensors[f"state.{name}.step"]))
            size = 1 / (unbiased.sqrt() + options["eps"])
            found[name] = torch.where(square > 0, size, 0.0)
    return found


def _learning_rates(path: RecordedPath, end: int) -> np.ndarray:
    rows = np.zeros((end, len(path.about["groups"])))
    every = path.about["every"]
    for first in range(0, end, every):
        for batches in path.batches(first, min(first + every, end)):
            rows[batches[0].step] = batches[0].learning_rates
    return rows


def _reach(learning: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """e_t (T,): how far one unit of gradient of step t goes, through the momentum too."""
    steps = len(learning)
    if "betas" in options:
        momentum, gain = options["betas"][0], 1 - options["betas"][0]
        learning = learning / (1 - momentum ** np.arange(1, steps + 1))
        nesterov = False
    else:
        momentum, nesterov = options["momentum"], options["nesterov"]
        gain = 1 - options["dampening"] if momentum else 1.0
    reach = np.zeros(steps)
    later = 0.0
    for t in reversed(range(steps)):
        later = learning[t] + momentum * later
        # SGD's first momentum is the gradient itself.
        own = 1.0 if t == 0 and "betas" not in options else gain
        reach[t] = learning[t] + momentum * own * later if nesterov else own * later
    return reach


def _decoupled(path: RecordedPath, options: dict[str, Any]) -> bool:
    adam = path.about["optimizer"] != "SGD"
    return adam and bool(options.get("decoupled_weight_decay"))


def as_checkpoints(rows: Sequence[dict[str, Any]]) -> tuple[Checkpoint, ...]:
    """Checkpoints as JSON has them; what else a row says is left out."""
    found = []
    for row in rows:
        known: dict[str, Any] = {k: row[k] for k in Checkpoint.__dataclass_fields__}
        for name in ("ratios", "decay", "coupled"):
            known[name] = tuple(known[name])
        found.append(Checkpoint(**known))
    return tuple(found)
