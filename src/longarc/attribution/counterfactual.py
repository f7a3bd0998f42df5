"""What the model would say had an example not been in its training, to first order.

Contributions (:mod:`longarc.attribution.sweep`) add up to the number; they hold every other
example's pushes as they were. Here the others may react: the recorded training is differentiated,
update by update from the last to the first, so that the derivative of the final value with respect
to each example's weight in the loss comes out. With the update m' = μm + a(κG + λθ),
θ' = θ − s ⊙ m' − cθ, G = Σ_i w_i ∇ℓ_i(θ), and a bar for the derivative of the final value,

m̄' += −s ⊙ θ̄',  Ḡ = κ a m̄',  w̄_i += ⟨Ḡ, ∇ℓ_i(θ)⟩,  m̄ = μ m̄',  θ̄ = (1 − c) θ̄' + λ a m̄' + H Ḡ,

with H the Hessian of the batch's loss, which is where the reaction is; Adam's second moments and
the clip factor are differentiated as well. For stochastic gradient descent this is the influence of
Hara and others 2019 (arXiv 1906.08473), for Adam that of MAGIC (arXiv 2504.16430). It is a
derivative at the training as it was: where leaving an example out changes much, it is off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from longarc.attribution.products import adds_up, alike, by_layers, by_passes
from longarc.attribution.quadrature import dots
from longarc.attribution.query import Query
from longarc.attribution.query_gradients import QueryGradients
from longarc.attribution.tape import taped
from longarc.attribution.update import Update
from longarc.dynamics.hessian import refuse_cut
from longarc.errors import ModelError, OptionError
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.training.recording.recorded_path import RecordedBatch, RecordedPath
from longarc.training.recording.replay import LABELS, Replay, width


def effects(
    path: RecordedPath,
    model: nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    queries: Sequence[Query],
    *,
    loss: Loss | None = None,
    end: int | None = None,
    advance: Callable[[float], Any] | None = None,
) -> np.ndarray:
    """Say how far each query's value would fall without each training example, (Q, N).

    They do not add up to anything, and need not agree with the contributions even in sign. The
    training is replayed; then each step goes back once with a Hessian product for each query, which
    takes longer than the step itself. Memory is about five times the parameters for each query.

    Args:
        path: what a :class:`~longarc.PathRecorder` recorded.
        model: of the architecture that was trained; its weights do not matter.
        dataset: the training set, in the order it had, with its labels.
        collate: makes a batch of its items, as in training.
        queries: the values to ask about; they share the replay.
        loss: of the training; None for cross-entropy. It is copied, to the model's device.
        end: the step to ask about; None for that whose weights the training handed over.
        advance: is called with 1 after each step of the way back.

    Raises:
        OptionError: no query; a loss that is not the training's, or has running statistics; no
            labels; AMSGrad.
        DataError, ModelError: a training set or a model that does not fit the path.
        ModelError: a layer whose gradient cannot be differentiated; dropout in attention that runs
            on another kernel than torch's plain one.

    Example: ``docs/explanations.md``.
    """
    if not queries:
        raise OptionError("there is nothing to ask about: expected one query or more.")
    with Replay(path, model, dataset, collate) as replay:
        back = _Back(replay, queries, loss or CrossEntropyLoss(), advance)
        return back.run(path.kept if end is None else end)


class _Back:
    """Goes back over the training with the derivatives of all queries."""

    def __init__(
        self,
        replay: Replay,
        queries: Sequence[Query],
        loss: Loss,
        advance: Callable[[float], Any] | None,
    ):
        self.replay, self.advance = replay, advance
        self.loss = copy.deepcopy(loss).to(replay.device)
        self.model, self.path, self.all = replay.model, replay.path, replay.parameters
        self.asking = QueryGradients(replay.model, queries, replay.parameters)
        self.number = len(queries)
        self.layers_serve = self.batched = True
        self.autocast = bool(self.path.about["autocast"])
        if any(group["options"].get("amsgrad") for group in self.path.about["groups"]):
            raise OptionError("effects are not known for AMSGrad. Expected Adam, AdamW or SGD.")
        if loss.remembers:
            raise OptionError(
                f"effects take the loss of a step again, and {type(loss).__name__} remembers the "
                "batches before it (running statistics), which the path does not have. Ask for "
                "contributions instead (method exact or indexed), or train with statistics=batch."
            )

    def run(self, end: int) -> np.ndarray:
        found = np.zeros((self.number, self.path.about["documents"]))
        segments = self.path.segments(end)
        self.found = found
        if segments:
            first, after = segments[-1]
            self.replay.go_to(first)
            recorded = self.path.batches(first, after)
            self._check_curvature(self._longest(segments))
            self._loss_of(recorded[0][0])  # compares it with the record
            for batches in recorded:
                self.replay.step(batches)
            self._open()
        for first, after in reversed(segments):
            self._segment(first, after)
        return found[np.argsort(self.asking.order)]

    def _open(self) -> None:
        """θ̄ at the end is the query's gradient; nothing has reached the moments yet."""

        def nothing() -> dict[str, Tensor]:
            return {n: p.new_zeros(self.number, *p.shape) for n, p in self.all.items()}

        self.weights, self.first, self.second = nothing(), nothing(), nothing()
        for group in self.asking.groups:
            for name, each in self.asking.gradients(group).items():
                self.weights[name][group.start : group.stop] = self.asking.whole(name, each)

    def _segment(self, first: int, after: int) -> None:
        with taped(self.replay, first, after) as (tape, recorded):
            for i in reversed(range(len(recorded))):
                start, after_it = tape.state(i), tape.state(i + 1)
                with torch.no_grad():
                    for name, value in tape.views(start).items():
                        self.all[name].copy_(value)
                steps = tape.views(after_it - start)
                self._step_back(recorded[i], tape.updates[i], tape.clips[i], steps)
                if self.advance is not None:
                    self.advance(1)

    def _longest(self, segments: list[tuple[int, int]]) -> RecordedBatch:
        """The batch of the longest documents: kernels that gather tokens do so in these alone."""
        every = (self.path.batches(*segment) for segment in segments)
        batches = (batch for updates in every for update in updates for batch in update)
        return max(batches, key=lambda batch: width(batch.inputs))

    def _check_curvature(self, batch: RecordedBatch) -> None:
        """Raise ModelError where the training cannot be differentiated twice."""
        with torch.no_grad():
            logits = self.replay.logits(batch)
            if not alike(self._plain_logits(batch), logits, autocast=self.autocast):
                raise ModelError(
                    "effects need torch's plain attention, and with dropout it drops other weights "
                    "here than the kernel of the training. Ask for contributions instead (method "
                    "exact or indexed), or train a model whose config.json has none in attention "
                    "(attention_probs_dropout_prob: 0)."
                )
        parameters = list(self.all.values())
        total, _ = self._sum_of(batch)
        with _differentiating_twice():
            each = torch.autograd.grad(
                total, parameters, torch.ones_like(total, requires_grad=True),
                create_graph=True, allow_unused=True,
            )  # fmt: skip
            scalar = torch.stack([g.sum() for g in each if g is not None]).sum()
            refuse_cut(scalar)
            torch.autograd.grad(scalar, parameters, allow_unused=True)

    def _step_back(
        self,
        batches: Sequence[RecordedBatch],
        update: Mapping[str, Update],
        clip: float,
        moved: Mapping[str, Tensor],
    ) -> None:
        losses = [self._loss_of(batch) for batch in batches]
        names = list(update)
        parameters = [self.all[n] for n in names]
        with _differentiating_twice():
            graphs = [
                torch.autograd.grad(each, parameters, create_graph=True, materialize_grads=True)
                for each in losses
            ]
        total = {
            n: torch.stack([g[i].detach() for g in graphs]).sum(0) for i, n in enumerate(names)
        }
        directions = {
            n: self._through_update(n, update[n], clip * total[n], moved[n]) for n in names
        }
        directions = self._through_clip(directions, total, clip)
        for batch in batches:
            products = self._products(batch, directions)
            for q, each in enumerate(products.double().cpu().numpy()):
                np.add.at(self.found[q], list(batch.documents), each)
        with _differentiating_twice():
            for graph in graphs:
                self._add_curvature(graph, names, directions)

    def _through_update(self, name: str, how: Update, gradient: Tensor, moved: Tensor) -> Tensor:
        """From θ̄', m̄', v̄' to those before, but for the Hessian; return ḡ, (Q, …)."""
        weights, first, second = self.weights[name], self.first[name], self.second[name]
        scale = torch.as_tensor(how.scale, dtype=weights.dtype, device=weights.device)
        at = self.all[name].detach()
        pushed = -scale * weights
        first.add_(pushed, alpha=how.momentum if how.nesterov else 1.0)
        found = how.gain * first
        if how.nesterov:
            found = found + pushed
        if (moments := how.second) is not None:
            root = moments.reach / scale - moments.eps  # √v̂'
            # θ' = θ − reach · m' / (√v̂' + ε) − cθ, so −scale · m' is the move without decay.
            slope = -(moved + how.decoupled * at) * scale / moments.reach
            slope = torch.where(root > 1e-3 * moments.eps, slope / (2 * root), 0.0)
            second.add_(weights * (slope / moments.unbias))
            decayed = gradient + how.coupled * at
            found = found + (2 * (1 - moments.beta2)) * decayed * second
            second.mul_(moments.beta2)
        first.mul_(how.momentum)
        weights.mul_(1 - how.decoupled)
        if how.coupled:
            weights.add_(found, alpha=how.coupled)
        return found

    def _through_clip(
        self, directions: dict[str, Tensor], total: Mapping[str, Tensor], clip: float
    ) -> dict[str, Tensor]:
        """Clipping takes the part along the gradient away, and shortens the rest."""
        if clip == 1.0:
            return directions
        norm = torch.stack([g.norm() for g in total.values()]).norm()
        along = sum(dots(d, total[n]) for n, d in directions.items())
        factor = -clip * clip / (self.replay.max_grad_norm * norm.double()) * along
        return {
            n: clip * d + factor.to(d).view(-1, *[1] * (d.ndim - 1)) * total[n]
            for n, d in directions.items()
        }

    # The loss of a batch, and products with its gradients

    def _loss_of(self, batch: RecordedBatch) -> Tensor:
        """The batch's share of the step's loss, whose gradient the path has."""
        total, logits = self._sum_of(batch)
        (mine,) = torch.autograd.grad(total, logits, retain_graph=True)
        recorded = batch.gradient.to(mine)
        share = float((mine * recorded).sum() / mine.square().sum().clamp(min=1e-30))
        if float((share * mine - recorded).norm()) > 1e-2 * float(recorded.norm()):
            raise OptionError(
                f"the gradient of {type(self.loss).__name__} is not the one that was recorded in "
                f"step {batch.step}. Give the loss of the training with loss=."
            )
        return share * total

    def _sum_of(self, batch: RecordedBatch) -> tuple[Tensor, Tensor]:
        """The loss of the batch, summed over its examples, and the logits that it is of."""
        collated = self.replay.collate([self.replay.dataset[i] for i in batch.documents])
        named = next((n for n in LABELS if n in collated), None)
        if named is None:
            raise OptionError(
                "the training set gives no labels. Effects need them beside the texts: expected "
                f"one of {', '.join(LABELS)} in a batch."
            )
        logits = self._plain_logits(batch)
        self.loss.set_progress(self.path.progress(batch.step))
        return self.loss(logits, collated[named].to(logits.device), reduction="sum"), logits

    def _plain_logits(self, batch: RecordedBatch) -> Tensor:
        """By the kernel of attention that can be differentiated twice."""
        with sdpa_kernel(SDPBackend.MATH):
            return self.replay.logits(batch)

    def _products(self, batch: RecordedBatch, directions: Mapping[str, Tensor]) -> Tensor:
        """⟨Ḡ_q, ∇ℓ_i⟩, (Q, b)."""
        inputs = self.replay.inputs(batch)

        def forward() -> Tensor:
            return self.replay.logits(batch, inputs)

        def backward() -> Tensor:
            logits = forward()
            logits.backward(batch.gradient.to(logits))
            return logits.detach()

        if self.layers_serve:
            self.model.zero_grad()  # the replay's own gradient is still there
            products = by_layers(self.model, directions, backward)
            gradients = {n: self.all[n].grad for n in directions}
            self.layers_serve = products is not None and adds_up(
                products, directions, gradients, autocast=self.autocast
            )
            self.model.zero_grad()
            if products is not None and self.layers_serve:
                return products
        gradient = batch.gradient.to(next(iter(directions.values())))
        return by_passes(self.model, directions, forward, gradient, autocast=self.autocast)

    def _add_curvature(
        self, graph: Iterable[Tensor], names: list[str], directions: Mapping[str, Tensor]
    ) -> None:
        """θ̄ += H Ḡ."""
        pairs = [(g, directions[n]) for g, n in zip(graph, names, strict=True) if g.requires_grad]
        parameters = [self.all[n] for n in names]
        gradients = [g for g, _ in pairs]
        found: Sequence[Tensor | None] | None = None
        if self.batched:
            try:
                found = torch.autograd.grad(
                    gradients, parameters, [d for _, d in pairs],
                    is_grads_batched=True, allow_unused=True, retain_graph=True,
                )  # fmt: skip
            except RuntimeError:  # an operation that vmap does not know
                self.batched = False
        if found is None:
            each = [
                torch.autograd.grad(
                    gradients, parameters, [d[q] for _, d in pairs],
                    allow_unused=True, retain_graph=True,
                )
                for q in range(self.number)
            ]  # fmt: skip
            found = [
                None if parts[0] is None else torch.stack(parts)
                for parts in zip(*each, strict=True)
            ]
        for name, part in zip(names, found, strict=True):
            if part is not None:
                self.weights[name].add_(part)


@contextmanager
def _differentiating_twice() -> Iterator[None]:
    """Say what it means where a layer inside the block has no second derivative."""
    try:
        yield
    except NotImplementedError as error:
        raise ModelError(
            "effects differentiate the training twice, and a layer of this model has a "
            "gradient that cannot be differentiated, as learned attention has. Ask for "
            "contributions instead (method exact or indexed), or train without that layer."
        ) from error
