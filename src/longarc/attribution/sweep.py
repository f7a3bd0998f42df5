"""The exact mode: one sweep back over a recorded path, for many queries at once.

A step moves the parameters from θ_t along a straight segment Δ_t, so a query f changes by
⟨ḡ_t, Δ_t⟩ with ḡ_t = ∫₀¹ ∇f(θ_t + sΔ_t) ds. Δ_t is linear in the gradients of this step and,
through the momentum, of all steps before it. Going back, U_t = s_t ⊙ ḡ_t + μ U_{t+1} gathers what
gradient g_t does in its own step and in all later ones, and example i of step t contributes
−a κ_t ⟨U_t, ∇ℓ_i(θ_t)⟩, with κ_t the clip factor and ℓ_i its part of the step's loss. Memory is
O(parameters × queries), never examples × parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longarc.attribution.account import Account
from longarc.attribution.explanation import Explanation
from longarc.attribution.passengers import Passengers
from longarc.attribution.products import adds_up, by_layers, by_passes
from longarc.attribution.quadrature import NODES, dots, gauss
from longarc.attribution.query import Query
from longarc.attribution.query_gradients import QueryGradients
from longarc.attribution.tape import Tape, taped
from longarc.attribution.update import Update
from longarc.errors import OptionError
from longarc.options import check_positive
from longarc.training.recording.recorded_path import RecordedBatch, RecordedPath
from longarc.training.recording.replay import Replay


def explain(
    path: RecordedPath,
    model: nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    queries: Sequence[Query],
    *,
    tolerance: float = 1e-3,
    parameters: Callable[[str], bool] | None = None,
    labels: Sequence[str] | None = None,
    end: int | None = None,
    advance: Callable[[float], Any] | None = None,
) -> list[Explanation]:
    """Say, for each query, which training examples made its value, in contributions that add up.

    The recorded training is replayed twice, once to regain the states between two snapshots and
    once back over them; for each step and query a gradient of the query is added, two or more
    where a segment bends. The model comes out as it went in.

    Args:
        path: what a :class:`~longarc.PathRecorder` recorded.
        model: of the architecture that was trained; its weights do not matter.
        dataset: the training set, in the order it had.
        collate: makes a batch of its items, as in training.
        queries: the values to explain; they share the replay.
        tolerance: bound on the error of integrating along the segments, as a part of the sum over
            the snapshots of how far the query moved. Nodes are added where it needs them, down to
            the rounding of the parameters' type.
        parameters: which, by name, to explain by; None for all. What the others moved is the term
            ``elsewhere``.
        labels: (N,) class names of the training set, for ``by_class``.
        end: the step to explain; None for that whose weights the training handed over.
        advance: is called with 1 after each step of the sweep.

    Raises:
        OptionError: no query, no parameter left, a tolerance that is not positive.
        DataError, ModelError: a training set or a model that does not fit the path.

    Example: ``docs/explanations.md``.
    """
    found, _ = explain_and_carry(
        path, model, dataset, collate, queries, tolerance=tolerance, parameters=parameters,
        labels=labels, end=end, advance=advance,
    )  # fmt: skip
    return found


def explain_and_carry(
    path: RecordedPath,
    model: nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    queries: Sequence[Query],
    *,
    passengers: Passengers | None = None,
    tolerance: float = 1e-3,
    parameters: Callable[[str], bool] | None = None,
    labels: Sequence[str] | None = None,
    end: int | None = None,
    advance: Callable[[float], Any] | None = None,
) -> tuple[list[Explanation], np.ndarray | None]:
    """As :func:`explain`, and what passengers would have added, (Q, K, b); None without steps."""
    check_positive("tolerance", tolerance)
    if not queries:
        raise OptionError("there is nothing to explain: expected one query or more.")
    with Replay(path, model, dataset, collate) as replay:
        sweep = _Sweep(replay, queries, tolerance, parameters, passengers, advance)
        found = sweep.run(path.kept if end is None else end, labels)
    asked = np.argsort(sweep.asking.order)  # as the queries were given
    carried = None if sweep.carried is None else sweep.carried[asked]
    return [found[i] for i in asked], carried


class _Sweep:
    def __init__(
        self,
        replay: Replay,
        queries: Sequence[Query],
        tolerance: float,
        chosen: Callable[[str], bool] | None,
        passengers: Passengers | None,
        advance: Callable[[float], Any] | None,
    ):
        self.replay = replay
        self.model = replay.model
        self.path = replay.path
        self.asking = QueryGradients(replay.model, queries, replay.parameters)
        self.queries = self.asking.queries
        self.tolerance = tolerance
        self.passengers = passengers
        self.carried: np.ndarray | None = None
        self.advance = advance
        self.all = replay.parameters
        self.chosen = {n: p for n, p in self.all.items() if chosen is None or chosen(n)}
        if not self.chosen:
            raise OptionError(
                "no trained parameter is left to explain by. Trained were: "
                f"{', '.join(list(self.all)[:8])}{' …' if len(self.all) > 8 else ''}."
            )
        # U, and with Nesterov's momentum the direction that differs from it.
        self.gathered = {
            n: p.new_zeros(len(queries), *self.asking.shape(n)) for n, p in self.chosen.items()
        }
        self.layers_serve = True
        self.layers_checked = False

    def run(self, end: int, labels: Sequence[str] | None) -> list[Explanation]:
        segments = self.path.segments(end)
        self._open_books(end, segments)
        for first, after in reversed(segments):
            self._segment(first, after)
        both = zip(self.queries, self.books, strict=True)
        return [book.explanation(query.name, labels) for query, book in both]

    def _open_books(self, end: int, segments: list[tuple[int, int]]) -> None:
        """Values at the snapshots give the scale of each query's tolerance."""
        stops = [first for first, _ in segments]
        rows = []
        for stop in stops or [0]:
            self.replay.go_to(stop)
            rows.append(self._values())
        if segments:
            for batches in self.path.batches(*segments[-1]):
                self.replay.step(batches)
            rows.append(self._values())
        values = np.array(rows)  # (snapshots, Q)
        rounding = 8 * torch.finfo(next(iter(self.all.values())).dtype).eps
        documents = self.path.about["documents"]
        self.books = [
            Account.open(each, self.tolerance, steps=end, documents=documents, rounding=rounding)
            for each in values.T
        ]

    # A segment: forward onto the tape, then back

    def _segment(self, first: int, after: int) -> None:
        self._placed: tuple[Tensor, float] | None = None  # where the parameters are in a step
        with taped(self.replay, first, after) as (tape, recorded):
            self._remember_values()
            for i in reversed(range(len(recorded))):
                self._step_back(tape, i, first + i, recorded[i])
                if self.advance is not None:
                    self.advance(1)

    def _step_back(self, tape: Tape, i: int, step: int, batches: Sequence[RecordedBatch]) -> None:
        start = tape.state(i)
        delta = tape.state(i + 1) - start
        self._place(tape, start)
        self._remember_values()
        update = tape.updates[i]
        directions = self._gather(tape, start, delta, update)
        self._place(tape, start)
        self._decay_coupled(directions, update, self._parts(tape, start))
        for batch in batches:
            products = -tape.clips[i] * self._products(batch, directions, update)
            for q, book in enumerate(self.books):
                each = products[q].double().cpu().numpy()
                np.add.at(book.contributions, list(batch.documents), each)
                book.steps[step] += each.sum()
        if self.passengers is not None:
            self._carry(self.passengers, step, tape.clips[i], directions, update)

    def _gather(
        self, tape: Tape, start: Tensor, delta: Tensor, update: Mapping[str, Update]
    ) -> dict[str, Tensor]:
        """Add this step to U, group by group; return the directions for its gradients."""
        nesterov = {n for n, u in update.items() if u.nesterov and n in self.chosen}
        directions = {n: u for n, u in self.gathered.items() if n in update}
        directions |= {n: torch.empty_like(self.gathered[n]) for n in nesterov}
        parts, before = self._parts(tape, delta), self._parts(tape, start)
        for group in self.asking.groups:
            mean = self._mean_gradients(tape, group, start, delta, parts)
            rows = slice(group.start, group.stop)
            for name, coefficients in update.items():  # the step left the other parameters alone
                gradient = mean.get(name)
                if name not in self.chosen:
                    if gradient is not None:
                        self._add(group, "elsewhere", dots(gradient, parts[name]))
                    continue
                row = self.gathered[name][rows].mul_(coefficients.momentum)
                if gradient is not None:
                    if factor := coefficients.decoupled:
                        self._add(group, "decay", -factor * dots(gradient, before[name]))
                    if isinstance(coefficients.scale, Tensor):
                        scale = self.asking.part(name, coefficients.scale)
                        row.addcmul_(gradient, scale.to(gradient))
                    else:
                        row.add_(gradient, alpha=coefficients.scale)
                if name in nesterov:
                    ahead = directions[name][rows].copy_(row).mul_(coefficients.momentum)
                    if gradient is not None:
                        ahead.add_(gradient, alpha=float(coefficients.scale))
        return directions

    def _decay_coupled(
        self, directions: Mapping[str, Tensor], update: Mapping[str, Update], start: Mapping
    ) -> None:
        """Decay that is part of the gradient moves through the momentum as that does."""
        for name, direction in directions.items():
            factor = update[name].gain * update[name].coupled
            if factor:
                everyone = range(len(self.queries))
                self._add(everyone, "decay", -factor * dots(direction, start[name]))

    def _add(self, group: range, term: str, values: Tensor) -> None:
        for q, value in zip(group, values.tolist(), strict=True):
            setattr(self.books[q], term, getattr(self.books[q], term) + value)

    def _parts(self, tape: Tape, flat: Tensor) -> dict[str, Tensor]:
        """A flat vector's parts by parameter, as the queries' gradients have them."""
        return {name: self.asking.part(name, whole) for name, whole in tape.views(flat).items()}

    # The queries' mean gradients along a segment

    def _mean_gradients(
        self, tape: Tape, group: range, start: Tensor, delta: Tensor, parts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """ḡ_t of a group: the fewest nodes whose error, which is known, is in the budget."""
        waiting = list(group)
        best = dict.fromkeys(waiting, float("inf"))
        last = dict(best)
        found: dict[str, Tensor] = {}
        lowest = min(self.books[q].rung for q in group)
        for rung in range(lowest, len(NODES)):
            some = [q for q in waiting if self.books[q].rung <= rung]
            if not some:
                continue
            mean: dict[str, Tensor] = {}
            for s, weight in gauss(NODES[rung]):
                self._place(tape, start, delta, s)
                for name, gradient in self.asking.gradients(some).items():
                    if name in mean:
                        mean[name].add_(gradient, alpha=weight)
                    else:
                        mean[name] = gradient if weight == 1 else gradient * weight
            sums = torch.zeros(len(some), dtype=torch.float64, device=start.device)
            for name, gradient in mean.items():
                sums += dots(gradient, parts[name])
            first = not found
            for row, (q, moved) in enumerate(zip(some, sums.tolist(), strict=True)):
                book = self.books[q]
                error = book.values[1] - book.values[0] - moved
                if not abs(error) >= abs(best[q]):
                    best[q] = error
                    if not (first and len(some) == len(group)):
                        _write(found, mean, row, q - group.start, len(group))
                if book.enough(rung, error, last[q]):
                    waiting.remove(q)
                last[q] = abs(error)
            if first and len(some) == len(group):
                found = mean
            if not waiting:
                break
        for q in waiting:
            self.books[q].within = False
        for q in group:
            self.books[q].quadrature += best[q]
        return found

    def _values(self) -> list[float]:
        return self.asking.values()

    def _remember_values(self) -> None:
        """Values before the step in hand; those known before are now those after it."""
        for book, value in zip(self.books, self._values(), strict=True):
            book.values = (value, book.values[0])

    def _place(self, tape: Tape, start: Tensor, delta: Tensor | None = None, s: float = 0) -> None:
        """Put the model's parameters on the segment, at θ_t + sΔ_t."""
        if self._placed is not None and self._placed[0] is start and self._placed[1] == s:
            return
        self._placed = (start, s)
        flat = start if delta is None else start + s * delta
        with torch.no_grad():
            for name, value in tape.views(flat).items():
                self.all[name].copy_(value)

    # The examples of a batch, and passengers

    def _products(
        self, batch: RecordedBatch, directions: Mapping[str, Tensor], update: Mapping[str, Update]
    ) -> Tensor:
        """a⟨U_q, ∇ℓ_i⟩ for all queries and examples of a batch, (Q, b)."""
        forward = partial(self.replay.logits, batch, self.replay.inputs(batch))
        if not directions:
            return torch.zeros(len(self.queries), len(batch.documents))
        return self._pushed(forward, batch.gradient, directions, update)

    def _carry(
        self,
        passengers: Passengers,
        step: int,
        clip: float,
        directions: Mapping[str, Tensor],
        update: Mapping[str, Update],
    ) -> None:
        """Add what the passengers' pushes would have done in this step and, by momentum, later."""
        found, first = [], 0
        for inputs in passengers.batches:
            forward = partial(self._plain_logits, inputs)
            with torch.no_grad():
                pushes = passengers.pushes(forward(), clip, step, first)
            first += pushes.shape[1]
            each = [
                -self._pushed(forward, push, directions, update)
                if directions
                else push.new_zeros(len(self.queries), len(push))
                for push in pushes
            ]
            found.append(torch.stack(each, dim=1).double().cpu().numpy())
        carried = np.concatenate(found, axis=2)
        self.carried = carried if self.carried is None else self.carried + carried

    def _plain_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        self.model.eval()
        return self.replay.forward(inputs)

    def _pushed(
        self,
        forward: Callable[[], Tensor],
        gradient: Tensor,
        directions: Mapping[str, Tensor],
        update: Mapping[str, Update],
    ) -> Tensor:
        """a⟨U_q, J_iᵀδ_i⟩, (Q, b), for gradients δ with respect to the logits."""
        gains = {n: update[n].gain for n in directions}
        if len(set(gains.values())) > 1:
            directions = {n: d * gains[n] for n, d in directions.items()}
            gain = 1.0
        else:
            gain = next(iter(gains.values()))

        def backward() -> Tensor:
            logits = forward()
            logits.backward(gradient.to(logits))
            return logits.detach()

        products = None
        if self.layers_serve:
            self.model.zero_grad()
            products = by_layers(
                self.model, directions, backward,
                places=self.asking.places, freeze=self.layers_checked,
            )  # fmt: skip
            if products is not None and not self.layers_checked:
                products = products if self._sums_agree(products, directions) else None
                self.layers_checked = True
            self.model.zero_grad()
            self.layers_serve = products is not None
        if products is None:
            gradient = gradient.to(next(iter(directions.values())))
            directions = {n: self.asking.whole(n, d) for n, d in directions.items()}
            autocast = bool(self.path.about["autocast"])
            products = by_passes(self.model, directions, forward, gradient, autocast=autocast)
        return gain * products

    def _sums_agree(self, products: Tensor, directions: Mapping[str, Tensor]) -> bool:
        gradients = {
            n: self.asking.part(n, gradient)
            for n in directions
            if (gradient := self.all[n].grad) is not None
        }
        return adds_up(products, directions, gradients, autocast=bool(self.path.about["autocast"]))


def _write(
    found: dict[str, Tensor], mean: Mapping[str, Tensor], row: int, place: int, size: int
) -> None:
    """Put one query's gradient in its place among those of its group."""
    for name, gradient in mean.items():
        if name not in found:
            found[name] = gradient.new_zeros(size, *gradient.shape[1:])
        found[name][place] = gradient[row]
