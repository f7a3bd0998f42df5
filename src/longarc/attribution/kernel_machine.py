"""The network as a kernel machine over its training set: f(x) = f₀(x) + Σ_i α_i K(x, x_i).

Legend: A examples asked about, B others, N of the training set, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from longarc.attribution.passengers import Passengers
from longarc.attribution.query import Query
from longarc.attribution.sweep import explain_and_carry
from longarc.errors import DataError, OptionError, close_matches
from longarc.objectives.losses.contract import Loss
from longarc.objectives.losses.cross_entropy import CrossEntropyLoss
from longarc.options import as_plain, check_positive, check_whole
from longarc.training.recording.recorded_path import RecordedPath
from longarc.training.recording.replay import Replay, without_labels

if TYPE_CHECKING:
    from sklearn.svm import SVC

PASSENGERS = 32
"""Examples that are carried along the path in one batch."""


@dataclass(frozen=True)
class Terms:
    """What the logits of A examples are made of.

    Attributes:
        initial: (A, C) before the training.
        contributions: (A, C, N) of each training example, as in an explanation.
        decay: (A, C) of weight decay.
        elsewhere: (A, C) of parameters that were left out.
        learned: (A, C, L) of examples that were learned into the ledger.
        final: (A, C) the network's logits after the training.
    """

    initial: np.ndarray
    contributions: np.ndarray
    decay: np.ndarray
    elsewhere: np.ndarray
    learned: np.ndarray
    final: np.ndarray


class KernelMachine:
    """A trained network, written as a kernel machine over the training set that made it.

    Of a training with one step after the other, f_T(x) = f₀(x) + Σ_i Σ_t α_i(t) K_t(x, x_i):
    α_i(t) = −∂ℓ_i/∂f is how much the loss pulled at example i in step t, and K_t(x, x_i) =
    a ⟨U_t(x), ∇f(x_i; θ_t)⟩ how much a pull at x_i in step t moves the end value of x. For plain
    gradient descent U_t is the step size times the mean of ∇f(x) over the step, and as the step
    shrinks K becomes the path kernel ∫ ⟨∇f(x), ∇f(x_i)⟩ dt of Domingos 2020 (arXiv 2012.00152).
    For momentum and Adam U_t is what :mod:`longarc.attribution.sweep` gathers.

    All numbers come from replays of the recorded path: ``predict``, ``terms`` and ``kernel`` cost
    two or three times the training for every ``together`` logits. The last examples that were asked
    about are remembered, so that edits of the ledger are free.

    Args:
        path: what a :class:`~longarc.PathRecorder` recorded.
        model: of the architecture that was trained; its weights do not matter.
        dataset: the training set, in the order it had.
        collate: makes a batch of its items, as in training.
        read: makes items of the data set's kind of what is asked about, e.g. of texts; None where
            they are such items.
        names: of the classes.
        loss: of the training, for ``learn``; None for cross-entropy.
        together: logits that share one replay; each takes as much memory as the parameters.
        tolerance: as in :func:`longarc.attribution.sweep.explain`.
        parameters: which of the trained parameters to count; what the others did is ``elsewhere``.
        advance: is called with 1 after each step of a replay.

    Example: ``docs/explanations.md``.
    """

    def __init__(
        self,
        path: RecordedPath,
        model: nn.Module,
        dataset: Any,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        *,
        read: Callable[[Sequence[Any]], Any] | None = None,
        names: Sequence[str] | None = None,
        loss: Loss | None = None,
        together: int = 32,
        tolerance: float = 1e-3,
        parameters: Callable[[str], bool] | None = None,
        advance: Callable[[float], Any] | None = None,
    ):
        self.path = path
        self.model = model
        self.dataset = dataset
        self.collate = collate
        self.read = read or (lambda examples: examples)
        self.names = None if names is None else list(names)
        self.loss = loss or CrossEntropyLoss()
        self.together = check_whole("together", together, at_least=1)
        self.tolerance = check_positive("tolerance", tolerance)
        self.parameters = parameters
        self.advance = advance
        self.forgotten: frozenset[int] = frozenset()
        self.newcomers: tuple[tuple[Any, Tensor], ...] = ()
        self._last: tuple[list[Any], tuple, Terms] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def classes(self) -> int:
        """Logits of an example."""
        for first, after in self.path.segments():
            return self.path.batches(first, after)[0][0].gradient.shape[1]
        raise OptionError(
            f"the path in {self.path.folder} was followed for no step, so that no example "
            "contributed to the model. Expected one step or more."
        )

    # The machine

    def predict(self, examples: Sequence[Any], *, constant: bool = False) -> np.ndarray:
        """Logits (A, C): f₀ + Σ_i α_i K(x, x_i) + decay, with the edits of the ledger.

        Exact to ``tolerance``: without edits it is what the network says after its training (before
        a recipe's second stage, which is no part of the path).

        Args:
            examples: what is asked about, A of them.
            constant: one α_i for the whole path, ``support`` by ``kernel``, in place of α_i(t): a
                kernel machine in the narrow sense, and an approximation. It takes no edits.
        """
        if constant:
            self._refuse_edits("constant weights")
            return self._constant(examples)
        terms = self.terms(examples)
        kept = np.ones(len(self), dtype=bool)
        kept[list(self.forgotten)] = False
        made = terms.contributions[:, :, kept].sum(axis=2) + terms.learned.sum(axis=2)
        return terms.initial + made + terms.decay + terms.elsewhere

    def terms(self, examples: Sequence[Any]) -> Terms:
        """All parts of the logits of examples, before any is forgotten."""
        examples = list(examples)
        if self._last is not None:
            known, newcomers, terms = self._last
            if newcomers == self._newcomer_key and _same(known, examples):
                return terms
        passengers = self._learning() if self.newcomers else None
        found, carried = self._sweep(examples, torch.eye(self.classes), passengers)
        shape = (len(examples), self.classes)

        def of(name: str) -> np.ndarray:
            return np.array([getattr(e, name) for e in found]).reshape(shape)

        terms = Terms(
            of("initial"),
            np.stack([e.contributions for e in found]).reshape(*shape, -1),
            of("decay"),
            of("elsewhere"),
            carried[:, 0].reshape(*shape, -1),
            of("final"),
        )
        self._last = examples, self._newcomer_key, terms
        return terms

    @cached_property
    def support(self) -> np.ndarray:
        """α (N, C): the pull of the loss at each training example's logits, over the whole path.

        The sum of −∂ℓ_i/∂f over the steps, times their step sizes and clip factors. With
        ``kernel``, the mean over the path, it makes the machine of ``predict(…, constant=True)``.
        """
        found = np.zeros((len(self), self.classes))
        replay = Replay(self.path, self.model, self.dataset, self.collate)
        clips = bool(self.path.about["max_grad_norm"])
        with replay:
            for first, after in self.path.segments():
                if clips:
                    replay.go_to(first)
                for batches in self.path.batches(first, after):
                    clip = replay.step(batches) if clips else 1.0
                    rate = clip * max(batches[0].learning_rates)
                    for batch in batches:
                        pull = -rate * batch.gradient.double().numpy()
                        np.add.at(found, list(batch.documents), pull)
        return found

    def kernel(
        self,
        examples: Sequence[Any],
        others: Sequence[Any] | None = None,
        *,
        label: str | int | None = None,
    ) -> np.ndarray:
        """The path kernel (A, B): how alike the path treated two examples.

        The mean of K_t(x, x') over the path, per unit of step size: for gradient descent the mean
        inner product of ∇f(x), along each step, with ∇f(x') at its start, weighted by the step
        sizes. It is symmetric as far as steps are small and momentum and Adam's second moments
        allow; ``svm`` takes the mean of K and its transpose.

        Args:
            examples: A of them.
            others: B of them; None for the training set.
            label: whose logit f is. None: of two classes the margin of the second over the first,
                of more, or where an example can have several, the mean over their logits' kernels.
        """
        directions = self._directions(label)
        items = [self.dataset[i] for i in range(len(self))] if others is None else self.read(others)
        length = self._length

        def pushes(logits: Tensor, clip: float, step: int, first: int) -> Tensor:
            each = directions.to(logits)[:, None] / -length
            return each.expand(len(directions), len(logits), -1)

        _, carried = self._sweep(examples, directions, self._carry(items, pushes))
        kinds = len(directions)
        every = carried.reshape(len(examples), kinds, kinds, len(items))
        return np.einsum("acch->ah", every) / kinds

    def svm(
        self,
        labels: Sequence[Any],
        *,
        strength: float | Sequence[float] = 1.0,
        label: str | int | None = None,
    ) -> SVC:
        """A support vector machine on the path kernel of the training set, fitted.

        ``svm(…).predict(machine.kernel(texts))`` says what it says of texts.

        Args:
            labels: of the training set, N of them.
            strength: scikit-learn's ``C``, for a kernel whose diagonal is 1 in the mean; of several
                the one that is best in a fourfold cross-validation.
            label: as for ``kernel``.

        Raises:
            DataError: not as many labels as training examples.
            OptionError: a strength that is not above 0; no such label.
        """
        from sklearn.model_selection import GridSearchCV
        from sklearn.svm import SVC

        if len(labels) != len(self):
            raise DataError(
                f"{len(labels)} labels were given for a training set of {len(self)} examples; "
                "expected one for each."
            )
        strength = as_plain(strength)
        several = list(strength) if isinstance(strength, Sequence) else [strength]
        several = [check_positive("strength", each) for each in several]
        gram = self._kernel_of_training(label)
        gram = (gram + gram.T) / 2
        scale = max(float(np.diag(gram).mean()), 1e-30)
        if len(several) == 1:
            return SVC(kernel="precomputed", C=several[0] / scale).fit(gram, labels)
        choices = {"C": [each / scale for each in several]}
        search = GridSearchCV(SVC(kernel="precomputed"), choices, cv=4)
        return search.fit(gram, labels).best_estimator_

    # The ledger

    def forget(self, ids: int | Iterable[int]) -> KernelMachine:
        """A machine without the contributions of training examples.

        To first order that is the training without them; the paths of the others are left as they
        are. ``docs/explanations.md`` has the error, measured against training again.

        Raises OptionError for an id that is not of the training set.
        """
        ids = {ids} if isinstance(ids, int | np.integer) else set(map(int, ids))
        if strange := sorted(i for i in ids if not 0 <= i < len(self)):
            raise OptionError(
                f"there is no training example {strange[0]}; they are numbered 0 to "
                f"{len(self) - 1}."
            )
        edited = copy.copy(self)
        edited.forgotten = self.forgotten | ids
        return edited

    def learn(self, examples: Sequence[Any], labels: Sequence[Any]) -> KernelMachine:
        """A machine with the contributions of further examples, as if they had been trained on.

        In every step each pulls with the gradient of its loss, without dropout, and with a weight
        of 1/N, which is its share of an epoch for a loss that is a mean. Its own effect on the
        path, and so on its own later gradients, is left out: see ``docs/explanations.md`` for the
        error, measured against training again.

        Args:
            examples: what to learn.
            labels: of these: names or numbers of classes, or lists of them for several labels.

        Raises:
            OptionError: a loss that belongs to the batch, as soft F1 does; no such label.
            DataError: not as many labels as examples.
        """
        if self.loss.belongs_to_batch:
            raise OptionError(
                f"{type(self.loss).__name__} belongs to the batch: what it says of an example "
                "depends on the others there, so that a further one has no pull of its own. "
                "Expected a loss of each example alone, such as cross-entropy; predict, kernel and "
                "forget work with any."
            )
        examples = list(examples)
        if len(labels) != len(examples):
            raise DataError(f"{len(labels)} labels were given for {len(examples)} examples.")
        targets = [self._target(each) for each in labels]
        edited = copy.copy(self)
        edited.newcomers = self.newcomers + tuple(zip(self.read(examples), targets, strict=True))
        return edited

    # Below

    @property
    def _newcomer_key(self) -> tuple:
        return tuple(map(id, self.newcomers))

    @cached_property
    def _length(self) -> float:
        """The sum of the step sizes: how much time the path took."""
        rates = [
            max(batches[0].learning_rates)
            for segment in self.path.segments()
            for batches in self.path.batches(*segment)
        ]
        return sum(rates) or 1.0

    def _constant(self, examples: Sequence[Any]) -> np.ndarray:
        support = torch.from_numpy(self.support) / self._length

        def pushes(logits: Tensor, clip: float, step: int, first: int) -> Tensor:
            return -support[first : first + len(logits)].to(logits)[None]

        items = [self.dataset[i] for i in range(len(self))]
        found, carried = self._sweep(examples, torch.eye(self.classes), self._carry(items, pushes))
        shape = (len(examples), self.classes)
        start = np.array([e.initial + e.decay + e.elsewhere for e in found])
        return (start + carried[:, 0].sum(axis=1)).reshape(shape)

    def _learning(self) -> Passengers:
        targets = torch.stack([target for _, target in self.newcomers])
        number = len(self)
        loss_of = copy.deepcopy(self.loss).to(next(self.model.parameters()).device)

        def pushes(logits: Tensor, clip: float, step: int, first: int) -> Tensor:
            with torch.enable_grad():
                at = logits.detach().requires_grad_()
                told = targets[first : first + len(at)].to(at.device)
                loss_of.set_progress(self.path.progress(step))
                loss = loss_of(at, told, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, at)
            return gradient[None] * (clip / number)

        return self._carry([item for item, _ in self.newcomers], pushes)

    def _carry(self, items: Sequence[Any], pushes: Callable[..., Tensor]) -> Passengers:
        return Passengers(self._batches(items), pushes)

    def _batches(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        """What the model takes, on its device; of the training set's kind, without labels."""
        device = next(self.model.parameters()).device
        found = []
        for first in range(0, len(items), PASSENGERS):
            some = [items[i] for i in range(first, min(first + PASSENGERS, len(items)))]
            found.append(without_labels(self.collate(some), device))
        return found

    def _sweep(
        self, examples: Sequence[Any], directions: Tensor, passengers: Passengers | None
    ) -> tuple[list[Any], np.ndarray]:
        """For each example and direction v of its logits, v·f explained, (A·V); and (A·V, K, b)."""
        if not len(examples):
            raise OptionError("there is nothing to ask: expected one example or more.")
        queries = [
            Query(inputs, lambda z, v=direction: z @ v.to(z))
            for item in self.read(examples)
            for inputs in self._batches([item])
            for direction in directions
        ]
        found, carried = [], []
        for first in range(0, len(queries), self.together):
            some, of_passengers = explain_and_carry(
                self.path,
                self.model,
                self.dataset,
                self.collate,
                queries[first : first + self.together],
                passengers=passengers,
                tolerance=self.tolerance,
                parameters=self.parameters,
                advance=self.advance,
            )
            found += some
            carried.append(np.zeros((len(some), 1, 0)) if of_passengers is None else of_passengers)
        return found, np.concatenate(carried)

    def _kernel_of_training(self, label: str | int | None) -> np.ndarray:
        edited = copy.copy(self)
        edited.read = lambda items: items
        return edited.kernel([self.dataset[i] for i in range(len(self))], label=label)

    def _directions(self, label: str | int | None) -> Tensor:
        eye = torch.eye(self.classes)
        if label is not None:
            return eye[self._number(label)][None]
        rivals = self.classes == 2 and not self.loss.multi_label
        return (eye[1] - eye[0])[None] if rivals else eye

    def _number(self, label: Any) -> int:
        if isinstance(label, str):
            if self.names is None or label not in self.names:
                raise OptionError(
                    f"There is no label '{label}'. {close_matches(label, self.names or [])}"
                )
            return self.names.index(label)
        if not 0 <= int(label) < self.classes:
            raise OptionError(f"there is no class {label}; there are 0 to {self.classes - 1}.")
        return int(label)

    def _target(self, label: Any) -> Tensor:
        if self.loss.multi_label:
            target = torch.zeros(self.classes)
            label = as_plain(label)
            for each in [label] if isinstance(label, str | int) else label:
                target[self._number(each)] = 1.0
            return target
        return torch.tensor(self._number(label))

    def _refuse_edits(self, what: str) -> None:
        if self.forgotten or self.newcomers:
            raise OptionError(f"{what} take no edits: ask the machine before forget and learn.")


def _same(known: list[Any], examples: list[Any]) -> bool:
    return len(known) == len(examples) and all(
        a is b or (isinstance(a, str) and a == b) for a, b in zip(known, examples, strict=True)
    )
