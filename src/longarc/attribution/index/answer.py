"""Queries answered from an index, as explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from longarc.attribution.explanation import Explanation
from longarc.attribution.index.plan import Checkpoint, step_sizes
from longarc.attribution.index.search import scores
from longarc.attribution.index.store import Index, path_identity
from longarc.attribution.quadrature import dot
from longarc.attribution.query import Query
from longarc.errors import OptionError, RunError
from longarc.training.recording.recorded_path import RecordedPath
from longarc.training.recording.replay import Replay, logits_of


def explain_by_index(
    index: Index,
    path: RecordedPath,
    model: nn.Module,
    queries: Sequence[Query],
    *,
    labels: Sequence[str] | None = None,
) -> list[Explanation]:
    """Estimate, for each query, which training examples made its value.

    For each checkpoint of the index and each query a gradient; then one product with all rows. The
    training is not replayed. What the few checkpoints miss is in the residual, which is taken
    against the query's true change; what the projection may be off is in ``errors``.

    Args:
        index: a whole index of ``path``.
        path: what was recorded.
        model: of the architecture that was trained; its weights do not matter, and stay.
        queries: the values to explain.
        labels: (N,) class names of the training set, for ``by_class``.

    Raises:
        OptionError: no query.
        RunError: an index of another path, or one with parts missing.
        ModelError: a model that does not fit the path.

    Example: ``docs/explanations.md``.
    """
    if not queries:
        raise OptionError("there is nothing to explain: expected one query or more.")
    if index.about["path"] != path_identity(path):
        raise RunError(
            f"the index in {index.folder} is of another training path than {path.folder}. Build it "
            "anew with --overwrite-index."
        )
    index.require_whole()
    answer = _Answer(index, path, model, queries)
    documents = range(index.about["documents"])  # queries need none of them
    with Replay(path, model, documents, dict):
        answer.walk()
    found = scores(index, answer.directions, answer.sketches, queries=len(queries))
    return [
        Explanation(
            name=query.name,
            initial=answer.initial[q],
            final=answer.final[q],
            contributions=found.values[q],
            steps=found.sums[q],
            decay=float(answer.decay[q]),
            elsewhere=float(answer.elsewhere[q]),
            method="indexed",
            errors=found.errors[q],
            sum_error=float(found.sum_errors[q]),
            labels=labels,
        )
        for q, query in enumerate(queries)
    ]


class _Answer:
    """Goes along the checkpoints with all queries."""

    def __init__(
        self, index: Index, path: RecordedPath, model: nn.Module, queries: Sequence[Query]
    ):
        self.index, self.path, self.model, self.queries = index, path, model, queries
        by_name = dict(model.named_parameters())
        self.trained = {
            name: by_name[name] for group in path.about["groups"] for name in group["parameters"]
        }
        self.chosen = set(index.about["parameters"])
        self.group = {
            name: g for g, group in enumerate(path.about["groups"]) for name in group["parameters"]
        }
        self.directions: list[Tensor] = []
        self.sketches = 1
        self.decay = np.zeros(len(queries))
        self.elsewhere = np.zeros(len(queries))
        self._before: tuple[dict[str, Tensor], list[dict[str, Tensor]]] | None = None

    def walk(self) -> None:
        """From the start over the checkpoints to the weights that were handed over."""
        self.model.eval()
        self._place(self.path.parameters(0))
        self.initial, gradients = self._gradients()
        self._move(gradients)
        for checkpoint in self.index.checkpoints:
            self._place(self.path.parameters(checkpoint.step))
            _, gradients = self._gradients()
            self._at(checkpoint, gradients)
            self._move(gradients)
        self._place(self.index.kept_weights(self.path))
        self.final, gradients = self._gradients()
        self._move(gradients)

    def _at(self, checkpoint: Checkpoint, gradients: list[dict[str, Tensor]]) -> None:
        sizes = step_sizes(self.path, checkpoint)
        projection = self.index.projection(checkpoint.step, self.trained, sizes)
        self.sketches = projection.sketches
        rows = []
        for q, gradient in enumerate(gradients):
            direction = {}
            for name in self.chosen & gradient.keys():
                g, at = self.group[name], self.trained[name].detach()
                moved = gradient[name] if sizes is None else gradient[name] * sizes[name].to(at)
                direction[name] = -checkpoint.ratios[g] * moved
                self.decay[q] -= checkpoint.decay[g] * dot(gradient[name], at)
                self.decay[q] -= checkpoint.coupled[g] * dot(moved, at)
            rows.append(projection.direction(direction))
        self.directions.append(torch.stack(rows))

    def _move(self, gradients: list[dict[str, Tensor]]) -> None:
        """What the parameters left out moved since the last stop, by the trapezoid rule."""
        others = self.trained.keys() - self.chosen
        here = {name: self.trained[name].detach().clone() for name in others}
        mine = [{n: g for n, g in each.items() if n in others} for each in gradients]
        if self._before is not None and others:
            there, last = self._before
            for q, (old, new) in enumerate(zip(last, mine, strict=True)):
                for name in old.keys() & new.keys():
                    step = here[name] - there[name]
                    self.elsewhere[q] += dot(old[name] + new[name], step) / 2
        self._before = here, mine

    def _gradients(self) -> tuple[list[float], list[dict[str, Tensor]]]:
        values, found = [], []
        for query in self.queries:
            value = query.value(logits_of(self.model(**query.inputs))[0])
            each = torch.autograd.grad(value, list(self.trained.values()), allow_unused=True)
            values.append(float(value.detach()))
            found.append({n: g for n, g in zip(self.trained, each, strict=True) if g is not None})
        return values, found

    def _place(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])
